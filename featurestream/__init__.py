"""Frozen vision features on Kafka: extracted once, read by any number of head trainers.

What is public can be imported from here: ``from featurestream import FeatureStream``. It is loaded when it is first
asked for, so that importing the package costs nothing.

>>> import featurestream
>>> sorted(featurestream.__all__) == list(featurestream.__all__)
True
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from featurestream.lazy import load_when_asked

if TYPE_CHECKING:
    from featurestream.batch import FeatureBatch, concatenate
    from featurestream.cluster import Cluster, resolve_cluster
    from featurestream.errors import FeatureStreamError
    from featurestream.manifest import Manifest
    from featurestream.memory import MemoryLog
    from featurestream.position import Position, StartPoint
    from featurestream.record import Record
    from featurestream.stream import FeatureStream

_MODULES: Final = {
    "Cluster": "cluster",
    "FeatureBatch": "batch",
    "FeatureStream": "stream",
    "FeatureStreamError": "errors",
    "Manifest": "manifest",
    "MemoryLog": "memory",
    "Position": "position",
    "Record": "record",
    "StartPoint": "position",
    "concatenate": "batch",
    "resolve_cluster": "cluster",
}

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

__getattr__ = load_when_asked(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
