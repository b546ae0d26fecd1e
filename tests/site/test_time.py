"""Time as a resource: what cannot end in time is not started, and successors come in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import exadask as xd

PoolMaker = Callable[..., xd.Pool]


def nap(index: int, seconds: float) -> int:
    time.sleep(seconds)
    return index


@pytest.mark.timeout(400)
def test_stated_times_are_kept_across_successors(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    """Two allocations of a minute at a time; 30 tasks of 20 seconds on 4 cores each."""
    with xd.Executor(pools=[pool("cpu", walltime="60s", max_allocations=2)]) as ex:
        futures = [ex.options(time="20s").submit(nap, index, 15) for index in range(30)]
        assert [one.result(300) for one in futures] == list(range(30))
        assert [one.attempts for one in futures] == [1] * 30, "a task was cut off"
        assert len({one.node for one in futures}) >= 3


@pytest.mark.timeout(400)
def test_what_is_cut_off_comes_back_uncounted(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    """Four at a time and 45 seconds each: the second four are cut off at the end of the minute."""
    with xd.Executor(pools=[pool("cpu", walltime="60s")], lead_s="1s") as ex:
        futures = [ex.submit(nap, index, 45) for index in range(8)]
        assert [one.result(300) for one in futures] == list(range(8))


def test_a_task_that_no_allocation_is_long_enough_for(
    slurm: Any, runs: Path, pool: PoolMaker
) -> None:
    with xd.Executor(pools=[pool("cpu", walltime="60s")]) as ex:
        with pytest.raises(xd.errors.ImpossibleRequest, match="1m"):
            ex.options(time="2h").submit(nap, 0, 1)
        assert slurm.jobs() == []
