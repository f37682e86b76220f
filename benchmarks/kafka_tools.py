"""Kafka's own ``ProducerPerformance``, from its released jars."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from benchmarks.measure import Run
from featurestream.broker.jars import install_jars, kafka_version, parse_lock
from featurestream.broker.java import find_java
from featurestream.cluster import Cluster

#: The jars of org.apache.kafka:kafka-tools with their sums, as the broker's own lock has those of the broker.
LOCK = Path(__file__).with_name("tools.lock")
MAIN = "org.apache.kafka.tools.ProducerPerformance"
WARM_UP = 0.25  # of the records: Java compiles while it runs
LIMIT_S = 300.0
_SUMMARY = re.compile(r"\d+(?: steady state)? records sent, ([\d.]+) records/sec")


def tools_jars() -> list[Path]:
    """Return the verified jars of Kafka's tools in the user's cache; what is missing is downloaded."""
    text = LOCK.read_text(encoding="utf-8")
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = platformdirs.user_cache_path("featurestream") / f"kafka-tools-{kafka_version()}-{key}"
    return install_jars(parse_lock(text), folder, print)


def producer_performance(
    cluster: Cluster, jars: Sequence[Path], topic: str, *, record_bytes: int, records: int, settings: Sequence[str]
) -> Run:
    """Send records of random bytes, ``records`` of them measured, after a warm-up; return the run in MB.

    ``settings``: the producer's own, ``name=value``. The time of Java's start is not counted.
    """
    warm_up = max(1, int(WARM_UP * records))
    command = [
        *(str(find_java().path), "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"),
        *("-cp", os.pathsep.join(map(str, jars)), MAIN, "--topic", topic, "--throughput", "-1"),
        *("--record-size", str(record_bytes), "--num-records", str(records + warm_up)),
        *("--warmup-records", str(warm_up), "--bootstrap-server", cluster.bootstrap_servers),
        *("--command-property", *settings),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    rate = last_rate(done.stdout)
    if done.returncode or rate is None:
        raise RuntimeError(f"ProducerPerformance ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return Run(rate * record_bytes / 1e6, 0.0)


def last_rate(printed: str) -> float | None:
    """Return the records a second of the last summary, which is without the warm-up; None where there is none."""
    found = _SUMMARY.findall(printed)
    return float(found[-1]) if found else None
