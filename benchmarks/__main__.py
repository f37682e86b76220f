"""``python -m benchmarks [THEME ...]``: measure, print, and write a report for each theme."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from benchmarks.broker import own_broker
from benchmarks.report import REPORTS, Setting, markdown, write

#: Theme: whether it needs a broker. Each is a module of this package with a function ``run``.
THEMES = {
    "wire": False,
    "publish": True,
    "read": True,
    "produce": True,
    "grouped_heads": False,
    "decode": False,
    "checkpoint": True,
    "seek": True,
    "storage": True,
    "ablations": True,
    "gateway": True,
}


def main(arguments: Sequence[str]) -> None:
    """Run the themes that are named, all of them where none is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="THEME", help=f"one of {', '.join(THEMES)}; all if none is named")
    parser.add_argument("--reports", type=Path, default=REPORTS, metavar="DIR", help="where the reports are written")
    options = parser.parse_args(arguments)
    for theme in options.themes:
        if theme not in THEMES:
            parser.error(f'unknown theme "{theme}", expected one of {", ".join(THEMES)}')
    themes = options.themes or list(THEMES)
    with ExitStack() as stack:
        cluster = stack.enter_context(own_broker()) if any(THEMES[theme] for theme in themes) else None
        for theme in themes:
            print(f"==> {theme}", flush=True)
            setting = Setting.here(arguments)
            began = time.monotonic()
            run = import_module(f"benchmarks.{theme}").run
            report = run(cluster) if THEMES[theme] else run()
            text = markdown(report, setting)
            path = write(text, theme, setting, options.reports)
            print(f"\n{text}\n{time.monotonic() - began:.0f} s; written to {path}\n", flush=True)


if __name__ == "__main__":
    # Like Ctrl-C: the broker of the benchmarks' own ends with them.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    main(sys.argv[1:])
