"""``featurectl request`` on the real broker: beside a producer that runs, and where none does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurectl.app import app
from featurestream.cluster import Cluster
from featurestream.errors import UnknownNameError
from featurestream.kafka import KafkaLog
from featurestream.manifest_topic import list_streams
from featurestream.stream import FeatureStream
from featurestream_producer.run import produce
from tests.producing import command, config, wait_for_batches, write_images

pytestmark = pytest.mark.broker


def test_samples_are_served_by_the_producer_that_waits_and_by_the_next_one_that_starts(
    broker: Cluster, tmp_path: Path, unique: str
) -> None:
    images, wanted = write_images(tmp_path / "images"), tmp_path / "wanted.txt"
    cluster = ["--bootstrap-servers", broker.bootstrap_servers]
    request = ["request", unique, "--ids", str(wanted), *cluster]
    with KafkaLog(broker) as log:
        with command(images, unique, broker.bootstrap_servers, passes="endless", delay_s=0.001) as process:
            wait_for_batches(log, unique, ["late"], 6, process)

            wanted.write_text("a/002.png\nb/003.jpg\n")
            refused = CliRunner().invoke(app, request)
            assert isinstance(refused.exception, UnknownNameError)
            assert 'did you mean "b/003.png"?' in str(refused.exception)
            assert f"{unique}-requests" not in list_streams(log)

            wanted.write_text("a/002.png\n\n39\na/002.png\n")
            done = CliRunner().invoke(app, [*request, "--json"])
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout) == {
                "stream": f"{unique}-requests", "samples": 2, "first_batch": 0, "last_batch": 0, "producer": "live"
            }  # fmt: skip
            assert done.stderr == ""
            with FeatureStream(f"{unique}-requests", "late", stop="batch:1", log=log) as served:
                rows = served.read_all()
            assert rows.ids[0] == "a/002.png"
            assert (len(rows), rows.indices.tolist()[1]) == (2, 39)

        alone = CliRunner().invoke(app, request)  # the producer was killed
        assert "2 samples requested (1 named twice): batch 1 of stream" in alone.stdout
        assert "no producer is running" in alone.stderr
        produce(config(images, unique, passes=1), log, say=lambda _: None)
        again = FeatureStream(f"{unique}-requests", "late", start="batch:1", stop="latest", log=log).read_all()
        assert again.ids == rows.ids
        ordinary = FeatureStream(unique, "late", stop="pass:1", log=log).read_all()
        assert sorted(ordinary.indices.tolist()) == list(range(40))
