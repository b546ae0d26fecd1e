"""The program of a child process: it takes one job at a time, runs it, and says how it ended.

It is started with a clean slate (never forked from a process with threads), and it never imports
the user's main module: functions of ``__main__`` travel by value.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import os
import queue
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from exadask.errors import InvalidRequest, NotSerializable, RemoteError, TaskCrashed
from exadask.runtime import binding
from exadask.runtime.diagnosis import explain_unpicklable
from exadask.runtime.job import Answer, Done, Failure, Job, News, Run, Usage, qualified_name
from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.wire import Decoder, send_blocking

_RUNTIME_FOLDER = str(Path(__file__).parent)
_OOM_SCORE = "600"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TIDY_FROM_BYTES = 2**27


class Link:
    """The child's end of the socket to its agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()
        self._send_lock = threading.Lock()
        self._orders: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self.on_message: Callable[[Answer | News], None] | None = None
        self.n_waits = 0
        """How many things the running task waits for: its share is lent out meanwhile."""

    def send(self, message: object) -> None:
        """Send a message; any thread may."""
        with self._send_lock:
            send_blocking(self._socket, message)

    def next_order(self) -> Run | None:
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
                if isinstance(message, Run):
                    self._orders.put(message)
                elif self.on_message is not None:
                    self.on_message(message)


link: Link | None = None
"""The way to the agent; None where this process is not a child."""


class Runner:
    """Runs jobs one after the other, and keeps what may stay warm between them."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._cores: tuple[int, ...] | None = None
        self._n_cores = 0
        self._streams = _Streams()

    def run(self, order: Run) -> Done:
        """Run one job."""
        meter = _Meter()
        try:
            self._settle(order)
            outcome = self._call(order)
        except (KeyboardInterrupt, SystemExit) as error:
            outcome = _exit_failure(order, error)
        except BaseException as error:  # the task's boundary: whatever it raises is its result
            outcome = failure_of(error, order.job)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()  # the task may have closed or replaced it
        return Done(outcome=outcome, usage=meter.read(), has_children=_has_children())

    def _settle(self, order: Run) -> None:
        """Make this process what the job asked for: its cores, its modules, its directory."""
        surroundings = order.job.surroundings
        self._streams.restore()
        if surroundings.sys_path != tuple(sys.path):
            sys.path[:] = surroundings.sys_path
        self._enter(surroundings.cwd, order)
        if order.n_cores != self._n_cores:
            self._n_cores = order.n_cores
            os.environ.update(binding.thread_environment(order.n_cores))
            binding.limit_loaded_threadpools(order.n_cores)
        if order.cores != self._cores:
            self._cores = order.cores
            if order.cores:
                binding.bind_threads(os.getpid(), order.cores)

    @staticmethod
    def _enter(cwd: str, order: Run) -> None:
        try:
            os.chdir(cwd)
        except OSError as error:
            raise InvalidRequest(
                f"task {order.job.name!r} was submitted in {cwd}, but node {order.node!r} cannot "
                f"enter that folder: {error.strerror}.",
                "Start your program in a folder that all nodes see, or os.chdir(...) to one.",
            ) from error

    def _call(self, order: Run) -> Parcel | Failure:
        job = order.job
        inputs = [parcel.load for parcel in order.inputs]
        function = job.function.load(inputs)
        arguments, keywords = job.arguments.load(inputs)
        if job.setup is not None:
            arguments = (self._state(job), *arguments)
        value = function(*arguments, **keywords)
        if inspect.iscoroutine(value):
            import asyncio  # costs as much as everything else here together

            value = asyncio.run(value)
        del arguments, keywords
        return pack_result(value, job)

    def _state(self, job: Job) -> Any:
        assert job.setup is not None
        if job.setup.key not in self._states:
            self._states[job.setup.key] = job.setup.function.load()()
        return self._states[job.setup.key]


class _Streams:
    """Standard output and error, put back after a task that closed or replaced them."""

    def __init__(self) -> None:
        self._copies = {fd: os.dup(fd) for fd in (1, 2)}
        self._originals = (sys.stdout, sys.stderr)

    def restore(self) -> None:
        for fd, copy in self._copies.items():
            if not _is_same_file(fd, copy):
                os.dup2(copy, fd)
        stdout, stderr = self._originals
        if stdout.closed or stderr.closed:
            stdout, stderr = (
                os.fdopen(fd, "w", buffering=1, encoding="utf-8", closefd=False) for fd in (1, 2)
            )
            self._originals = (stdout, stderr)
        sys.stdout, sys.stderr = stdout, stderr


def _is_same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:  # closed
        return False


def pack_result(value: object, job: Job) -> Parcel | Failure:
    """Pack what a task returned; if that cannot be, say why."""
    try:
        return Packer().pack(value)
    except Exception as error:  # the user's objects decide what pickling raises
        where, reason = explain_unpicklable(value, "the result", error)
        what = f"the result of task {job.name!r} ({type(value).__name__})"
        return failure_of(NotSerializable(what, where, reason), job, may_retry=False)


def failure_of(error: BaseException, job: Job, *, may_retry: bool = True) -> Failure:
    """Pack an exception, so that it arrives as itself or at least as its text."""
    own = _without_our_frames(error.__traceback__)
    error.__traceback__ = None
    text = "".join(traceback.format_exception(type(error), error, own))
    summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    return Failure(
        exception=_packed_exception(error, job, summary, text),
        summary=summary,
        traceback=text,
        may_retry=may_retry and job.may_retry(error),
    )


def _packed_exception(error: BaseException, job: Job, summary: str, text: str) -> Parcel:
    try:
        parcel = Packer().pack(error)
        rebuilt = parcel.load()
    except Exception:  # the user's exception cannot travel: its text does
        rebuilt = None
    if type(rebuilt) is type(error):
        return parcel
    message = summary.partition(": ")[2]
    return Packer().pack(RemoteError(job.name, qualified_name(type(error)), message, text))


def _exit_failure(order: Run, error: KeyboardInterrupt | SystemExit) -> Failure:
    """Turn exit() in a task into an error: as itself it would end the user's own program."""
    if isinstance(error, KeyboardInterrupt):
        crash = TaskCrashed(order.job.name, "SIGINT", None, "", order.node)
    else:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        tail = "" if isinstance(error.code, int) or error.code is None else str(error.code)
        crash = TaskCrashed(order.job.name, None, code, tail, order.node)
    return failure_of(crash, order.job)


