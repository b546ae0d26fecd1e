"""The future of a task: a `concurrent.futures.Future` whose data may stay in the cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import threading
import traceback
from collections.abc import Generator, Iterator
from concurrent.futures import _base
from typing import Any, Generic, TypeVar

from exadask.errors import NotSerializable, RemoteError
from exadask.resources import Resources
from exadask.runtime.call import Call, Gateway
from exadask.runtime.job import Failure, Report, Stream, TaskFailed, Usage
from exadask.runtime.parcel import Parcel

T = TypeVar("T")


class Future(concurrent.futures.Future[T], Generic[T]):
    """The result of a task, now or later.

    Made by ``submit``; do not make one yourself. It works with everything in
    `concurrent.futures` and, through `asyncio.wrap_future` or ``await``, with `asyncio`.
    """

    wants_reports = True

    def __init__(self, gateway: Gateway, call: Call) -> None:
        super().__init__()
        self._gateway, self._call = gateway, call
        self._node: str | None = None
        self._report: Report | None = None
        self._n_attempts = 0
        self._loading = threading.Lock()
        self._loaded: tuple[T] | None = None
        self._error: BaseException | None = None
        if gateway.lends:
            self._waiters: list[Any] = _LendingWaiters(gateway)

    @property
    def key(self) -> str:
        """The name of the task in the cluster: unique."""
        return self._call.key

    @property
    def name(self) -> str:
        """The name of the function."""
        return self._call.kind.name

    @property
    def resources(self) -> Resources:
        """What the task asked for."""
        return self._call.kind.request

    @property
    def node(self) -> str | None:
        """The node where it runs or last ran; None before."""
        return self._node

    @property
    def attempts(self) -> int:
        """How many times it was started and ended."""
        return self._n_attempts

    @property
    def usage(self) -> Usage | None:
        """What its last attempt really used; None before one ended."""
        return self._report.usage if self._report else None

    def stdout(self) -> str:
        """Give what the task has written to standard output so far; blocks for a moment."""
        return self._written("stdout")

    def stderr(self) -> str:
        """Give what the task has written to standard error so far; blocks for a moment."""
        return self._written("stderr")

    def explain(self) -> str:
        """Say in a sentence what the task waits for, where it runs, or how it ended."""
        if self.cancelled():
            return "cancelled"
        if self.done():
            error = self.exception()
            took = f" after {self.usage.wall_s:.3g} s on {self.node}" if self.usage else ""
            how = "finished" if error is None else f"failed ({type(error).__name__})"
            return how + took
        return self._gateway.explain(self._call)

    def cancel(self) -> bool:
        """Cancel the task, even if it runs: its processes get SIGTERM, later SIGKILL.

        Returns
        -------
        bool
            False if it had ended already.
        """
        with self._condition:
            if self._state == _base.FINISHED:
                return False
            was_cancelled = self._state in (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED)
            if not was_cancelled:
                self._state = _base.CANCELLED_AND_NOTIFIED
                for waiter in self._waiters:
                    waiter.add_cancelled(self)
                self._condition.notify_all()
        if not was_cancelled:
            self._gateway.cancel(self._call)
            self._invoke_callbacks()
        return True

    def result(self, timeout: float | None = None) -> T:
        """Give the task's result; wait for it if need be.

        Parameters
        ----------
        timeout : float, optional
            How long to wait [s]. None: until it is there.

        Raises
        ------
        concurrent.futures.CancelledError
            The task was cancelled.
        concurrent.futures.TimeoutError
            It was not done in time.
        Exception
            What the task raised, or the `exadask.errors` that says why it did not run to its end.
        """
        loaded = self._loaded
        if loaded is not None:
            return loaded[0]
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # break the cycle with the traceback
        with self._loading:
            if self._loaded is None:
                self._loaded = (self._fetched(),)
            return self._loaded[0]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Give what the task raised, or None; wait for its end if need be.

        Raises
        ------
        concurrent.futures.CancelledError
            The task was cancelled.
        concurrent.futures.TimeoutError
            It was not done in time.
        """
        if self.done():
            carried = super().exception(0)
        else:
            with lent(self._gateway):
                carried = super().exception(timeout)
        if carried is None:
            return None
        with self._loading:
            if self._error is None:
                self._error = _as_the_user_knows_it(carried)
            return self._error

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never submitted
            self._gateway.forget(self._call)

    def __reduce__(self) -> Any:
        raise NotSerializable(
            f"the future of task {self.name!r}",
            "an object that is pickled",
            "a future belongs to its executor (as an argument of a task it becomes its value)",
        )

    def __repr__(self) -> str:
        return f"<Future {self.name}: {self._state_text()}; {self.resources}>"

    def _repr_html_(self) -> str:
        from exadask.monitor.html import future_html

        return future_html(self.name, self._state_text(), str(self.resources))

    def _state_text(self) -> str:
        if self.cancelled():
            return "cancelled"
        if self.running():
            return f"running on {self._node}"
        if not self.done():
            return "waiting"
        took = f" in {self.usage.wall_s:.3g} s" if self.usage else ""
        return ("finished" if self._exception is None else "failed") + took

    # -- the observer's side: called on the gateway's thread --------------------------------

    def placed(self, call: Call, node: str) -> None:
        """Take the news that the task starts."""
        self._node = node
        with self._condition:
            if self._state == _base.PENDING:
                self._state = _base.RUNNING

    def reported(self, call: Call, report: Report) -> None:
        """Take the report of one attempt."""
        self._node, self._report = report.node, report
        self._n_attempts += 1

    def finished(self, call: Call) -> None:
        """Take the news that the result exists."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it was cancelled
            self.set_result(None)  # type: ignore[arg-type]  # result() knows where the value is
            if call.has_value and type(call.value) is not Parcel:
                self._loaded = (call.value,)

    def failed(self, call: Call, error: BaseException) -> None:
        """Take the news that there will be no result."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it was cancelled
            self.set_exception(error)

    def memory(self) -> tuple[str | None, Report | None, int]:
        """Give what it has been told, for another process to `recall`."""
        return self._node, self._report, self._n_attempts

    def recall(self, memory: tuple[str | None, Report | None, int]) -> None:
        """Take what it was told in another process."""
        self._node, self._report, self._n_attempts = memory

    def catch_up(self) -> None:
        """Be as its call is, which has come to an end in another process."""
        call = self._call
        if call.error is not None:
            self.failed(call, call.error)
        elif call.has_value or call.remote is not None:
            self.finished(call)
        else:
            super().cancel()
            self.set_running_or_notify_cancel()

    def _invoke_callbacks(self) -> None:
        """Call back on a thread of their own: the gateway's must never wait for user code."""
        if self._done_callbacks:  # type: ignore[attr-defined]  # typeshed hides it
            _callbacks.put(super()._invoke_callbacks)  # type: ignore[misc]  # typeshed hides it
            _ensure_callback_thread()

    def _fetched(self) -> T:
        call = self._call
        value = call.value if call.has_value else self._gateway.fetch(call)
        if not isinstance(value, Parcel):
            return value  # type: ignore[no-any-return]  # a task in a thread returned it
        try:
            return value.load()  # type: ignore[no-any-return]  # whatever the task returned
        except Exception as error:  # the user's classes decide what unpickling raises
            raise RemoteError(
                self.name, type(error).__name__, str(error), traceback.format_exc()
            ) from error

    def _written(self, stream: Stream) -> str:
        inline = getattr(self._report, stream) if self._report else None
        if inline is not None:
            return bytes(inline).decode(errors="replace")
        return self._gateway.output(self._call, stream).decode(errors="replace")


