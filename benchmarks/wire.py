"""Encoding and decoding a record against a plain copy of the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.features import make_manifest, make_record
from benchmarks.measure import Run, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream.wire import Encoder, decode

#: (rows, numbers in a row): 1 MiB; 64 KiB of few long rows; and 64 KiB of many short ones, which is mostly header.
SHAPES = ((256, 2048), (16, 2048), (256, 128))
LOOP_S = 0.03  # what one measurement takes


def run(*, shapes: Sequence[tuple[int, int]] = SHAPES, repeats: int = 15, loop_s: float = LOOP_S) -> Report:
    """Measure every shape; nothing but this process is needed."""
    return Report(
        theme="wire",
        question="A record's value, written into a reused buffer and read again, both with the checksum over all of "
        "it, against `numpy.copyto` of the value's bytes into a reused buffer. One thread; the bytes lie in the cache.",
        tables=[_compare(shapes, repeats, loop_s)],
        remarks=[
            "Times are of the thread (what else runs does not count), medians; the factors are how many times longer "
            f"than the copy, with the smallest and the largest of {repeats} repeats."
        ],
        versions=package_versions("numpy", "msgpack", "xxhash"),
    )


def _compare(shapes: Sequence[tuple[int, int]], repeats: int, loop_s: float) -> Table:
    lines = []
    for rows, width in shapes:
        record = make_record(make_manifest("wire", rows=rows, width=width, batches=1), 0, "avgpool")
        encoder = Encoder()
        buffer = encoder.encode(record).copy()
        room = np.empty_like(buffer)
        value = buffer.tobytes()  # what a Kafka client gives
        runs = in_turn(
            {
                "copy": _loop(partial(np.copyto, room, buffer), loop_s),
                "encode": _loop(partial(encoder.encode, record), loop_s),
                "decode": _loop(partial(decode, value), loop_s),
            },
            repeats,
        )
        lines.append(
            (
                f"{rows} x {width} float16, ids, labels",
                f"{len(value):,}",
                *(f"{1e6 / rate(runs, name):.1f}" for name in ("copy", "encode", "decode")),
                *(str(ratio(runs, "copy", name)) for name in ("encode", "decode")),
                *(f"{len(value) * rate(runs, name) / 1e9:.1f}" for name in ("encode", "decode")),
            )
        )
    header = (
        "record", "bytes", "copy us", "encode us", "decode us", "encode / copy", "decode / copy",
        "encode GB/s", "decode GB/s",
    )  # fmt: skip
    return Table(header, lines)


def _loop(work: Callable[[], object], loop_s: float) -> Callable[[], Run]:
    """Return a measurement of how often in a second of this thread's time ``work`` can be done."""
    began = time.thread_time()
    work()
    loops = max(1, int(loop_s / max(time.thread_time() - began, 1e-6)))

    def measure() -> Run:
        began = time.thread_time()
        for _ in range(loops):
            work()
        once_s = (time.thread_time() - began) / loops
        return Run(1 / once_s, once_s)

    return measure
