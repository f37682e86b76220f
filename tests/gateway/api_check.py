"""Ask a gateway everything that its OpenAPI document allows, and much that it does not, and print the summary.

``python -m tests.gateway.api_check [--examples N] [--seed N]``: schemathesis with its own command line, on a gateway in
this process with one small stream. Live connections never end, so tests of their own ask them (test_openapi.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from featurectl.gateway import programs
from featurestream import MemoryLog
from featurestream_gateway.programs import Comparison, Picture
from tests.gateway.serving import Served, serving
from tests.support import make_manifest, publish

LIVE = ("/v1/live", "/v1/streams/{stream}/live")
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "unsupported_method",
)  # fmt: skip


@contextmanager
def serving_toy() -> Iterator[Served]:
    """Serve a log with one stream, "toy"; pictures and comparisons are ready-made."""
    log = MemoryLog()
    publish(log, make_manifest("toy"))
    given = replace(
        programs(),
        picture=lambda *_: Picture(b"\x89PNG\r\n\x1a\n", {"stream": "toy"}),
        compare=lambda *_: Comparison("top1", [], []),
    )
    with serving(log, given) as found:
        yield found


def main() -> int:
    """Run schemathesis; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gateway.api_check", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="of each operation in each phase")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # Schemathesis writes its notes into the folder in which it runs.
    with serving_toy() as served, tempfile.TemporaryDirectory(prefix="featurestream-api-check-") as folder:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{served.url}/openapi.json",
            "--max-examples", str(options.examples), "--seed", str(options.seed), "--mode", "all",
            "--checks", ",".join(CHECKS), "--generation-database", "none", "--continue-on-failure", "--no-color",
            *(word for path in LIVE for word in ("--exclude-path", path)),
        ]  # fmt: skip
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
