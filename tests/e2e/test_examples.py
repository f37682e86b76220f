"""The examples in other languages run, and find the same rows over HTTP and on Kafka.

They need a toolchain and its registry: where one of them is not there, the test says so and is skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from tests.gateway.serving import serving
from tests.project.documents import ROOT
from tests.support import make_manifest, publish

EXAMPLES = ROOT / "examples"
LIMIT_S = 200
#: Two passes of ten samples, the second rotated by one: feature k of sample i in pass p is 1000 p + 10 i + k.
EXPECTED = [
    "batch 0 pass 0 rows 4: 0 1 10",
    "batch 1 pass 0 rows 4: 40 41 50",
    "batch 2 pass 0 rows 2: 80 81 90",
    "batch 3 pass 1 rows 4: 1090 1091 1000",
    "batch 4 pass 1 rows 4: 1030 1031 1040",
    "batch 5 pass 1 rows 2: 1070 1071 1080",
]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def prepare(words: list[str], folder: Path) -> None:
    """Run what needs a registry; skip where it cannot be reached."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{words[0]}: its registry did not answer in time")
    if done.returncode:
        pytest.skip(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-300:]}")


def check(words: list[str], folder: Path, broker: Cluster, name: str) -> None:
    """Run an example on a stream with a duplicate, over HTTP and from Kafka."""
    with KafkaLog(broker) as log, serving(log) as served:
        publish(log, make_manifest(name, lanes=3), [0, 1, 2, 3, 0, 4, 5])
        words = [*words, served.url, broker.bootstrap_servers, name, "layer3", "6"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{source} {line}" for source in ("http", "kafka") for line in EXPECTED]


@pytest.mark.broker
@pytest.mark.slow
def test_the_go_example_reads_the_same_rows_over_http_and_from_kafka(
    broker: Cluster, unique: str, tmp_path: Path
) -> None:
    go = tool("go")
    prepare([go, "mod", "download"], EXAMPLES / "go")
    built = subprocess.run(
        [go, "build", "-o", str(tmp_path / "features"), "."],
        cwd=EXAMPLES / "go", capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    check([str(tmp_path / "features")], tmp_path, broker, unique)


@pytest.mark.broker
@pytest.mark.slow
def test_the_typescript_example_reads_the_same_rows_over_http_and_from_kafka(
    broker: Cluster, unique: str, tmp_path: Path
) -> None:
    node, npm, npx = tool("node"), tool("npm"), tool("npx")
    for name in ("features.ts", "package.json"):
        shutil.copy(EXAMPLES / "typescript" / name, tmp_path)
    prepare([npm, "install", "--no-audit", "--no-fund", "--no-package-lock"], tmp_path)
    prepare([npx, "--no-install", "esbuild", "features.ts", "--outfile=features.mjs"], tmp_path)
    check([node, "features.mjs"], tmp_path, broker, unique)


@pytest.mark.parametrize("path", [*EXAMPLES.glob("go/*.go"), *EXAMPLES.glob("typescript/*.ts")], ids=lambda p: p.name)
def test_an_example_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100


def test_no_lock_file_that_names_hosts_is_kept() -> None:
    assert [str(path) for path in EXAMPLES.rglob("*lock*") if "node_modules" not in path.parts] == []