def _without_our_frames(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_RUNTIME_FOLDER):
        tb = tb.tb_next
    return tb


class _Meter:
    """Processor time, wall time and peak memory of this process from now on."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._cpu_s = _cpu_s()
        with contextlib.suppress(OSError):  # without it the peak is that of the process's life
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> Usage:
        return Usage(
            cpu_s=_cpu_s() - self._cpu_s,
            wall_s=time.monotonic() - self._start_s,
            peak_bytes=_peak_bytes(),
        )


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _peak_bytes() -> int:
    peak = _status_bytes(b"VmHWM:")
    if peak is None:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def _status_bytes(field: bytes) -> int | None:
    """Read a field of this process's status [bytes]; None where there is no ``/proc``."""
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123  # per task: keep it cheap
            for line in status:
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _has_children() -> bool:
    """Whether processes that the task started are still there, or nobody has waited for them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


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
    while (order := link.next_order()) is not None:
        link.n_waits = 0
        done = runner.run(order)
        del order
        _answer(done)
        del done
        _give_memory_back()


def _answer(done: Done) -> None:
    assert link is not None
    with contextlib.suppress(BrokenPipeError):  # the agent is gone: the next read ends this process
        link.send(done)


def _give_memory_back() -> None:
    """Return freed memory to the system, or the next task would be blamed for it."""
    if (_status_bytes(b"RssAnon:") or 0) < _TIDY_FROM_BYTES:
        return
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
