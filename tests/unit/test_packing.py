"""How well work is packed, against schedules that know all durations in advance."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from exadask.core.ledger import NodeId, ShareId, TaskId
from exadask.core.placement import Placement, WaitingTask
from exadask.resources import NodeShape, Resources

N_TASKS = 240
CORES_PER_NODE = 4


class Work(NamedTuple):
    """A task as only the simulation knows it."""

    cores: int
    duration_s: float


def mixed(seed: int) -> list[Work]:
    rng = random.Random(seed)
    return [Work(rng.choice((1, 2, 4)), rng.uniform(0.2, 0.8)) for _ in range(N_TASKS)]


def alternating(seed: int) -> list[Work]:
    rng = random.Random(seed)
    return [Work((3, 1)[index % 2], rng.uniform(0.2, 0.8)) for index in range(N_TASKS)]


def simulate(work: Sequence[Work], joins_s: Sequence[float], *, reserve_after_s: float) -> float:
    """Run tasks through the placement with a simulated clock; return the makespan [s]."""
    core = Placement(reserve_after_s=reserve_after_s)
    for index, one in enumerate(work):
        request = Resources(cores=one.cores)
        core.submit(WaitingTask(task=TaskId(str(index)), request=request, priority=(0, index)), 0.0)
    ends: list[tuple[float, ShareId]] = []
    joins = sorted(joins_s)
    now = 0.0
    while core.n_waiting or ends:
        times = [time_s for time_s in (*joins[:1], core.next_deadline()) if time_s is not None]
        now = max(now, min([*times, *(end for end, _ in ends[:1])]))
        while joins and joins[0] <= now:
            name = NodeId(f"node-{len(core.nodes)}")
            core.add_node(name, NodeShape.declare(cores=CORES_PER_NODE))
            joins.pop(0)
        while ends and ends[0][0] <= now:
            core.release(heapq.heappop(ends)[1])
        for command in core.dispatch(now):
            duration_s = work[int(command.share.task)].duration_s
            heapq.heappush(ends, (now + duration_s, command.share.share_id))
    core.check()
    return now


def list_schedule(work: Sequence[Work], joins_s: Sequence[float]) -> float:
    """Place tasks in the given order whenever they fit (best fit); return the makespan [s]."""
    free, waiting, now = [0] * len(joins_s), list(work), 0.0
    events = [(time_s, node, CORES_PER_NODE) for node, time_s in enumerate(joins_s)]
    heapq.heapify(events)
    while events:
        now = events[0][0]
        while events and events[0][0] <= now:
            _, node, cores = heapq.heappop(events)
            free[node] += cores
        left = []
        for one in waiting:
            fitting = [node for node, cores in enumerate(free) if cores >= one.cores]
            if not fitting:
                left.append(one)
                continue
            node = min(fitting, key=free.__getitem__)
            free[node] -= one.cores
            heapq.heappush(events, (now + one.duration_s, node, one.cores))
        waiting = left
    return now


def best_offline(work: Sequence[Work], joins_s: Sequence[float]) -> float:
    orders: list[Callable[[Work], tuple[float, ...]]] = [
        lambda one: (-one.duration_s,),
        lambda one: (-one.cores, -one.duration_s),
        lambda one: (-one.cores * one.duration_s,),
    ]
    return min(list_schedule(sorted(work, key=order), joins_s) for order in orders)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("reserve_after_s", [1.0, 10.0])
@pytest.mark.parametrize("joins_s", [(0.0,) * 4, (0.0, 0.0, 0.0, 2.0)], ids=["4 nodes", "late 4th"])
@pytest.mark.parametrize("kind", [mixed, alternating])
def test_packing_is_within_five_percent_of_knowing_all_durations(
    kind: Callable[[int], list[Work]],
    joins_s: tuple[float, ...],
    reserve_after_s: float,
    seed: int,
) -> None:
    work = kind(seed)
    assert simulate(work, joins_s, reserve_after_s=reserve_after_s) <= 1.05 * best_offline(
        work, joins_s
    )
