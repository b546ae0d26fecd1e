"""What a running task can ask about itself: how long it may still run, and where to keep things."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from exadask.errors import InvalidRequest

__all__ = ["checkpoint_dir", "on_notice", "time_left"]


class Gang(NamedTuple):
    """Where the processes of a call on several nodes may be started.

    Parameters
    ----------
    folder : str
        A folder of this node for what passes between its processes.
    address : str
        The network address of this node.
    n_cores : tuple of int
        How many cores the call has on each node, this one first [cores].
    """

    folder: str
    address: str
    n_cores: tuple[int, ...]


class Here:
    """The call that runs in this process.

    Parameters
    ----------
    limit_s : float, optional
        Its time limit [s].
    left_s : float, optional
        How long its node stays [s].
    checkpoint : str, optional
        Its folder for checkpoints.
    has_notice : bool
        Whether it is warned before its end.
    cores : tuple of int
        The cores that it is bound to; empty if it is to none.
    gang : Gang, optional
        Its other nodes.

    Attributes
    ----------
    began_s : float
        When it began, on the clock of `time.monotonic` [s].
    """

    def __init__(
        self,
        limit_s: float | None,
        left_s: float | None,
        checkpoint: str | None = None,
        *,
        has_notice: bool = False,
        cores: tuple[int, ...] = (),
        gang: Gang | None = None,
    ) -> None:
        self.began_s = time.monotonic()
        self.limit_s = math.inf if limit_s is None else limit_s
        self.ends_s = math.inf if left_s is None else self.began_s + left_s
        self.checkpoint, self.has_notice = checkpoint, has_notice
        self.cores, self.gang = cores, gang
        self.listeners: list[Callable[[], object]] = []

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Pass the warning on; the next signal is an order."""
        _let_signals_end()
        for listener in self.listeners:
            listener()


_here: Here | None = None
_before: Callable[[int, FrameType | None], object] | int | None = None
"""What SIGTERM did before it was a warning; None while it is none."""


@contextmanager
def entered(here: Here) -> Iterator[Here]:
    """Let a call find out about itself; the main thread of a child process calls this."""
    global _here, _before
    _let_signals_end()
    if here.has_notice:
        _before = signal.signal(signal.SIGTERM, here.on_signal)
    _here = here
    try:
        yield here
    finally:
        _here = None
        if _before is not None:  # a warning may be on its way, and the result is not sent yet
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _let_signals_end() -> None:
    """Let SIGTERM end this process again."""
    global _before
    if _before is not None:
        signal.signal(signal.SIGTERM, _before)
        _before = None


def current() -> Here | None:
    """Give the call that runs in this process; None if there is none."""
    return _here


def time_left() -> float:
    """Say how long the running task may still run [s].

    That is until its time limit, or the end of the allocation if that comes first; infinite if
    there is neither.

    Raises
    ------
    InvalidRequest
        This is no task that runs in a process of its own.

    Examples
    --------
    >>> import exadask as xd
    >>> with xd.Executor() as ex:
    ...     ex.options(time="1h").submit(xd.time_left).result() < 3600
    True
    """
    here = _required("time_left()")
    now = time.monotonic()
    return min(here.began_s + here.limit_s, here.ends_s) - now


def checkpoint_dir() -> Path:
    """Give the running task a folder that outlives its attempts.

    Retries, lost nodes, ended allocations and resumed runs find there what an earlier attempt has
    left. It is removed when the task has succeeded, and stays when it has failed. All nodes must
    see the run's folder.

    Raises
    ------
    InvalidRequest
        This is no task, or ``checkpoint=True`` was not said.

    Examples
    --------
    >>> import exadask as xd
    >>> @xd.task(checkpoint=True)
    ... def count():
    ...     file = xd.checkpoint_dir() / "n"
    ...     n = int(file.read_text()) if file.exists() else 0
    ...     _ = file.write_text(str(n + 1))
    ...     return n
    >>> with xd.Executor() as ex:
    ...     count.submit().result()
    0
    """
    here = _required("checkpoint_dir()")
    if here.checkpoint is None:
        raise InvalidRequest(
            "checkpoint_dir() was called in a task that has no such folder.",
            "Say so: @task(checkpoint=True). Tasks that tasks submit cannot have one.",
        )
    path = Path(here.checkpoint)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def on_notice(listener: Callable[[], object]) -> None:
    """Call a function when the running task is soon to be ended, for example to save its work.

    That is so long before its time limit or the end of its allocation as ``notice=`` says, and
    once. The function is called between two steps of the task, on the same thread; the task goes on
    afterwards, and what it returns is its result.

    Parameters
    ----------
    listener : callable
        Takes no arguments.

    Raises
    ------
    InvalidRequest
        This is no task, or ``notice=`` was not said.
    """
    here = _required("on_notice()")
    if not here.has_notice:
        raise InvalidRequest(
            "on_notice() was called in a task that gets no notice.",
            'Say how long before its end: @task(notice="60s").',
        )
    here.listeners.append(listener)


def _required(what: str) -> Here:
    if _here is None:
        raise InvalidRequest(
            f"{what} was called where no task runs in a process of its own.",
            "Call it inside a function that was submitted.",
        )
    return _here
