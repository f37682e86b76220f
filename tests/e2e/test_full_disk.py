"""A disk that fills while a producer writes: the command says so, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.kafka.sink import KafkaSink

pytestmark = pytest.mark.broker

SIZE_MB = 160


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(sink: KafkaSink) -> None:
    for number in range(2 * SIZE_MB):
        sink.append("filled", 0, key=b"%d" % number, value=os.urandom(900_000), headers=[])
    sink.flush()


def test_a_full_disk_is_named_by_the_error_that_the_user_sees(small_disk: Path) -> None:
    broker = EmbeddedBroker(small_disk)
    try:
        address = broker.up().bootstrap_servers
        assert address is not None
        log = KafkaLog(Cluster(address, embedded=True))
        log.create_topic("filled", 1, {})
        sink = KafkaSink(Cluster(address), delivery_s=3.0)
        with pytest.raises(BrokerError) as caught:
            fill(sink)
        log.close()
    finally:
        broker.down()
    report = (
        "import sys\n"
        "from featurectl.app import run\n"
        "from featurestream.errors import BrokerError\n"
        "def program(prog_name):\n"
        f"    raise BrokerError({str(caught.value.message)!r}, bootstrap_servers={address!r})\n"
        "run(program, 'featurectl')\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", report],
        env={**os.environ, "FEATURESTREAM_HOME": str(small_disk)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 3
    assert f"the embedded broker in {small_disk} has ended: its disk is full, " in shown.stderr
    assert "featurectl broker up" in shown.stderr
