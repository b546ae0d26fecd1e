"""The program of a child process: it takes one job at a time, runs it, and says how it ended.

It is started with a clean slate (never forked from a process with threads), and it never imports
the user's main module: functions of ``__main__`` travel by value.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from exadask.runtime.bundle_runner import BundleRunner
from exadask.runtime.job import Answer, BundleDone, Done, News, Run, RunBundle
from exadask.runtime.metering import give_memory_back
from exadask.runtime.runner import Runner
from exadask.runtime.wire import Decoder, send_blocking

_OOM_SCORE = "600"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Link:
    """The child's end of the socket to its agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()
        self._send_lock = threading.Lock()
        self._orders: queue.SimpleQueue[Run | RunBundle | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self.on_message: Callable[[Answer | News], None] | None = None
        self.n_waits = 0
        """How many things the running task waits for: its share is lent out meanwhile."""

    def send(self, message: object) -> None:
        """Send a message; any thread may."""
        with self._send_lock:
            send_blocking(self._socket, message)

    def next_order(self) -> Run | RunBundle | None:
        """Wait for a job; None when the agent is gone."""
        if self._reader is None and self._orders.empty():
            self._read_until(lambda: not self._orders.empty())
        return self._orders.get()

    def listen(self, on_message: Callable[[Answer | News], None]) -> None:
        """Read in the background from now on: the running task talks to the agent."""
        self.on_message = on_message
        if self._reader is None:
            self._reader = threading.Thread(
                target=self._read_until, args=(lambda: False,), name="exadask-link", daemon=True
            )
            self._reader.start()

    def _read_until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            if not self._decoder.receive(self._socket):
                self._orders.put(None)
                return
            for message in self._decoder.messages():
                if isinstance(message, (Run, RunBundle)):
                    self._orders.put(message)
                elif self.on_message is not None:
                    self.on_message(message)


link: Link | None = None
"""The way to the agent; None where this process is not a child."""


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none gets lost."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main(fd: int) -> None:
    """Serve the agent on the other side of a socket until it closes it."""
    global link
    link = Link(socket.socket(fileno=fd))
    with contextlib.suppress(OSError):  # the kernel shall rather end a task than an agent
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    _adopt_orphans()
    runner = Runner()
    bundles = BundleRunner(runner, link.send)
    while (order := link.next_order()) is not None:
        link.n_waits = 0
        done = runner.run(order) if isinstance(order, Run) else bundles.run(order)
        del order
        _answer(done)
        del done
        give_memory_back()


def _answer(done: Done | BundleDone) -> None:
    assert link is not None
    with contextlib.suppress(BrokenPipeError):  # the agent is gone: the next read ends this process
        link.send(done)
