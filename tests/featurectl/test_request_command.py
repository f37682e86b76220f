"""``featurectl request``, as typed: what is refused before a cluster is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurectl.app import app
from featurestream.errors import UsageError

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
