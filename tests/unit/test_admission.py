"""Nobody enters while someone else holds what was granted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from exadask.runtime.admission import Admission, Grant

Scenario = Callable[[Admission], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> None:
    async def run() -> None:
        await asyncio.wait_for(scenario(Admission()), timeout=10)

    asyncio.run(run())


async def is_waiting(entering: asyncio.Task[None]) -> bool:
    """Let everything run that can, and look."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not entering.done()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Grant(1, (0, 1)), Grant(2, (2, 3))),
        (Grant(1, ()), Grant(2, ())),
        (Grant(1, (0,), {"0": 1000}), Grant(2, (1,), {"1": 1000})),
        (Grant(1, (0,), {"0": 500}), Grant(2, (1,), {"0": 500})),
        (Grant(1, (0,), {"0": 250}), Grant(2, (1,), {"0": 750})),
    ],
)
def test_what_is_apart_enters_at_once(first: Grant, second: Grant) -> None:
    async def scenario(admission: Admission) -> None:
        await admission.enter(first)
        entering = asyncio.ensure_future(admission.enter(second))
        assert not await is_waiting(entering)

    play(scenario)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Grant(1, (0, 1)), Grant(2, (1, 2))),
        (Grant(1, (0,)), Grant(2, (0,))),
        (Grant(1, (0,), {"0": 1000}), Grant(2, (1,), {"0": 1000})),
        (Grant(1, (0,), {"0": 500}), Grant(2, (1,), {"0": 501})),
        (Grant(1, (0,), {"0": 1, "1": 1000}), Grant(2, (1,), {"0": 999, "1": 1})),
    ],
)
def test_what_overlaps_waits_until_the_other_leaves(first: Grant, second: Grant) -> None:
    async def scenario(admission: Admission) -> None:
        await admission.enter(first)
        entering = asyncio.ensure_future(admission.enter(second))
        assert await is_waiting(entering)
        admission.leave(first.share)
        await entering

    play(scenario)


def test_all_who_hold_a_part_must_leave() -> None:
    async def scenario(admission: Admission) -> None:
        await admission.enter(Grant(1, (0,)))
        await admission.enter(Grant(2, (1,)))
        entering = asyncio.ensure_future(admission.enter(Grant(3, (0, 1))))
        admission.leave(1)
        assert await is_waiting(entering)
        admission.leave(2)
        await entering

    play(scenario)


def test_of_several_who_wait_only_those_that_fit_enter() -> None:
    async def scenario(admission: Admission) -> None:
        await admission.enter(Grant(1, (0, 1)))
        both = asyncio.ensure_future(admission.enter(Grant(2, (0, 1))))
        one = asyncio.ensure_future(admission.enter(Grant(3, (1, 2))))
        assert await is_waiting(both)
        assert await is_waiting(one)
        admission.leave(1)
        await both
        assert await is_waiting(one)
        admission.leave(2)
        await one

    play(scenario)


def test_many_who_wait_for_the_same_core_enter_one_by_one() -> None:
    async def scenario(admission: Admission) -> None:
        inside, most = 0, 0

        async def work(share: int) -> None:
            nonlocal inside, most
            await admission.enter(Grant(share, (0,)))
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            admission.leave(share)

        await asyncio.gather(*(work(share) for share in range(20)))
        assert most == 1

    play(scenario)


def test_who_is_cancelled_while_waiting_holds_nothing() -> None:
    async def scenario(admission: Admission) -> None:
        await admission.enter(Grant(1, (0,)))
        entering = asyncio.ensure_future(admission.enter(Grant(2, (0,))))
        assert await is_waiting(entering)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        admission.leave(1)
        await admission.enter(Grant(3, (0,)))

    play(scenario)


def test_leaving_twice_or_unknown_does_nothing() -> None:
    async def scenario(admission: Admission) -> None:
        admission.leave(7)
        await admission.enter(Grant(1, (0,)))
        admission.leave(1)
        admission.leave(1)
        await admission.enter(Grant(2, (0,)))

    play(scenario)


def test_news_of_a_share_reaches_who_expects_it() -> None:
    async def scenario(admission: Admission) -> None:
        expected, other = admission.expect(1), admission.expect(2)
        admission.announce(1, {"cores": [3]})
        assert await expected == {"cores": [3]}
        assert not other.done()

    play(scenario)


def test_news_that_nobody_expects_is_dropped() -> None:
    async def scenario(admission: Admission) -> None:
        admission.announce(1, {"cores": []})
        expected = admission.expect(2)
        expected.cancel()
        admission.announce(2, {"cores": []})
        admission.announce(2, {"cores": []})

    play(scenario)
