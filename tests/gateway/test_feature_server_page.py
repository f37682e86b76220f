"""docs/feature-server.md: the original's workflow, each of its lines run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featurestream.cluster import Cluster
from tests.gateway.workflow import TRANSCRIPT, asked, blocks, fill, work


@pytest.mark.broker
@pytest.mark.timeout(280)
def test_every_line_of_the_page_runs(broker: Cluster, tmp_path: Path) -> None:
    assert broker.embedded
    fill(tmp_path)
    _, _, *rest = work(tmp_path)
    answers = [json.loads(step.output) for step in rest if step.language == "sh"]
    (program,) = (step.output for step in rest if step.language == "python")
    found = re.match(r"\((\d+), 512, 1, 1\) \[([01] ?){3}\] \['\w\.png' '\w\.png' '\w\.png'\] \d+$", program)
    assert found, program
    assert int(found[1]) >= 18
    data, after, recent, requested, made = answers
    assert len({(row["id"], row["batch"]) for row in data["rows"]}) == len(data["rows"]) / 3
    assert list(data["rows"][0]["features"]) == ["avgpool"]
    assert (len(after["rows"]), list(after["rows"][0]["features"])) == (5, ["layer2", "avgpool"])
    assert recent["rows"][0]["label"] in (0, 1)
    assert (requested["stream"], requested["samples"], requested["producer"]) == ("photos-requests", 2, "live")
    assert [row["id"] for row in made["rows"]] == ["b.png"] * 3 + ["a.png"] * 3


def test_the_transcript_is_one_of_the_page_as_it_stands() -> None:
    """Made anew with ``python -m tests.gateway.workflow`` when the page has changed."""
    _, *parts = TRANSCRIPT.read_text(encoding="utf-8").split("\n\n$ ")
    for block, part in zip(blocks(), parts, strict=True):
        command = asked(*block).removeprefix("$ ")
        assert part.startswith(command + "\n")
        assert part.removeprefix(command).strip(), "it printed nothing"
    assert '"rows":[' in parts[2]
    assert "Traceback" not in "".join(parts)
