"""Whether what a lane holds is what the manifest says, and what comes next."""

from __future__ import annotations

from typing import Final

from featurestream.errors import FingerprintError, HoleError, RecordError
from featurestream.manifest import Manifest
from featurestream.ports import LogRecord
from featurestream.record import Record
from featurestream.wire import ExpectedBatch, ExpectedPass, RecordHeaders

_AGREED: Final = ("fingerprint", "pass", "dtype", "shape", "views", "samples")


class Agreement:
    """What a manifest says of every record of one tap.

    What a batch holds is arithmetic: its pass, and how many samples have rows or are missing; of requests at most so
    many.
    """

    def __init__(self, manifest: Manifest, tap: str) -> None:
        self._layout = manifest.layout
        self._fingerprint = manifest.fingerprint
        self._dtype = manifest.dtype
        self._shape = tuple(manifest.tap(tap).shape)
        self._views = manifest.views
        self._at_most = manifest.kind is not None

    def check(self, record: Record) -> None:
        """Raise RecordError where a record of this tap is not what the manifest says."""
        layout = self._layout
        held = record.rows // record.views + len(record.missing)
        samples = layout.samples_of(record.batch)
        if self._at_most:
            samples = min(held, samples)
        found = (record.fingerprint, record.pass_number, record.dtype, record.shape, record.views, held)
        pass_number = layout.pass_of(record.batch)
        expected = (self._fingerprint, pass_number, self._dtype, self._shape, self._views, samples)
        if found == expected:
            return
        for what, one, other in zip(_AGREED, found, expected, strict=True):
            if one != other:
                raise RecordError(
                    f"batch {record.batch} of tap {record.tap} says {what} {one}, by the manifest it is {other}",
                    hint="another program may have written to this topic",
                )


class Expectations:
    """What a manifest says of the batches that come: of the one that was asked for last, it is known already."""

    def __init__(self, manifest: Manifest) -> None:
        self._layout = manifest.layout
        self._common = manifest.fingerprint, manifest.views, manifest.dtype
        self._passes: dict[tuple[int, int], ExpectedPass] = {}  # by pass and rows: one
        self._last: ExpectedBatch | None = None

    def of(self, number: int) -> ExpectedBatch:
        """Return what a batch holds from which no sample is missing."""
        if self._last is None or self._last.number != number:
            key = self._layout.pass_of(number), self._layout.rows_of(number)
            if key not in self._passes:
                self._passes = {key: ExpectedPass(*self._common, *key)}
            self._last = self._passes[key].batch(number)
        return self._last


def check_follows(raw: LogRecord, headers: RecordHeaders, manifest: Manifest, expected: int) -> None:
    """Raise FingerprintError for a record of another stream, HoleError for one of a later batch than ``expected``.

    One of an earlier batch is a duplicate, which may follow at any time.
    """
    if headers.fingerprint != manifest.fingerprint:
        raise FingerprintError(
            f"record at {raw.topic}, lane {raw.lane}, offset {raw.offset} belongs to fingerprint "
            f'{headers.fingerprint}, but stream "{manifest.stream}" has {manifest.fingerprint}',
            hint="another stream was written to this topic; publish under a new name",
        )
    if headers.batch > expected:
        raise HoleError(
            f"batch {expected} is missing from {raw.topic}, lane {raw.lane}: "
            f"offset {raw.offset} holds batch {headers.batch}",
            hint="the log has lost records; read around it, by where you start and stop, or publish anew",
            batch=expected,
        )
