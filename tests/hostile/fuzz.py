"""Coverage-guided fuzzing of everything that decodes what comes from a topic: ``python -m tests.hostile.fuzz``.

atheris (libFuzzer) starts from the golden messages and the hostile corpus and looks for inputs that reach new code. The
invariant is that of the corpus: a RecordError that people can read, or a true value, which survives the way back to
bytes; no other exception, no hang, no memory beyond a bound. An input that breaks it is written to a file and ends the
run with an error; put it into the corpus.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NoReturn

import atheris
import msgpack
import numpy as np
from numpy.typing import NDArray

with atheris.instrument_imports(include=["featurestream.wire", "featurestream.record", "featurestream.identity"]):
    from featurestream.wire import decode, encode, open_record, parse_headers

from featurestream.errors import RecordError
from featurestream.identity import Identity
from featurestream.manifest import Manifest, from_json, to_json
from featurestream.record import Record
from featurestream.testing import hostile_headers, hostile_values, same_record, seal
from tests.support import make_manifest, open_expected

GOLDEN: Final = Path(__file__).parents[2] / "schemas" / "golden" / "feature-record-v1"
USUAL: Final = decode((GOLDEN / "float16-map.msgpack").read_bytes())
RSS_MB: Final = 1024
INPUT_S: Final = 10
LONGEST: Final = 8192
VALUE, HEADER, HEADERS, JSON = range(4)
NAMES: Final = {
    VALUE: "a value, as it is",
    HEADER: "a header and a payload, under a right checksum",
    HEADERS: "record headers",
    JSON: "a manifest's JSON",
}


class Fuzzer:
    """Takes inputs, counts what became of them, and prints the counts when there were so many.

    An input's first byte says what the rest is: see :data:`NAMES`.
    """

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._began = time.monotonic()
        self.count = 0
        self.outcomes: Counter[tuple[int, str]] = Counter()
        self.messages: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """Decode one input; raise whatever is not an outcome that may be."""
        kind = data[0] % len(NAMES) if data else VALUE
        try:
            self._decode(kind, data[1:])
            outcome = "a true value"
        except RecordError as error:
            if len(str(error)) >= 1000:
                raise AssertionError("a message that nobody can read") from error
            self.messages.add(re.sub(r'"[^"]*"|[0-9a-f]*\d[0-9a-f]*', "*", error.message)[:60])
            outcome = "refused"
        self.outcomes[kind, outcome] += 1
        self.count += 1
        if self.count == self._runs:
            print(self.report(), flush=True)

    def report(self) -> str:
        """Return the counts as lines."""
        lines = [
            f"fuzz: {self.count:,} inputs in {time.monotonic() - self._began:,.0f} s, "
            f"{len(self.messages)} kinds of refusals, no crash"
        ]
        lines += [
            f"  {NAMES[kind]}: {outcome} {count:,} times" for (kind, outcome), count in sorted(self.outcomes.items())
        ]
        return "\n".join(lines)

    def _decode(self, kind: int, data: bytes) -> None:
        if kind == VALUE:
            check(data)
        elif kind == HEADER:
            length = int.from_bytes(data[:2], "big")
            check(seal(data[2 : 2 + length], data[2 + length :]))
        elif kind == HEADERS:
            parse_headers(unpacked_headers(data))
        else:
            manifest = from_json(Manifest, data)
            if from_json(Manifest, to_json(manifest)) != manifest:
                raise AssertionError("a manifest that does not survive")


def check(value: bytes) -> Record:
    """Return the record in a value; raise AssertionError where it is not the same read at once, lazily, as expected."""
    surprise = open_expected(value, USUAL)
    record = decode(value)
    if surprise is not None and not (same_rows(surprise, record) and form_of(record) == form_of(USUAL)):
        raise AssertionError("a record that is not what was expected")
    lazy = open_record(value)
    if not same_record(record, lazy) or record.numpy().shape != (record.rows, *record.shape):
        raise AssertionError("a record that is two things")
    opened = open_expected(value, record)
    if opened is not None and (record.missing or not same_rows(opened, record)):
        raise AssertionError("a record that is another where it is expected")
    if not record.extra and not same_record(decode(encode(record)), record):
        raise AssertionError("a record that does not survive")
    return record


def form_of(record: Record) -> tuple[object, ...]:
    """Return what a reader expects of a record."""
    return (
        record.stream, record.fingerprint, record.tap, record.pass_number, record.batch, record.views, record.rows,
        record.dtype, record.shape, record.missing,
    )  # fmt: skip


def same_rows(opened: tuple[Identity, NDArray[np.uint8]], record: Record) -> bool:
    """Tell whether rows and their identity are those of a record."""
    identity, numbers = opened
    return identity.same(record.identity) and numbers.tobytes() == record.payload.tobytes()


def packed_headers(headers: tuple[tuple[str, Any], ...]) -> bytes:
    """Return record headers as bytes: for each its name and its value, both with their lengths; FFFF for null."""
    out = b""
    for name, value in headers:
        text = value if isinstance(value, bytes) else b""
        out += struct.pack(">BH", len(name), 0xFFFF if value is None else len(text)) + name.encode() + text
    return out


def unpacked_headers(data: bytes) -> list[tuple[str, Any]]:
    """Return the record headers that bytes stand for, whatever they are."""
    headers: list[tuple[str, Any]] = []
    while len(data) >= 3 and len(headers) < 64:
        name, value = struct.unpack_from(">BH", data)
        data = data[3:]
        text = data[:name].decode("utf-8", "replace")
        data = data[name:]
        if value == 0xFFFF:
            headers.append((text, None))
        else:
            headers.append((text, data[:value]))
            data = data[value:]
    return headers


def seeds() -> list[bytes]:
    """Return what fuzzing starts from: the golden messages, the hostile corpus, a manifest."""
    values = [path.read_bytes() for path in sorted(GOLDEN.glob("*.msgpack"))]
    found = [bytes([VALUE]) + value for value in values]
    for value in values:
        _, _, header, payload = msgpack.unpackb(value)
        found.append(bytes([HEADER]) + struct.pack(">H", len(header)) + header + payload)
    for hostile in hostile_values():
        found.append(bytes([VALUE]) + hostile.value)
        if hostile.value[:3] == b"\x94\x01\xcf" and hostile.value[11:12] == b"\xc6":
            (length,) = struct.unpack_from(">I", hostile.value, 12)
            if length < 0xFFFF:
                body = hostile.value[16 : 16 + length] + hostile.value[21 + length :]
                found.append(bytes([HEADER]) + struct.pack(">H", length) + body)
    found += [bytes([HEADERS]) + packed_headers(hostile.headers) for hostile in hostile_headers()]
    found.append(bytes([JSON]) + to_json(make_manifest()))
    return [seed for seed in found if len(seed) <= LONGEST]


def main() -> int:
    """Fuzz as long as the arguments say, in a process that libFuzzer ends; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs; default: a million")
    parser.add_argument("--seed", type=int, default=1, help="what mutations are drawn from")
    parser.add_argument("--artifacts", type=Path, default=Path.cwd(), help="where an input that fails is written")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.corpus is not None:
        fuzz(options)
    with tempfile.TemporaryDirectory(prefix="featurestream-fuzz-") as corpus:
        for number, seed in enumerate(seeds()):
            Path(corpus, f"{number:04}").write_bytes(seed)
        words = [sys.executable, "-m", "tests.hostile.fuzz", *sys.argv[1:], "--corpus", corpus]
        done = subprocess.run(words, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        print(done.stderr[-6000:], file=sys.stderr)
    return done.returncode


def fuzz(options: argparse.Namespace) -> NoReturn:
    """Fuzz from a folder of seeds; the process ends when it is done, or at the first input that fails."""
    atheris.Setup(
        [
            sys.argv[0], str(options.corpus), f"-runs={options.runs}", f"-seed={options.seed}", f"-max_len={LONGEST}",
            f"-timeout={INPUT_S}", f"-rss_limit_mb={RSS_MB}", f"-artifact_prefix={options.artifacts}/",
            "-print_final_stats=0", "-verbosity=0", "-detect_leaks=0",
        ],
        Fuzzer(options.runs),
    )  # fmt: skip
    atheris.Fuzz()
    raise AssertionError("libFuzzer ends the process")


if __name__ == "__main__":
    sys.exit(main())
