"""Which executors are open, and what happens to them when the interpreter ends."""

from __future__ import annotations

import atexit
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exadask.executor import Executor

_open: list[Executor] = []


def opened(executor: Executor) -> None:
    """Take note of an executor, and finish what it was given before the interpreter goes.

    As the standard library does; `atexit` comes too late: thread pools, Dask's among them, take no
    more work by then.
    """
    _open.append(executor)
    if not getattr(_close_all, "is_registered", False):
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_close_all)
        _close_all.is_registered = True  # type: ignore[attr-defined]  # once is enough


def closed(executor: Executor) -> None:
    """Forget an executor."""
    if executor in _open:
        _open.remove(executor)


def last_opened() -> Executor | None:
    """Give the executor that was opened last and is still open."""
    return _open[-1] if _open else None


def send_main_by_value() -> None:
    """Treat the main module of a process that `multiprocessing` spawned like any other main."""
    main = sys.modules.get("__mp_main__")
    if main is not None:
        import cloudpickle

        cloudpickle.register_pickle_by_value(main)


def _close_all() -> None:
    for executor in list(_open):
        try:
            executor.shutdown()
        except KeyboardInterrupt:
            executor.abandon()
