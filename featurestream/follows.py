"""What may come next in a lane, when a batch is waited for or looked up."""

from __future__ import annotations

from featurestream.errors import FingerprintError, HoleError
from featurestream.manifest import Manifest
from featurestream.ports import LogRecord
from featurestream.wire import RecordHeaders


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
