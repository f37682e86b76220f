"""What tests of the gateway may ask for: a log with one small stream, and a gateway that serves it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from featurestream.manifest import Manifest
from featurestream.memory import MemoryLog
from tests.gateway.serving import Served, serving
from tests.support import make_manifest, publish


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """A finite stream of two passes: 10 samples, 4 a batch, so batches of 4, 4 and 2 rows; 2 lanes."""
    return make_manifest("toy")


@pytest.fixture(scope="module")
def log(manifest: Manifest) -> MemoryLog:
    """A log that holds that stream, complete. No test of the module changes it."""
    found = MemoryLog()
    publish(found, manifest)
    return found


@pytest.fixture(scope="module")
def served(log: MemoryLog) -> Iterator[Served]:
    """A gateway on that log."""
    with serving(log) as found:
        yield found
