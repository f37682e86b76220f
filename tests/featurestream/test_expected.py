"""A record that holds what its reader expects is told at once; of all others nothing is said."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestream.identity import MAX_NUMBER
from featurestream.record import ITEM_BYTES
from featurestream.testing import make_record, open_value, seal
from featurestream.wire import ExpectedPass, encode, headers_of
from tests.support import open_expected

INPUTS = {"inputs": [[0, "0" * 16], [2**32 - 1, "f" * 16]]}
NUMBERS = st.sampled_from([0, 1, 127, 128, 255, 256, 2**16 - 1, 2**16, 2**32 - 1, 2**32, MAX_NUMBER])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_what_our_writer_writes_is_expected_and_holds_the_same_rows(data: st.DataObject) -> None:
    views, samples = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 15, 16, 100, 300]))
    record = make_record(
        data.draw(NUMBERS.filter(lambda number: number < 2**40)),  # its samples have larger numbers
        pass_number=data.draw(NUMBERS),
        rows=samples * views,
        views=views,
        dtype=data.draw(st.sampled_from(sorted(ITEM_BYTES))),
        shape=data.draw(st.sampled_from([(), (1,), (17,), (300,), (3, 2, 2), (1,) * 8])),
        labels=data.draw(st.sampled_from(["none", "class", "value", "target"])),
        extra=data.draw(st.sampled_from([{}, INPUTS])),
    )
    opened = open_expected(encode(record), record)
    assert opened is not None
    identity, rows = opened
    assert identity.same(record.identity)
    assert identity.ids == record.ids
    assert rows.shape == (record.rows, record.row_bytes)
    assert rows.tobytes() == record.payload.tobytes()
    assert rows.ctypes.data % 16 == 0
    assert not rows.flags.writeable
    batches = ExpectedPass(record.fingerprint, views, record.dtype, record.pass_number, record.rows)
    assert list(batches.batch(record.batch).headers) == headers_of(record)


@pytest.mark.parametrize(
    "other",
    [
        {"stream": "digits"}, {"fingerprint": "0" * 32}, {"tap": "layer4"}, {"pass": 1}, {"batch": 4}, {"views": 1},
        {"rows": 2}, {"dtype": "int64"}, {"shape": [16]}, {"shape": [8, 1]}, {"indices": [0, 1, 2]}, {"ids": ["a"]},
        {"labels": [1, 2, 3]}, {"labels": {"a": 1}}, {"missing": [[7, "lost.png", "broken"]]}, {"extracted_at": -1},
        {"extracted_at": 2**63}, {"extracted_at": 1.5}, {"a later key": 1}, {"must_understand": []},
    ],
    ids=lambda other: ", ".join(f"{key} {value}" for key, value in other.items()),
)  # fmt: skip
@pytest.mark.parametrize("extra", [{}, INPUTS], ids=["plain", "with inputs"])
def test_a_record_that_says_anything_else_is_not(other: dict[str, object], extra: dict[str, object]) -> None:
    record = make_record(3, rows=4, views=2, extra=extra)
    header, payload = open_value(encode(record))
    assert open_expected(_aligned(header, payload), record) is not None
    assert open_expected(_aligned(header | other, payload), record) is None


def test_a_record_whose_keys_stand_in_another_order_is_not() -> None:
    record = make_record(3)
    header, payload = open_value(encode(record))
    backwards = dict(reversed(header.items()))
    assert open_expected(_aligned(backwards, payload), record) is None


def test_a_record_that_has_a_key_twice_and_another_not_at_all_is_not() -> None:
    looked_at = 0
    for letters in range(16):  # one of them puts the numbers where our writer puts them
        record = make_record(3, rows=1, ids=["x" * letters])
        header, payload = open_value(encode(record))
        packed = msgpack.packb(header)
        twice = packed.removesuffix(msgpack.packb("pad") + msgpack.packb(header["pad"]))
        twice += msgpack.packb("extracted_at") + msgpack.packb(header["extracted_at"])
        assert packed[0] == twice[0] == 0x80 + len(header)
        value = seal(twice, payload)
        looked_at += (len(value) - len(payload)) % 16 == 0
        assert open_expected(value, record) is None
    assert looked_at == 1


@pytest.mark.parametrize("extra", [{}, INPUTS], ids=["plain", "with inputs"])
def test_a_record_that_is_damaged_or_cut_off_anywhere_is_not(extra: dict[str, object]) -> None:
    record = make_record(3, rows=2, shape=(2,), extra=extra)
    value = encode(record)
    assert open_expected(value, record) is not None
    for place in range(len(value)):
        assert open_expected(value[:place], record) is None
        for bit in (1, 128):
            changed = bytearray(value)
            changed[place] ^= bit
            assert open_expected(bytes(changed), record) is None
    assert open_expected(value + b"\0", record) is None


def test_numbers_that_lie_at_an_odd_place_are_left_to_who_copies_them() -> None:
    record = make_record(3)
    header, payload = open_value(encode(record))
    shifts = [open_expected(seal(header | {"pad": " " * spaces}, payload), record) is None for spaces in range(16)]
    assert sum(shifts) == 15


def _aligned(header: dict[str, object], payload: bytes) -> bytes:
    """Return a value with this header, padded so that the numbers lie where our writer puts them."""
    values = [seal(header | {"pad": " " * spaces}, payload) for spaces in range(16)]
    return next(value for value in values if (len(value) - len(payload)) % 16 == 0)
