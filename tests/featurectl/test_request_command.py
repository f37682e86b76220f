"""``featurectl request``, as typed: what is refused before a cluster is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurectl.app import app
from featurestream.errors import UsageError
from featurestream.manifest_topic import ManifestTopic
from featurestream.names import requests_stream
from tests.support import make_manifest, publish

NOWHERE = ["--bootstrap-servers", "127.0.0.1:9"]


@pytest.mark.parametrize(("content", "why"), [(None, "cannot read"), (b"\n \n", "names no sample"), (b"\xff", "utf-8")])
def test_a_file_that_names_no_sample_is_refused_before_a_broker_is_asked(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    wanted = tmp_path / "wanted.txt"
    if content is not None:
        wanted.write_bytes(content)
    result = CliRunner().invoke(app, ["request", "toy", "--ids", str(wanted), *NOWHERE])
    assert isinstance(result.exception, UsageError)
    assert why in str(result.exception)


def test_what_is_requested_stands_on_the_log_in_the_order_of_the_file(cli, log, tmp_path: Path) -> None:
    """Batches of 4: the first request has two, the second one, and both say where they will be found."""
    publish(log, make_manifest("toy"))
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("img/7.png\n3\n\n img/0.png\n9\n1\nimg/7.png\n")
    first = cli("request", "toy", "--ids", str(wanted))
    assert first.code == 0
    assert first.out == (
        "5 samples requested (1 named twice): batches 0 to 1 of stream toy-requests; read them with --from batch:0, or "
        'FeatureStream("toy-requests", start="batch:0")\n'
    )
    assert "no producer is running: the next one serves them first" in first.err
    wanted.write_text("2\n")
    assert cli("request", "toy", "--ids", str(wanted), "--json").rows == [
        {"stream": "toy-requests", "samples": 1, "first_batch": 2, "last_batch": 2, "producer": "none"}
    ]
    with ManifestTopic(log, requests_stream("toy")) as topic:
        assert [request.samples for request in topic.read().requests.values()] == [[7, 3, 0, 9, 1], [2]]


def test_requests_cannot_be_requested_of(cli, log, tmp_path: Path) -> None:
    publish(log, make_manifest("toy"))
    (tmp_path / "wanted.txt").write_text("2\n")
    cli("request", "toy", "--ids", str(tmp_path / "wanted.txt"))
    refused = cli("request", "toy-requests", "--ids", str(tmp_path / "wanted.txt"))
    assert refused.code == 2
    assert "is one of requests itself" in refused.err
