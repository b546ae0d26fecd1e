"""The last guard of a node: a task enters only when its cores and GPUs are really free.

The scheduler's books may run ahead of the node: a task that was cancelled still runs here while
its share is already promised.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from exadask.resources import GPU_UNIT
from exadask.runtime.background import Background


@dataclass(frozen=True, slots=True)
class Grant:
    """What a task may use here: core ids, and thousandths of GPUs by their ids."""

    share: int
    cores: tuple[int, ...]
    gpus: dict[str, int] = field(default_factory=dict)


class Admission:
    """Who is inside, and what they hold."""

    def __init__(self) -> None:
        self._inside: dict[int, Grant] = {}
        self._left = asyncio.Condition()
        self._expected: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._background = Background()

    async def enter(self, grant: Grant) -> None:
        """Wait until nobody holds what is granted, and hold it."""
        if not self._is_free(grant):
            async with self._left:
                await self._left.wait_for(lambda: self._is_free(grant))
        self._inside[grant.share] = grant

    def is_inside(self, share: int) -> bool:
        """Whether what a share grants is held."""
        return share in self._inside

    def leave(self, share: int) -> None:
        """Hold no longer what a share granted."""
        if self._inside.pop(share, None) is not None:
            self._background.start(self._notify())

    def expect(self, share: int) -> asyncio.Future[dict[str, Any]]:
        """Prepare for the news that a lent share is granted again."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._expected[share] = future
        return future

    def announce(self, share: int, news: dict[str, Any]) -> None:
        """Deliver that news."""
        future = self._expected.pop(share, None)
        if future is not None and not future.done():
            future.set_result(news)

    async def _notify(self) -> None:
        async with self._left:
            self._left.notify_all()

    def _is_free(self, grant: Grant) -> bool:
        wanted = set(grant.cores)
        used = dict.fromkeys(grant.gpus, 0)
        for inside in self._inside.values():
            if not wanted.isdisjoint(inside.cores):
                return False
            for gpu, units in inside.gpus.items():
                if gpu in used:
                    used[gpu] += units
        return all(used[gpu] + units <= GPU_UNIT for gpu, units in grant.gpus.items())