class _RemoteTraceback(Exception):
    """Shows where an exception was raised on the node."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def _as_the_user_knows_it(carried: BaseException) -> BaseException:
    if isinstance(carried, TaskFailed):
        return _unpacked(carried.failure, carried.name)
    if isinstance(carried.__cause__, TaskFailed):
        carried.__cause__ = _unpacked(carried.__cause__.failure, carried.__cause__.name)
    return carried


def _unpacked(failure: Failure, name: str) -> BaseException:
    try:
        error = failure.exception.load()
    except Exception as problem:  # the user's classes decide what unpickling raises
        error = RemoteError(name, type(problem).__name__, failure.summary, failure.traceback)
    if failure.traceback and not isinstance(error, RemoteError):
        error.__cause__ = _RemoteTraceback(failure.traceback)
    return error  # type: ignore[no-any-return]  # packed as an exception


@contextlib.contextmanager
def lent(gateway: Gateway) -> Iterator[None]:
    """Lend the share of the running task out, if this is one, while it waits."""
    is_lent = gateway.lends and gateway.lend()
    try:
        yield
    finally:
        if is_lent:
            gateway.reclaim()


class _LendingWaiters(list[Any]):
    """Notices that `concurrent.futures.wait` or ``as_completed`` waits in a task, and lends."""

    def __init__(self, gateway: Any) -> None:
        super().__init__()
        self._gateway, self._lent_for = gateway, set[int]()

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        if self._gateway.lend():
            self._lent_for.add(id(waiter))

    def remove(self, waiter: Any) -> None:
        super().remove(waiter)
        if id(waiter) in self._lent_for:
            self._lent_for.discard(id(waiter))
            self._gateway.reclaim_soon()


_callbacks: queue.SimpleQueue[Any] = queue.SimpleQueue()
_callback_thread: threading.Thread | None = None
_callback_lock = threading.Lock()


def _ensure_callback_thread() -> None:
    global _callback_thread
    with _callback_lock:
        if _callback_thread is None or not _callback_thread.is_alive():
            _callback_thread = threading.Thread(
                target=_call_back, name="exadask-callbacks", daemon=True
            )
            _callback_thread.start()


def _call_back() -> None:
    while True:
        _callbacks.get()()
