"""Whether what a lane holds is what the manifest says, and what comes next."""

from __future__ import annotations

from typing import Final

from featurestream.errors import FingerprintError, HoleError, RecordError
from featurestream.manifest import Manifest
from featurestream.ports import LogRecord
from featurestream.record import Record
from featurestream.wire import RecordHeaders

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
        held = record.identity.rows // record.views + len(record.missing)
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
