"""What works on the active executor: the one that was opened last, or in a task the task's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

from exadask import lifetime
from exadask.errors import NoActiveExecutor
from exadask.executor import Executor
from exadask.future import Future

T = TypeVar("T")

_nested: Executor | None = None


def active_executor(name: str) -> Executor:
    """Find the executor that was opened last and is still open; in a task, the task's own.

    Raises
    ------
    NoActiveExecutor
        There is none.
    """
    global _nested
    child = sys.modules.get("exadask.runtime.child")
    link = getattr(child, "link", None)
    if link is not None:
        if _nested is None:
            from exadask.runtime.nested import NestedGateway

            _nested = Executor.of_task(NestedGateway(link))
        return _nested
    last = lifetime.last_opened()
    if last is None:
        raise NoActiveExecutor(name)
    return last


def broadcast(value: T) -> Future[T]:
    """Keep a value in the cluster of the active executor; see `Executor.broadcast`."""
    return active_executor("broadcast").broadcast(value)


def attach(run: str | Path, name: str | None = None) -> Any:
    """Find the futures again that an earlier session has left with `Executor.detach`.

    An executor is opened for them, ``Executor(attach=run)``, which is the active one from now on
    and ends with the program.

    Parameters
    ----------
    run : str or Path
        The run of the scheduler that stands (``exadask up``), by its folder or its name.
    name : str, optional
        What the futures were called. None: what was left last.

    Returns
    -------
    Future, list, dict, ...
        The futures, arranged as they were.

    Raises
    ------
    InvalidRequest
        There is nothing of that name.
    RunFolderError, ClusterUnreachable
        There is no such run, its scheduler does not stand, or does not answer.
    """
    executor = Executor(attach=run)
    try:
        return executor.take_back(name)
    except BaseException:
        executor.abandon()
        raise
