"""Waiting for several futures, as `concurrent.futures` does, also inside a task."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator, Sequence
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
        What to wait for.
    timeout : float, optional
        How long to wait for all of them [s].
    progress : bool
        Whether to show a progress bar.

    Yields
    ------
    Future
        Each once, the first done first.

    Raises
    ------
    TimeoutError
        Not all were done in time.
    """
    pending = list(futures)
    _check_futures(pending, "as_completed")
    if progress:
        from exadask.monitor.progress import follow

        follow(pending, "tasks")
    completed = concurrent.futures.as_completed(pending, timeout)
    while pending:
        if any(one.done() for one in pending):
            future = next(completed)
        else:
            with lent(pending[0]._gateway):
                future = next(completed)
        pending.remove(future)  # type: ignore[arg-type]  # as_completed gives back what it got
        yield future  # type: ignore[misc]


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
