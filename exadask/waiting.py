"""Waiting for several futures, as `concurrent.futures` does, also inside a task."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import queue
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import _base
from typing import Any, TypeVar

from exadask.errors import InvalidRequest
from exadask.future import Future, lent

T = TypeVar("T")


def as_completed(
    futures: Iterable[Future[T]], *, timeout: float | None = None, progress: bool = False
) -> Iterator[Future[T]]:
    """Give futures as they complete.

    Parameters
    ----------
    futures : iterable of Future
        What to wait for. A generator, for example ``(f.submit(x) for x in xs)``, is consumed as
        futures are taken, so that millions of calls need no memory.
    timeout : float, optional
        How long to wait for all of them [s].
    progress : bool
        Whether to show a progress bar; it needs to know all futures at once.

    Yields
    ------
    Future
        Each once, the first done first.

    Raises
    ------
    TimeoutError
        Not all were done in time.
    """
    source, window = iter(futures), None
    if isinstance(futures, Sized) or progress:
        futures = list(source)
        _check_futures(futures, "as_completed")
        source = iter(dict.fromkeys(futures))
        if progress:
            from exadask.monitor.progress import follow

            follow(futures, "tasks")
    else:
        first = list(itertools.islice(source, 1))
        _check_futures(first, "as_completed")
        source = itertools.chain(first, source)
        window = first[0]._gateway.window() if first else 1
    return _Arrivals().follow(source, window, timeout)


class _Arrivals:
    """Told by futures that they are done; in the place of one of `concurrent.futures`' waiters."""

    def __init__(self) -> None:
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._pending: set[Future[Any]] = set()
        self.add_result = self.add_exception = self.add_cancelled = self._done.put

    def follow(
        self, source: Iterator[Future[T]], window: int | None, timeout: float | None
    ) -> Iterator[Future[T]]:
        """Give futures as they complete, with at most `window` of them taken from the source."""
        end_s = None if timeout is None else time.monotonic() + timeout
        try:
            self._watch(itertools.islice(source, window))
            while self._pending:
                future = self._next(end_s)
                self._pending.discard(future)
                yield future
                del future
                self._watch(itertools.islice(source, 1))
        finally:
            for future in self._pending:
                with future._condition:
                    if self in future._waiters:
                        list.remove(future._waiters, self)

    def _watch(self, futures: Iterable[Future[T]]) -> None:
        for future in futures:
            _check_futures((future,), "as_completed")
            self._pending.add(future)
            with future._condition:
                if future._state in (_base.FINISHED, _base.CANCELLED_AND_NOTIFIED):
                    self._done.put(future)
                else:
                    list.append(future._waiters, self)  # it lends only while it really waits

    def _next(self, end_s: float | None) -> Future[Any]:
        with contextlib.suppress(queue.Empty):
            return self._done.get_nowait()
        left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
        with lent(next(iter(self._pending))._gateway):
            try:
                return self._done.get(timeout=left_s)
            except queue.Empty:
                count = len(self._pending)
                raise concurrent.futures.TimeoutError(f"{count} futures are not done yet") from None


def wait(
    futures: Iterable[Future[T]],
    timeout: float | None = None,
    return_when: str = concurrent.futures.ALL_COMPLETED,
) -> concurrent.futures._base.DoneAndNotDoneFutures[T]:
    """Wait for futures, as `concurrent.futures.wait` does, lending the share of a waiting task.

    Parameters
    ----------
    futures : iterable of Future
        What to wait for.
    timeout : float, optional
        How long [s].
    return_when : str
        ``"FIRST_COMPLETED"``, ``"FIRST_EXCEPTION"`` or ``"ALL_COMPLETED"``.

    Returns
    -------
    (done, not_done)
        Two sets of futures.
    """
    pending = list(futures)
    _check_futures(pending, "wait")
    if not pending or all(one.done() for one in pending):
        return concurrent.futures.wait(pending, timeout, return_when)
    with lent(pending[0]._gateway):
        return concurrent.futures.wait(pending, timeout, return_when)


def _check_futures(candidates: Sequence[Any], what: str) -> None:
    for one in candidates:
        if not isinstance(one, Future):
            raise InvalidRequest(
                f"{what}() got {one!r}, which is not a future of exadask.",
                "Give it what submit() or map() returned.",
            )
