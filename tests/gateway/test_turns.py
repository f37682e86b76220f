"""Turns are given in order, and bytes too, save that a smaller wish passes one for more bytes than there are."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from featurestream_gateway.problems import RefusedError
from featurestream_gateway.turns import Turn, Turns


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run a story in an event loop of its own."""
    asyncio.run(story)


async def holding(turns: Turns, size: int) -> Turn:
    """Return a turn that holds so many bytes."""
    turn = await turns.take()
    await turn.hold(size)
    return turn


def test_who_wants_more_bytes_than_are_free_waits_until_they_are() -> None:
    async def story() -> None:
        turns = Turns(3, "readers", wait_s=20, most_bytes=10)
        first = await holding(turns, 7)
        second = asyncio.create_task(holding(turns, 4))
        await asyncio.sleep(0)
        assert (turns.held_bytes, second.done()) == (7, False)
        first.keep(6)
        assert (await second, turns.held_bytes)[1] == 10
        first.end()
        first.end()
        assert (turns.held_bytes, turns.taken) == (4, 1)

    run(story())


def test_a_smaller_wish_passes_a_larger_one_that_waits() -> None:
    async def story() -> None:
        turns = Turns(4, "readers", wait_s=20, most_bytes=10)
        first = await holding(turns, 6)
        large, small = asyncio.create_task(holding(turns, 10)), asyncio.create_task(holding(turns, 4))
        await small
        assert not large.done()
        (await small).end()
        first.end()
        assert (await large, turns.held_bytes)[1] == 10

    run(story())


def test_who_waits_too_long_is_refused_and_holds_nothing() -> None:
    async def story() -> None:
        turns = Turns(2, "readers", wait_s=0.01, most_bytes=10 * 2**20)
        first = await holding(turns, 9 * 2**20)
        second = await turns.take()
        with pytest.raises(RefusedError, match=r"hold 9.0 of the 10.0 MiB .* may take 2.0") as refused:
            await second.hold(2 * 2**20)
        assert refused.value.problem == "busy"
        first.end()
        assert turns.held_bytes == 0

    run(story())


def test_who_goes_away_while_he_waits_holds_nothing() -> None:
    async def story() -> None:
        turns = Turns(3, "readers", wait_s=20, most_bytes=10)
        first = await holding(turns, 10)
        waiting, gone = asyncio.create_task(holding(turns, 10)), asyncio.create_task(holding(turns, 10))
        await asyncio.sleep(0)
        gone.cancel()
        waiting.cancel()
        first.end()  # in the same moment
        await asyncio.wait([waiting, gone])
        assert turns.held_bytes == 0

    run(story())


def test_who_goes_away_when_he_was_just_given_bytes_gives_them_back() -> None:
    async def story() -> None:
        turns = Turns(2, "readers", wait_s=20, most_bytes=10)
        first = await holding(turns, 10)
        second = await turns.take()
        waiting = asyncio.create_task(second.hold(10))
        await asyncio.sleep(0)
        first.end()
        waiting.cancel()
        await asyncio.wait([waiting])
        second.end()
        assert turns.held_bytes == 0

    run(story())


def test_a_wish_for_more_than_there_is_at_all_is_one_for_all() -> None:
    async def story() -> None:
        turns = Turns(1, "readers", wait_s=20, most_bytes=10)
        await holding(turns, 1000)
        assert turns.held_bytes == 10

    run(story())
