"""A few rows of each batch carry the checksum of what was fed to the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from featurestream.errors import RecordError
from featurestream.memory import MemoryLog
from featurestream.testing import make_record
from featurestream.wire import decode, encode
from featurestream_producer.inputs import (
    INPUTS_BYTES,
    INPUTS_KEY,
    carried_checksums,
    input_checksum,
    input_checksums,
    sampled_rows,
    to_extra,
)
from featurestream_producer.run import produce
from tests.producing import config, manifest_of, read_lanes, write_images


def test_the_first_row_and_one_by_the_batchs_number_are_sampled() -> None:
    assert sampled_rows(5, 0) == ()
    assert sampled_rows(5, 1) == (0,)
    assert sampled_rows(5, 2) == (0, 1)
    assert sampled_rows(0, 256) == (0, 1 + xxhash.xxh3_64_intdigest(bytes(8)) % 255)
    assert sampled_rows(258, 256) == (0, 1 + xxhash.xxh3_64_intdigest(b"\x02\x01" + bytes(6)) % 255)
    chosen = {sampled_rows(batch, 16)[1] for batch in range(200)}
    assert chosen == set(range(1, 16))


def test_the_checksum_is_that_of_the_numbers_wherever_they_lie() -> None:
    image_CHW = torch.arange(2 * 3 * 2, dtype=torch.float32).reshape(2, 3, 2)
    numbers = np.arange(12, dtype="<f4")
    assert input_checksum(image_CHW) == xxhash.xxh3_64_hexdigest(numbers.tobytes())
    channels_last = image_CHW.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not channels_last.is_contiguous()
    assert input_checksum(channels_last) == input_checksum(image_CHW)
    assert input_checksum(image_CHW + 1) != input_checksum(image_CHW)


def test_what_a_record_carries_comes_back_and_takes_no_more_than_was_planned() -> None:
    images_BCHW = torch.zeros(4, 3, 2, 2)
    checksums = input_checksums(3, images_BCHW)
    plain, carrying = make_record(3), make_record(3, extra=to_extra(checksums))
    assert carried_checksums(decode(encode(carrying))) == dict(checksums)
    assert carried_checksums(plain) == {}
    most = to_extra([(2**32 - 1, "f" * 16), (2**32 - 2, "f" * 16)])
    assert len(encode(make_record(extra=most))) - len(encode(make_record())) <= INPUTS_BYTES


def test_a_batch_without_rows_carries_nothing() -> None:
    assert to_extra(input_checksums(3, torch.zeros(0, 3, 2, 2))) == {}


@pytest.mark.parametrize(
    "value",
    [
        {"0": "0" * 16}, [[0]], [[0, "0" * 15]], [[0, "g" * 16]], [["0", "0" * 16]], [[4, "0" * 16]], [[-1, "0" * 16]],
        [[True, "0" * 16]], [[0, 0]], ["0" * 16], None,
    ],
)  # fmt: skip
def test_a_key_that_another_writer_uses_otherwise_is_an_error(value: Any) -> None:
    with pytest.raises(RecordError, match=r"\[row, checksum\]; expected rows below 4 and 16 hexadecimal digits"):
        carried_checksums(make_record(extra={INPUTS_KEY: value}))


def test_every_record_of_a_batch_carries_the_same_checksums(tmp_path: Path) -> None:
    log = MemoryLog()
    produce(config(write_images(tmp_path), "toy", views=2), log, say=[].append)
    carried: dict[int, set[tuple[tuple[int, str], ...]]] = {}
    for records in read_lanes(log, manifest_of(log, "toy")).values():
        for record in records:
            assert tuple(carried_checksums(record)) == sampled_rows(record.batch, record.rows)
            carried.setdefault(record.batch, set()).add(tuple(carried_checksums(record).items()))
    assert sorted(carried) == list(range(12))
    assert all(len(different) == 1 for different in carried.values())
    assert len(set.union(*carried.values())) == 12
