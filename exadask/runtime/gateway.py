"""The way from this process to a cluster: a Dask client, used with as few messages as can be.

Calls that come close together travel as one graph (a graph of 50 costs a third of 50 graphs), and
results that are small arrive with the news of their completion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import dask
from dask._task_spec import Task, TaskRef
from distributed import Client, Future

from exadask.core.events import Offer
from exadask.errors import (
    ClusterLost,
    ClusterUnreachable,
    DependencyFailed,
    ExadaskError,
    ExecutorClosed,
)
from exadask.runtime.job import Observer, Report, Stream, Submission, TaskFailed
from exadask.runtime.node_agent import run_task
from exadask.runtime.parcel import Parcel
from exadask.runtime.segment import pickled_within_process

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_WINDOW_S = 0.002
_SEND_INTERVAL_S = 0.0005
_BROKEN = "the connection to the scheduler broke"
# Dask warns of large arguments as if they were a clumsy graph of its own.
_ANY_SIZE = {"distributed.admin.large-graph-warning-threshold": 2**62}


@dataclass(frozen=True, slots=True)
class PerKey:
    """An annotation whose value differs from key to key."""

    values: dict[str, Any]

    def __call__(self, key: str) -> Any:
        """Give the value of a key."""
        return self.values[key]


@dataclass(slots=True)
class _Entry:
    """What is known here about one task."""

    name: str
    inputs: tuple[str, ...]
    input_names: tuple[str, ...]  # their entries may go before this one
    observer: Observer | None
    submission: Submission | None
    future: Future | None = None
    held: list[Future] = field(default_factory=list)
    value: Parcel | None = None
    is_forgotten: bool = False


class DaskGateway:
    """Submits tasks through a Dask client and tells observers what becomes of them.

    Any thread may call it; observers are called on the client's loop.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self._is_within_process = client.scheduler.addr.startswith("inproc:")
        self._entries: dict[str, _Entry] = {}
        self._pending: deque[Submission] = deque()
        self._is_flush_due = False
        self._last_flush_s = 0.0
        self._is_closed = False
        self.offers: Sequence[Offer] = ()
        handlers = client._stream_handlers
        handlers["exadask-placed"] = self._on_placed
        handlers["exadask-report"] = self._on_report
        for op, react in (
            ("key-in-memory", self._on_memory),
            ("task-erred", self._on_erred),
            ("cancelled-keys", self._on_cancelled),
        ):
            handlers[op] = _followed_by(handlers[op], react)
        client.scheduler_comm.interval = _SEND_INTERVAL_S
        self._address, self._reconnect = client.scheduler.addr, client._reconnect
        client._reconnect = self._on_connection_lost

    def submit(self, submission: Submission, observer: Observer) -> None:
        """Hand over a task; returns at once."""
        job = submission.job
        names = tuple(self._name(key) for key in submission.inputs)
        entry = _Entry(job.name, submission.inputs, names, observer, submission)
        self._entries[job.key] = entry
        self._pending.append(submission)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon_threadsafe(self._schedule_flush)

    def cancel(self, key: str) -> None:
        """End a task, whether it waits or runs."""
        self._loop.call_soon_threadsafe(self._cancel, key)

    def forget(self, key: str) -> None:
        """Let the cluster drop a task's result once it is done."""
        if not self._is_closed:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._forget, key)

    def fetch(self, key: str) -> Any:
        """Bring a result here; blocks."""
        return self.run(self.fetch_async(key), "fetch a large result")

    async def fetch_async(self, key: str) -> Any:
        """Bring a result here."""
        entry = self._entries[key]
        if entry.value is not None:
            return entry.value
        if entry.future is None or entry.future.cancelled():
            raise ClusterLost(entry.name, _BROKEN)
        return await self.client.gather(entry.future, asynchronous=True)

    def explain(self, key: str) -> str:
        """Say what a task waits for; blocks."""
        return self.run(self.explain_async(key))

    async def explain_async(self, key: str) -> str:
        """Say what a task waits for."""
        await self.settle()
        answer: str = await self._call("exadask_explain", key=key)
        return answer

    def output(self, key: str, stream: Stream) -> bytes:
        """Bring what a task has written; blocks."""
        return self.run(self.output_async(key, stream), "fetch what a task has written")

    async def output_async(self, key: str, stream: Stream) -> bytes:
        """Bring what a task has written."""
        answer: bytes = await self._call("exadask_output", key=key, stream=stream)
        return answer

    def ask(self, question: str, **arguments: Any) -> Any:
        """Ask the scheduler one of exadask's questions; blocks.

        Raises
        ------
        ExadaskError
            It does not like the question, or cannot be reached.
        """
        answer = pickle.loads(self.run(self._call(question, **arguments)))
        if isinstance(answer, ExadaskError):
            raise answer
        return answer

    async def _call(self, question: str, **arguments: Any) -> Any:
        """Ask the scheduler, unless the connection to it is broken."""
        try:
            if self.client.status != "running":
                raise OSError(_BROKEN)
            return await getattr(self.client.scheduler, question)(**arguments)
        except OSError as error:
            advice = "Open a new Executor when it is there again."
            raise ClusterUnreachable(self._address, str(error), advice) from error

    def run(self, work: Coroutine[Any, Any, _T], what: str = "ask the cluster") -> _T:
        """Run a coroutine on the client's loop, and wait for it.

        Raises
        ------
        ExecutorClosed
            The connection has been closed.
        """
        if self._is_closed:
            work.close()
            raise ExecutorClosed(what)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def settle(self) -> None:
        """Send all that was submitted before."""
        if self._pending:
            self._flush()

    def close(self, reason: str) -> None:
        """Fail what is not done; on the client's loop."""
        self._is_closed = True
        self._lose_all(reason)
        self._entries.clear()

    def _lose_all(self, reason: str) -> None:
        for key, entry in list(self._entries.items()):
            if entry.observer is not None:
                self._finish(key, partial(_tell_failure, ClusterLost(entry.name, reason)))

    async def _on_connection_lost(self) -> None:
        """Fail what is not done: Dask cancels its own futures now, and tells nobody."""
        self._lose_all(_BROKEN)
        await self._reconnect()
        if self.client.status != "running":  # what was submitted meanwhile went nowhere
            self._lose_all(_BROKEN)

    def _schedule_flush(self) -> None:
        wait_s = self._last_flush_s + _WINDOW_S - time.monotonic()
        if wait_s > 0:
            self._loop.call_later(wait_s, self._flush)
        else:
            self._flush()

    def _flush(self) -> None:
        self._is_flush_due = False
        batch = []
        while self._pending:
            batch.append(self._pending.popleft())
        if not batch:
            return
        self._last_flush_s = time.monotonic()
        graph = {one.job.key: self._task(one) for one in batch}
        annotations = {
            "exadask": PerKey({one.job.key: self._annotation(one) for one in batch}),
            "priority": PerKey({one.job.key: one.priority for one in batch}),
            "retries": PerKey({one.job.key: one.retries for one in batch}),
        }
        way = pickled_within_process() if self._is_within_process else dask.config.set(_ANY_SIZE)
        try:
            with dask.annotate(**annotations), way:
                futures = self.client.get(graph, list(graph), sync=False, fifo_timeout=0)
        except Exception as error:  # whatever Dask raises: nobody else would tell the futures
            for one in batch:
                lost = ClusterLost(one.job.name, f"it could not be sent: {error}")
                lost.__cause__ = error
                self._finish(one.job.key, partial(_tell_failure, lost))
            return
        for one, future in zip(batch, futures, strict=True):
            entry = self._entries[one.job.key]
            entry.future = future
            entry.held = self._futures_of(one.inputs)

    @staticmethod
    def _task(submission: Submission) -> Task:
        inputs = (TaskRef(key) for key in submission.inputs)
        return Task(submission.job.key, run_task, submission.job, *inputs)

    def _annotation(self, submission: Submission) -> dict[str, Any]:
        job = submission.job
        return {
            "name": job.name,
            "client": self.client.id,
            "cores": job.request.cores,
            "gpu_units": job.request.gpu_units,
            "memory_bytes": job.request.memory_bytes,
            "time_s": job.request.time_s,
            "warm_key": job.setup.key if job.setup else None,
            "pool": submission.pool,
        }

    def _futures_of(self, keys: Iterable[str]) -> list[Future]:
        """Keep inputs alive until the scheduler knows that someone needs them."""
        known = (self._entries[key].future for key in keys if key in self._entries)
        return [future for future in known if future is not None]

    def _cancel(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is None:
            return
        self._flush()
        self.client._send_to_scheduler({"op": "exadask-cancel", "key": key})

    def _forget(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.observer is None:
            del self._entries[key]
        elif entry is not None:
            entry.is_forgotten = True

    def _on_placed(self, key: str, node: str) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.observer is not None:
            entry.held, entry.submission = [], None
            entry.observer.placed(node)

    def _on_report(self, report: bytes) -> None:
        news: Report = pickle.loads(report)
        entry = self._entries.get(news.key)
        if entry is None or entry.observer is None:
            return
        entry.observer.reported(news)
        if news.value is not None:
            entry.value = Parcel(news.value)
            self._finish(news.key, lambda observer: observer.finished(entry.value))

    def _on_memory(self, key: str, **_: object) -> None:
        self._finish(key, lambda observer: observer.finished(None))

    def _on_erred(self, key: str, **_: object) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.future is not None:
            error = self._translated(key, entry, entry.future._state.exception)
            self._finish(key, partial(_tell_failure, error))

    def _on_cancelled(self, keys: list[str], **_: object) -> None:
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                self._finish(key, partial(_tell_failure, self._unwanted(entry)))

    def _finish(self, key: str, tell: Callable[[Observer], None]) -> None:
        """Tell the observer the end of a task, once, and let go of what it kept alive."""
        entry = self._entries.get(key)
        if entry is None or entry.observer is None:
            return
        observer, entry.observer = entry.observer, None
        entry.held, entry.submission = [], None
        if entry.is_forgotten:
            del self._entries[key]
        tell(observer)

    def _translated(self, key: str, entry: _Entry, error: BaseException) -> BaseException:
        if isinstance(error, TaskFailed) and error.key == key:
            return error
        if isinstance(error, TaskFailed):
            chain, text = self._chain(key, error.key, error.name), error.failure.summary
        else:
            chain, text = (self._failed_input(key),), f"{type(error).__name__}: {error}"
        failed = DependencyFailed(entry.name, chain, text)
        failed.__cause__ = error
        return failed

    def _name(self, key: str) -> str:
        return self._entries[key].name if key in self._entries else str(key)

    def _failed_input(self, key: str) -> str:
        """Name the input that failed, where it was no task of ours."""
        inputs = self._entries[key].inputs
        states = ((one, self.client.futures.get(one)) for one in inputs)
        failed = [one for one, state in states if state is not None and state.status == "error"]
        return self._name([*failed, *inputs, key][0])

    def _chain(self, key: str, root: str, root_name: str) -> tuple[str, ...]:
        """Name the tasks from the inputs of one to the root of its failure."""
        path: list[str] = []
        while key != root and key in self._entries:
            leading = [one for one in self._entries[key].inputs if self._leads_to(one, root)]
            if not leading:
                break
            key = leading[0]
            if key != root:
                path.append(self._name(key))
        return (*path, root_name)

    def _leads_to(self, key: str, root: str) -> bool:
        if key == root:
            return True
        entry = self._entries.get(key)
        return entry is not None and any(self._leads_to(one, root) for one in entry.inputs)

    def _unwanted(self, entry: _Entry) -> BaseException:
        if entry.inputs:
            why = "it was cancelled, or its data is lost"
            return DependencyFailed(entry.name, entry.input_names[:1], why)
        return ClusterLost(entry.name, "the scheduler dropped it")


def _tell_failure(error: BaseException, observer: Observer) -> None:
    observer.failed(error)


def _followed_by(first: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    def both(**message: Any) -> None:
        first(**message)
        then(**message)

    return both
