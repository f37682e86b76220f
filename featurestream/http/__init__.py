"""Streams over HTTP: a log that is read through ``featurectl gateway``, for places that cannot reach Kafka."""

from __future__ import annotations

from featurestream.http.log import HttpLog

__all__ = ["HttpLog"]
