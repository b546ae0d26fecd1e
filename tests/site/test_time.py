"""Time as a resource: what cannot end in time is not started, and successors come in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import exadask as xd

PoolMaker = Callable[..., xd.Pool]


def nap(index: int, seconds: float) -> int:
    time.sleep(seconds)
    return index


def across_successors(pool: xd.Pool) -> list[int]:
    """Run 30 tasks of 20 seconds, stated; give how often each was started."""
    with xd.Executor(pools=[pool]) as ex:
        futures = [ex.options(time="20s").submit(nap, index, 15) for index in range(30)]
        assert [one.result(300) for one in futures] == list(range(30))
        assert len({one.node for one in futures}) >= 3
        return [one.attempts for one in futures]


def cut_off(pool: xd.Pool) -> list[int]:
    """Run eight tasks of 45 seconds, four at a time: the minute ends in the second four."""
    with xd.Executor(pools=[pool], lead_s="1s") as ex:
        futures = [ex.options(cores=2).submit(nap, index, 45) for index in range(8)]
        return [one.result(300) for one in futures]


@pytest.mark.timeout(500)
def test_allocations_of_a_minute(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    """Stated times are kept across successors; what is cut off comes back. Both at once."""
    with ThreadPoolExecutor(2) as threads:
        stated = threads.submit(across_successors, pool("cpu", walltime="60s", max_allocations=2))
        unstated = threads.submit(cut_off, pool("gpu", cores=8, walltime="60s"))
        assert unstated.result() == list(range(8))
        assert stated.result() == [1] * 30, "a task was cut off"


def test_a_task_that_no_allocation_is_long_enough_for(
    slurm: Any, runs: Path, pool: PoolMaker
) -> None:
    with xd.Executor(pools=[pool("cpu", walltime="60s")]) as ex:
        with pytest.raises(xd.errors.ImpossibleRequest, match="1m"):
            ex.options(time="2h").submit(nap, 0, 1)
        assert slurm.jobs() == []
