"""Runs calls in a child process, and keeps what may stay warm between them."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from exadask import inside
from exadask.errors import InvalidRequest
from exadask.runtime import binding
from exadask.runtime.job import INLINE_OUTPUT_BYTES, Done, Failure, Run, RunBundle
from exadask.runtime.kind import Kind
from exadask.runtime.metering import Meter, has_children
from exadask.runtime.outcomes import exit_failure, failure_of, pack_result
from exadask.runtime.parcel import Parcel

Text: TypeAlias = "bytes | tuple[int, int]"
"""What was written, or where it begins and ends in its file."""

_MOST_FUNCTIONS = 256
_MOST_SHARED = 8


class Runner:
    """Runs jobs one after the other, and keeps what may stay warm between them."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._shared: dict[str, tuple[Any]] = {}
        self._cores: tuple[int, ...] | None = None
        self._n_cores = 0
        self._has_moved = True
        self._sys_path: list[str] = []
        self.streams = Streams()
        sys.addaudithook(self._on_audit)

    def _on_audit(self, event: str, _: tuple[Any, ...]) -> None:
        if event == "os.chdir":
            self._has_moved = True

    def run(self, order: Run) -> Done:
        """Run one job."""
        kind = order.kind
        meter = Meter()
        try:
            self.streams.restore()
            self.settle(order)
            inputs = [self.giver_of(parcel) for parcel in order.inputs]
            arguments, keywords = order.job.arguments.load(inputs)
            here = inside.Here(
                kind.request.time_s,
                order.left_s,
                order.job.checkpoint,
                has_notice=kind.notice_s is not None,
                cores=order.cores,
                gang=order.gang,
            )
            with inside.entered(here):
                outcome = self.call(kind, arguments, keywords, inputs)
            del arguments, keywords
        except (KeyboardInterrupt, SystemExit) as error:
            outcome = exit_failure(kind, order.node, error)
        except BaseException as error:  # the task's boundary: whatever it raises is its result
            outcome = failure_of(error, kind)
        finally:
            flush_streams()
        if not isinstance(outcome, Failure):
            outcome = pack_result(outcome, kind)
        return Done(outcome=outcome, usage=meter.read(), has_children=has_children())

    def settle(self, order: Run | RunBundle, *, is_sure: bool = True) -> None:
        """Make this process what the task asked for: its cores, its modules, its directory.

        Parameters
        ----------
        order : Run or RunBundle
            What runs next.
        is_sure : bool
            Whether to ask the kernel for the directory. Otherwise it is believed to be the same as
            long as nobody has called `os.chdir`: a question costs tens of microseconds where the
            call before has emptied the caches.
        """
        if not (is_sure or self._has_moved) and sys.path == self._sys_path:
            return
        self._enter(order)
        if order.n_cores != self._n_cores:
            self._n_cores = order.n_cores
            os.environ.update(binding.thread_environment(order.n_cores))
            binding.limit_loaded_threadpools(order.n_cores)
        if order.cores != self._cores:
            self._cores = order.cores
            if order.cores:
                binding.bind_threads(os.getpid(), order.cores)

    def _enter(self, order: Run | RunBundle) -> None:
        """Go where the task was submitted, and see the modules that it saw there."""
        kind = order.kind
        surroundings = kind.surroundings
        self._sys_path = list(surroundings.sys_path)
        if sys.path != self._sys_path:
            sys.path[:] = self._sys_path
        try:
            if not _is_in(surroundings.cwd):
                os.chdir(surroundings.cwd)
            self._has_moved = False
        except OSError as error:
            raise InvalidRequest(
                f"task {kind.name!r} was submitted in {surroundings.cwd}, but node {order.node!r} "
                f"cannot enter that folder: {error.strerror}.",
                "Start your program in a folder that all nodes see, or os.chdir(...) to one.",
            ) from error

    def call(
        self,
        kind: Kind,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        inputs: Sequence[Callable[[], Any]] = (),
    ) -> Any:
        """Call a function; returns its value, or what went wrong in it."""
        function = self._function(kind, inputs)
        if kind.setup is not None:
            arguments = (self._state(kind), *arguments)
        value = function(*arguments, **keywords)
        if inspect.iscoroutine(value):
            import asyncio  # costs as much as everything else here together

            value = asyncio.run(value)
        return value

    def _function(self, kind: Kind, inputs: Sequence[Callable[[], Any]]) -> Callable[..., Any]:
        if not kind.digest:  # a future is part of it
            return kind.function.load(inputs)  # type: ignore[no-any-return]  # packed as a function
        known = self._functions.get(kind.digest)
        if known is None:
            if len(self._functions) >= _MOST_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
            known = self._functions[kind.digest] = kind.function.load()
        return known

    def giver_of(self, parcel: Parcel) -> Callable[[], Any]:
        """Give what gives the value of an input: to each call its own, unless it is shared."""
        return partial(self._shared_value, parcel) if parcel.shared else parcel.load

    def _shared_value(self, parcel: Parcel) -> Any:
        known = self._shared.pop(parcel.shared, None) or (parcel.load(),)
        self._shared[parcel.shared] = known  # the one that was used last is the last to go
        if len(self._shared) > _MOST_SHARED:
            del self._shared[next(iter(self._shared))]
        return known[0]

    def _state(self, kind: Kind) -> Any:
        assert kind.setup is not None
        if kind.setup.key not in self._states:
            self._states[kind.setup.key] = kind.setup.function.load()()
        return self._states[kind.setup.key]


class Streams:
    """Standard output and error, put back after a task that closed or replaced them.

    Attributes
    ----------
    out, err : int
        How much had been written when `news` was asked last [bytes].
    """

    def __init__(self) -> None:
        self._copies = {fd: os.dup(fd) for fd in (1, 2)}
        self._originals = (sys.stdout, sys.stderr)
        self._inodes = tuple(os.fstat(fd).st_ino for fd in (1, 2))
        self.out = self.err = 0

    def news(self) -> tuple[Text, Text]:
        """Give what has been written since this was asked last; put back what was taken away."""
        stdout, stderr = self._originals
        is_same = sys.stdout is stdout and sys.stderr is stderr
        if not is_same or stdout.closed or stderr.closed:
            flush_streams()
            self.restore()
        try:
            out, err = os.fstat(1), os.fstat(2)
            is_ours = (out.st_ino, err.st_ino) == self._inodes
        except OSError:  # closed
            is_ours = False
        if not is_ours:
            self.restore()
            out, err = os.fstat(1), os.fstat(2)
        if out.st_size == self.out and err.st_size == self.err:
            return b"", b""
        texts = self.read(1, self.out, out.st_size), self.read(2, self.err, err.st_size)
        self.out, self.err = out.st_size, err.st_size
        return texts

    def read(self, number: int, start: int, end: int) -> Text:
        """Read back what was written, if it is not much; otherwise say where it is."""
        if end - start > INLINE_OUTPUT_BYTES:
            return start, end
        return os.pread(self._copies[number], end - start, start)

    def restore(self) -> None:
        """Put all back."""
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


def _is_in(folder: str) -> bool:
    try:
        return os.getcwd() == folder  # noqa: PTH109  # per call: keep it cheap
    except OSError:  # it has been deleted
        return False


def _is_same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:  # closed
        return False


def flush_streams() -> None:
    """Write out what the task has left in the buffers of its streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # the task may have closed or replaced it
