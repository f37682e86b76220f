"""docs/monitoring.md says of every metric what the code says."""

from __future__ import annotations

import re

from featurestream.telemetry import GATEWAY, PRODUCER, TRAINER
from tests.project.documents import ROOT

PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
ALL = (*PRODUCER, *TRAINER, *GATEWAY)


def test_the_page_has_one_line_for_each_metric_with_what_the_code_says_of_it() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `featurestream_")]
    assert lines == [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} |"
        for metric in ALL
    ]


def test_the_page_names_no_metric_that_there_is_not() -> None:
    assert set(re.findall(r"featurestream_\w+_\w+", PAGE)) == {metric.name for metric in ALL}
