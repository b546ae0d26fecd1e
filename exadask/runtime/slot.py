"""Slots: child processes that run tasks, kept warm and reused while they fit."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import exadask
from exadask.runtime.background import Background
from exadask.runtime.board import Board
from exadask.runtime.job import Answer, Ask, BundleDone, Done, Item, News, Run, RunBundle
from exadask.runtime.limits import MARK, descendants_of, end_family
from exadask.runtime.segment import Segment
from exadask.runtime.wire import Decoder, encode, send_head

logger = logging.getLogger(__name__)

_PACKAGE_ROOT = str(Path(exadask.__file__).parents[1])
_PYTHON = (sys.executable, "-u", "-X", "faulthandler", "-c")
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from exadask.runtime.child import main; "
    "main(int(sys.argv[2]))"
)
_CAPTURE_LIMIT_BYTES = 2**26
_HARMLESS_CHILD = "multiprocessing.resource_tracker"


class SlotDied(Exception):
    """The child process ended while it ran a task.

    Parameters
    ----------
    returncode : int
        As of `subprocess.Popen`: minus the signal, or the exit code.
    """

    def __init__(self, returncode: int) -> None:
        super().__init__(returncode)
        self.returncode = returncode

    @property
    def was_killed(self) -> bool:
        """Whether someone, or the kernel, ended it."""
        return self.signal_name in ("SIGTERM", "SIGKILL")

    @property
    def signal_name(self) -> str | None:
        """The signal that killed it, if one did."""
        if self.returncode >= 0:
            return None
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.returncode).name
        return f"signal {-self.returncode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotKind:
    """What cannot be changed in a running process: its environment, GPUs included."""

    env: tuple[tuple[str, str], ...] = ()
    gpu_env: tuple[tuple[str, str], ...] = ()


class CaptureFile:
    """A file without a name, so that nothing is left behind; closed when nobody needs it."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(mode="a+b", buffering=0) as file:
            self.fd = os.dup(file.fileno())

    def size(self) -> int:
        """Length so far [bytes]."""
        return os.fstat(self.fd).st_size

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A piece of what a slot has written."""

    file: CaptureFile
    start: int
    end: int | None = None

    def ended(self) -> Captured:
        """Note that the job will write no more."""
        return replace(self, end=self.file.size())

    def size(self) -> int:
        """Length so far [bytes]."""
        return (self.file.size() if self.end is None else self.end) - self.start

    def read(self, limit: int | None = None) -> bytes:
        """Read the piece, or its last `limit` bytes."""
        size = self.size()
        skipped = 0 if limit is None else max(0, size - limit)
        return os.pread(self.file.fd, size - skipped, self.start + skipped)


class Slot:
    """One child process.

    Parameters
    ----------
    kind : SlotKind
        Its environment.
    mark : str
        Marks it and all its descendants.
    told : mapping of str to str, optional
        Environment variables by which its agent tells it of the node.
    """

    def __init__(self, kind: SlotKind, mark: str, told: Mapping[str, str] | None = None) -> None:
        self.kind, self.mark, self._told = kind, mark, told or {}
        self.warm: set[str] = set()
        self.is_busy = False
        self.on_ask: Callable[[Ask], None] | None = None
        self.on_item: Callable[[Item], None] | None = None
        self._board: Board | None = None
        self._done: asyncio.Future[Any] | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_garbled = False
        self._exited = asyncio.Event()
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self._files = {name: CaptureFile() for name in ("stdout", "stderr")}
        self._process, self._socket = self._start()
        self._send_lock = asyncio.Lock()
        self._loop.add_reader(self._socket, self._on_readable)
        self._watch_exit()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return not self._exited.is_set()

    async def run(self, order: Run) -> Done:
        """Run a job.

        Raises
        ------
        SlotDied
            The process ended before the job did.
        """
        done = await self._run(order)
        assert isinstance(done, Done)
        return done

    async def run_bundle(self, order: RunBundle) -> BundleDone:
        """Run a bundle; how it goes on is on the `board`, what is too large for that is told.

        Raises
        ------
        SlotDied
            The process ended before the bundle did.
        """
        done = await self._run(order)
        assert isinstance(done, BundleDone)
        return done

    async def _run(self, order: Run | RunBundle) -> Any:
        self._done = self._loop.create_future()
        if order.kind.setup is not None:
            self.warm.add(order.kind.setup.key)
        if not self.is_alive:
            self._done.set_exception(SlotDied(self._returncode()))
        else:
            await self.send(order)
        return await self._done

    def board(self) -> tuple[Board, Segment | None]:
        """Give the memory that it shares with the process; the first time, what to send of it."""
        if self._board is not None:
            return self._board, None
        self._board = Board.create()
        memory = Segment(os.dup(self._board.fd), 1)
        self._board.close_fd()
        return self._board, memory

    async def send(self, message: Run | RunBundle | Answer | News) -> None:
        """Send a message; a process that has ended is found out by who waits for it."""
        data, fds = encode(message)
        rest = memoryview(data)
        async with self._send_lock:
            with contextlib.suppress(OSError):
                while rest:
                    try:
                        rest = rest[send_head(self._socket, rest, fds) :]
                    except BlockingIOError:
                        await self._wait_for_room()

    def capture_from_here(self) -> dict[str, Captured]:
        """Note where the output of the next job begins."""
        return {name: Captured(file=file, start=file.size()) for name, file in self._files.items()}

    def is_worn(self, done: Done | BundleDone) -> bool:
        """Whether the process must not run another job: it has company, or full files."""
        written = sum(file.size() for file in self._files.values())
        if written > _CAPTURE_LIMIT_BYTES:
            return True
        return done.has_children and any(map(_is_company, descendants_of([self.pid])[self.pid]))

    async def end(self, grace_s: float) -> None:
        """End the process and all its descendants; returns when they are gone."""
        await asyncio.to_thread(end_family, self.pid, self.mark, grace_s=grace_s)
        await self._exited.wait()

    async def close(self) -> None:
        """Let an idle process go: it ends by itself when its socket closes."""
        if self._socket.fileno() >= 0:  # it may have ended meanwhile
            self._loop.remove_reader(self._socket)
            self._socket.close()
        try:
            await asyncio.wait_for(self._exited.wait(), timeout=1)
        except asyncio.TimeoutError:
            await self.end(0)
        self._decoder.close()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            process = subprocess.Popen(
                [*_PYTHON, _PROGRAM, _PACKAGE_ROOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._files["stdout"].fd,
                stderr=self._files["stderr"].fd,
                env=self._environment(os.environ),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            undo.pop_all()
        ours.setblocking(False)
        return process, ours

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        kind, told = self.kind, self._told
        return {**environ, **dict(kind.env), **dict(kind.gpu_env), **told, MARK: self.mark}

    def _watch_exit(self) -> None:
        """Learn of the exit from the kernel: forked grandchildren may keep the socket open."""
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old one: wait in a thread
            self._pidfd = -1
            waiting = self._loop.run_in_executor(None, self._process.wait)
            waiting.add_done_callback(lambda _: self._on_exit())
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._drain()
        self._process.wait()
        self._exited.set()
        if self._done is not None and not self._done.done():
            self._done.set_exception(SlotDied(self._returncode()))
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        self._tell_room()
        self._decoder.close()

    def _returncode(self) -> int:
        return self._process.wait()

    def _drain(self) -> None:
        """Take a result that was sent right before the end."""
        with contextlib.suppress(BlockingIOError, OSError):
            while self._decoder.receive(self._socket):
                self._deliver()

    def _on_readable(self) -> None:
        try:
            is_open = self._decoder.receive(self._socket)
        except BlockingIOError:
            return
        if not is_open:
            self._loop.remove_reader(self._socket)
        self._deliver()

    def _deliver(self) -> None:
        if self._is_garbled:
            return
        try:
            for message in self._decoder.messages():
                self._take(message)
        except Exception:  # a task has written into the socket: what comes after it cannot be read
            logger.exception("the process %d sends what makes no sense, and is ended", self.pid)
            self._is_garbled = True
            self._process.send_signal(signal.SIGABRT)

    def _take(self, message: Any) -> None:
        if isinstance(message, Ask):
            if self.on_ask is not None:
                self.on_ask(message)
        elif isinstance(message, Item):
            if self.on_item is not None:
                self.on_item(message)
        elif not isinstance(message, (Done, BundleDone)):
            raise TypeError(f"{type(message).__name__} is no message")
        elif self._done is not None and not self._done.done():
            self._done.set_result(message)

    async def _wait_for_room(self) -> None:
        """Wait until the socket takes more, or the process has ended.

        A child of the process that has ended may keep the other side of the socket open, so that
        the kernel never says that it is broken.
        """
        self._room = self._loop.create_future()
        self._loop.add_writer(self._socket, self._tell_room)
        try:
            await self._room
        finally:
            if self._socket.fileno() >= 0:
                self._loop.remove_writer(self._socket)

    def _tell_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class SlotPool:
    """The child processes of one agent.

    Parameters
    ----------
    mark : str
        Prefix of the marks of its slots.
    max_idle : int
        Idle processes that are kept.
    told : mapping of str to str, optional
        Environment variables by which the agent tells them of the node.
    """

    def __init__(self, mark: str, max_idle: int, told: Mapping[str, str] | None = None) -> None:
        self._mark, self._max_idle, self._told = mark, max_idle, told
        self._slots: list[Slot] = []
        self._serial = itertools.count()
        self._closing = Background()

    def acquire(self, kind: SlotKind, setup_key: str | None) -> Slot:
        """Take an idle slot of a kind, warm for the setup if there is one, or start one."""
        idle = [slot for slot in self._slots if self._is_idle(slot) and slot.kind == kind]
        if idle:
            slot = max(idle, key=lambda one: (setup_key in one.warm, -len(one.warm)))
        else:
            slot = self.start(kind)
        slot.is_busy = True
        return slot

    def start(self, kind: SlotKind) -> Slot:
        """Start a slot ahead of its first task."""
        for ended in [one for one in self._slots if not one.is_alive and not one.is_busy]:
            self._let_go(ended, kill=True)  # it died while nobody needed it
        slot = Slot(kind, f"{self._mark}.{next(self._serial)}", self._told)
        self._slots.append(slot)
        return slot

    def release(self, slot: Slot, *, is_worn: bool) -> None:
        """Give a slot back; a worn one is ended, and so is the oldest of too many idle ones."""
        slot.is_busy, slot.on_ask, slot.on_item = False, None, None
        if is_worn or not slot.is_alive:
            self._let_go(slot, kill=True)
        idle = [one for one in self._slots if self._is_idle(one)]
        for surplus in idle[: max(0, len(idle) - self._max_idle)]:
            self._let_go(surplus, kill=False)

    async def close(self) -> None:
        """End all slots; returns when their processes are gone."""
        for slot in list(self._slots):
            self._let_go(slot, kill=slot.is_busy)
        await self._closing.finish()

    @staticmethod
    def _is_idle(slot: Slot) -> bool:
        return slot.is_alive and not slot.is_busy

    def _let_go(self, slot: Slot, *, kill: bool) -> None:
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        self._closing.start(slot.end(0) if kill else slot.close())


def _is_company(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    has_ended = not command  # a zombie: whoever started it may still ask how it ended
    return not has_ended and _HARMLESS_CHILD.encode() not in command
