"""List schedules that know all durations: what a scheduler that does not could hope for at best."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A task: its cores, and how long it takes [s]."""

    cores: int
    seconds: float


_ORDERS: tuple[Callable[[Item], tuple[float, ...]], ...] = (
    lambda item: (-item.cores * item.seconds,),
    lambda item: (-item.cores, -item.seconds),
    lambda item: (-item.seconds, -item.cores),
)


def best_makespan(items: Sequence[Item], nodes: Sequence[tuple[float, int]]) -> float:
    """Give the shortest makespan of several list schedules [s].

    Parameters
    ----------
    items : sequence of Item
        What must run, each on one node.
    nodes : sequence of (float, int)
        For each node when it joins [s] and its cores.
    """
    return min(
        list_makespan(sorted(items, key=order), nodes, tight=tight)
        for order in _ORDERS
        for tight in (False, True)
    )


def list_makespan(
    items: Sequence[Item], nodes: Sequence[tuple[float, int]], *, tight: bool
) -> float:
    """Start at every moment, in the order of the list, whatever fits.

    Parameters
    ----------
    items : sequence of Item
        In the order of preference.
    nodes : sequence of (float, int)
        For each node when it joins [s] and its cores.
    tight : bool
        Whether the fullest node that fits is preferred, else the emptiest.
    """
    waiting, free, now = list(items), [0] * len(nodes), 0.0
    events = [(join, index, cores) for index, (join, cores) in enumerate(nodes)]
    heapq.heapify(events)
    while events:
        now, index, cores = heapq.heappop(events)
        free[index] += cores
        if events and events[0][0] == now:
            continue
        left = []
        for item in waiting:
            room = [one for one, idle in enumerate(free) if idle >= item.cores]
            if not room:
                left.append(item)
                continue
            node = (min if tight else max)(room, key=free.__getitem__)
            free[node] -= item.cores
            heapq.heappush(events, (now + item.seconds, node, item.cores))
        waiting = left
    return now
