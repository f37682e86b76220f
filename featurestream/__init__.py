"""Frozen vision features on Kafka: extracted once, read by any number of head trainers.

>>> import featurestream
>>> sorted(featurestream.__all__) == list(featurestream.__all__)
True
"""

from __future__ import annotations

from importlib.metadata import version

from featurestream.batch import FeatureBatch, concatenate
from featurestream.cluster import Cluster, resolve_cluster
from featurestream.errors import FeatureStreamError
from featurestream.manifest import Manifest
from featurestream.memory import MemoryLog
from featurestream.position import Position, StartPoint
from featurestream.record import Record
from featurestream.stream import FeatureStream

__version__ = version("featurestream")

__all__ = [
    "Cluster",
    "FeatureBatch",
    "FeatureStream",
    "FeatureStreamError",
    "Manifest",
    "MemoryLog",
    "Position",
    "Record",
    "StartPoint",
    "__version__",
    "concatenate",
    "resolve_cluster",
]
