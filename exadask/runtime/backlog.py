"""What waits: in the scheduler, and at the clients that have not sent it yet."""

from __future__ import annotations

from dataclasses import replace
from types import NoneType
from typing import Any

from exadask.core.events import Demand
from exadask.core.placement import Placement
from exadask.runtime.task_record import request_of

_END_OF_COUNTS = 2**40


class Backlog:
    """Counts what waits, by what it needs.

    Parameters
    ----------
    placement : Placement
        Has the queue.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._unsent: dict[str, list[Demand]] = {}

    def note(self, client: str, lanes: list[list[Any]]) -> list[list[int]]:
        """Note what a client has not sent.

        Parameters
        ----------
        client : str
            The client.
        lanes : list of [int, str or None, int, dict]
            For each of its lanes: a number, the pool, how many tasks wait, and what each asks for.

        Returns
        -------
        list of [int, int]
            For each lane its number, and how many of its tasks the nodes could run at once.

        Raises
        ------
        Exception
            The lanes make no sense; nothing is noted of them.
        """
        demands, slots = [], []
        for number, pool, count, wish in lanes:
            request = request_of(wish)
            if not isinstance(pool, (str, NoneType)) or not 0 <= int(count) < _END_OF_COUNTS:
                raise ValueError(f"{count!r} tasks for the pool {pool!r} cannot wait")
            demands.append(Demand(request=request, pool=pool, count=int(count)))
            slots.append([number, self._placement.capacity(request, pool)])
        self._unsent[client] = demands
        return slots

    def forget(self, client: str) -> None:
        """Forget what a client that has gone had not sent."""
        self._unsent.pop(client, None)

    def demand(self) -> list[Demand]:
        """Count all that waits, by what it needs."""
        counts: dict[Demand, int] = {}
        unsent = [one for demands in self._unsent.values() for one in demands]
        for one in (*self._placement.demand(), *unsent):
            key = replace(one, count=0)
            counts[key] = counts.get(key, 0) + one.count
        return [replace(key, count=count) for key, count in counts.items()]
