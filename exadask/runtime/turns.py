"""Bundles that stand ready on this node, until the one before them is over."""

from __future__ import annotations

import asyncio


class Turns:
    """Who waits for whose end; keys are those of the bundles' tasks."""

    def __init__(self) -> None:
        self._woken: dict[str, asyncio.Future[None]] = {}
        self._heirs: dict[str, str] = {}

    async def wait(self, heir: str, before: str, patience_s: float) -> None:
        """Wait until the bundle before is over, somebody wakes the heir, or patience ends [s]."""
        loop = asyncio.get_running_loop()
        woken = self._woken[heir] = loop.create_future()
        self._heirs[before] = heir
        timer = loop.call_later(patience_s, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()
            del self._woken[heir], self._heirs[before]

    def heir_of(self, before: str) -> str | None:
        """Name the bundle that waits for the end of another."""
        return self._heirs.get(before)

    def wake(self, heir: str | None) -> None:
        """Let a bundle look again whether its turn has come; nothing happens if none waits."""
        if heir in self._woken:
            _wake(self._woken[heir])


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
