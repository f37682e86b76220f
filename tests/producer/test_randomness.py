"""Somebody else's random code draws what its seed says, and leaves no trace in the global generators."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from featurestream_producer.randomness import kept_globals, seeded_globals


def draw() -> tuple[float, float, float]:
    return float(torch.rand(1)), float(np.random.randn()), random.random()


def states() -> tuple[object, ...]:
    name, keys, place, has_gauss, gauss = np.random.get_state()
    return torch.get_rng_state().tolist(), (name, keys.tolist(), place, has_gauss, gauss), random.getstate()


def drawn(seed: int) -> tuple[float, float, float]:
    with seeded_globals(seed):
        return draw()


def test_what_is_drawn_follows_from_the_seed_whether_or_not_states_are_kept_around_it() -> None:
    alone = [drawn(seed) for seed in (1, 2**63 - 1, 1)]
    assert alone[0] == alone[2] != alone[1]
    with kept_globals():
        assert [drawn(seed) for seed in (1, 2**63 - 1, 1)] == alone


@pytest.mark.parametrize("odd", [0, 1])  # NumPy makes two normal numbers at a time, and keeps the second
def test_the_generators_are_left_as_they_were(odd: int) -> None:
    for _ in range(odd):
        np.random.randn()
    before = states()
    drawn(3)
    assert states() == before
    with kept_globals():
        assert states() == before
        drawn(3)
        drawn(4)
    assert states() == before


def test_they_come_back_after_an_exception_too() -> None:
    before = states()
    with pytest.raises(ZeroDivisionError), kept_globals(), seeded_globals(3):
        raise ZeroDivisionError
    assert states() == before
    assert drawn(1) == drawn(1)
    assert states() == before


def test_a_second_thread_waits_until_the_first_has_put_the_states_back() -> None:
    entered, seen = threading.Event(), []

    def other() -> None:
        entered.set()
        seen.append(drawn(5))

    thread = threading.Thread(target=other)
    with kept_globals():
        mine = drawn(5)
        thread.start()
        entered.wait(30)
        again = [drawn(5) for _ in range(200)]
        assert seen == []
    thread.join(30)
    assert seen == [mine]
    assert set(again) == {mine}
