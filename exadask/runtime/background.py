"""Coroutines that nobody awaits, kept alive until they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class Background:
    """Runs coroutines in the background; the event loop alone would forget them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def finish(self) -> None:
        """Wait until all have ended."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("what ran in the background failed", exc_info=task.exception())

    def cancel(self) -> None:
        """Cancel all."""
        for task in self._running:
            task.cancel()
