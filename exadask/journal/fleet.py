"""The history of allocations, from looks at how they are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Iterator

from exadask.core.fleet_report import AllocationSummary, FleetSummary
from exadask.errors import RunFolderError
from exadask.journal.journal import open_under
from exadask.journal.lock import RunLock
from exadask.journal.reading import JOURNAL
from exadask.journal.rows import AllocationRow
from exadask.runtime.run_folder import RunFolder

logger = logging.getLogger(__name__)

_LOOK_S, _ANSWER_S = 1.0, 1.0


class FleetHistory:
    """Makes rows of what has changed since the last look."""

    def __init__(self) -> None:
        self._known: dict[str, AllocationRow] = {}

    def rows(self, summary: FleetSummary, now: float) -> Iterator[AllocationRow]:
        """Give the rows of the allocations that are new, or not as they were.

        Parameters
        ----------
        summary : FleetSummary
            How they are.
        now : float
            The time [s since the epoch].
        """
        for pool in summary.pools:
            for one in (*pool.allocations, *pool.ended):
                row = self._row(one, now)
                if row != self._known.get(one.name):
                    self._known[one.name] = row
                    yield row

    def _row(self, one: AllocationSummary, now: float) -> AllocationRow:
        known = self._known.get(one.name)
        asked = known.asked if known is not None else now - one.since_s
        began = known.began if known is not None else None
        ended = known.ended if known is not None else None
        if one.state == "ended" and ended is None:
            ended = now - one.since_s
        if began is None and one.ran_s is not None:
            began = (now if ended is None else ended) - one.ran_s
        cost = None if began is None or ended is None else one.nodes * (ended - began)
        return AllocationRow(
            one.name,
            one.pool,
            one.job_id,
            one.state,
            one.nodes,
            asked,
            began,
            ended,
            cost,
            one.reason,
        )


class FleetWatch:
    """Looks at the allocations now and then, from the journal's thread.

    Parameters
    ----------
    summary : callable
        Says how they are; on the loop, or when that has ended.
    loop : asyncio.AbstractEventLoop
        Owns them.
    """

    def __init__(
        self, summary: Callable[[], FleetSummary], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._summary, self._loop = summary, loop
        self._history = FleetHistory()
        self._next_look_s = 0.0
        self._is_open = True

    def rows(self) -> Iterator[AllocationRow]:
        """Give what has changed, if it is time for a look."""
        if not self._is_open or time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + _LOOK_S

        async def ask() -> FleetSummary:
            return self._summary()

        try:
            asked = asyncio.run_coroutine_threadsafe(ask(), self._loop)
            yield from self._history.rows(asked.result(_ANSWER_S), time.time())
        except (RuntimeError, TimeoutError, concurrent.futures.TimeoutError):
            return  # it is busy, or closes

    def stop(self) -> None:
        """Look no more: the loop ends soon."""
        self._is_open = False

    def last_rows(self) -> Iterator[AllocationRow]:
        """Give what has changed, when all is closed."""
        yield from self._history.rows(self._summary(), time.time())


class FleetJournal:
    """The journal of a scheduler that stands: its allocations; each session has one for its tasks.

    Parameters
    ----------
    run : RunFolder
        Where it is written.
    summary : callable
        Says how the allocations are.
    loop : asyncio.AbstractEventLoop
        Owns them.

    Raises
    ------
    RunFolderError
        It cannot be written, or another process writes there.
    """

    def __init__(
        self,
        run: RunFolder,
        summary: Callable[[], FleetSummary],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._lock = RunLock.of(run.path)
        self._journal = open_under(self._lock, run.path / JOURNAL)
        self._watch = FleetWatch(summary, loop)
        self._journal.on_drain = self._watch.rows

    @classmethod
    def opened(
        cls,
        run: RunFolder,
        summary: Callable[[], FleetSummary],
        loop: asyncio.AbstractEventLoop,
    ) -> FleetJournal | None:
        """Open it; None where it cannot be written: that is no reason not to stand."""
        try:
            return cls(run, summary, loop)
        except RunFolderError as error:
            logger.warning("nothing is written about the allocations: %s", error)
            return None

    def stop(self) -> None:
        """Look no more: the loop ends soon."""
        self._watch.stop()

    def close(self) -> None:
        """Write how it ended."""
        for row in self._watch.last_rows():
            self._journal.put(row)
        self._journal.close()
        self._lock.release()
