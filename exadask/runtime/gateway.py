"""The way from this process to a scheduler: a Dask client, used with as few messages as can be.

What is sent together travels as one graph (a graph of 50 tasks costs a third of 50 graphs), and
small results arrive with the news of their completion. `exadask.runtime.bundling` decides what is
sent when, and knows the calls; here there are only tasks of Dask's.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import dask
from dask._task_spec import Task, TaskRef
from distributed import Client, Future

from exadask.core.events import Offer
from exadask.errors import ClusterLost, ClusterUnreachable, ExadaskError, ExecutorClosed
from exadask.runtime.call import Seat
from exadask.runtime.job import Bundle, Data, Job, Report, Stream
from exadask.runtime.node_agent import keep_data, run_bundle, run_task
from exadask.runtime.parcel import Parcel
from exadask.runtime.segment import pickled_within_process

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_SEND_INTERVAL_S = 0.0005
_ANSWER_S = 60.0
_BROKEN = "the connection to the scheduler broke"
# Dask warns of large arguments as if they were a clumsy graph of its own.
_ANY_SIZE = {"distributed.admin.large-graph-warning-threshold": 2**62}


class TaskObserver(Protocol):
    """Who wants to know what becomes of a task of Dask's; called on the client's loop."""

    def placed(self, seat: Seat) -> None:
        """Take the news that it has a share of a node and starts."""

    def reported(self, report: Report) -> None:
        """Take the report of one attempt."""

    def progressed(self, items: Sequence[bytes], returned: Sequence[int]) -> None:
        """Take results of a bundle, and what of it will not be run."""

    def dissolved(self, *, is_suspect: bool) -> None:
        """Take the news that a bundle is gone with its node, and will not be placed again."""

    def finished(self) -> None:
        """Take the news that its result is in the cluster."""

    def failed(self, error: BaseException) -> None:
        """Take the news that it will never have a result."""


@dataclass(slots=True, kw_only=True, eq=False)
class Submission:
    """A task on its way to the scheduler.

    Parameters
    ----------
    work : Job, Bundle or Data
        What to run.
    observer : TaskObserver
        Who wants to know.
    inputs : tuple of Parcel or distributed.Future
        The values that its arguments lack.
    retries : int
        Attempts after the first that may follow an exception.
    future : distributed.Future or None
        Keeps it in the cluster; there is one once it is sent.
    """

    work: Job | Bundle | Data
    observer: TaskObserver
    inputs: tuple[Parcel | Future, ...] = ()
    retries: int = 0
    future: Future | None = None

    @property
    def key(self) -> str:
        """Its name in the cluster."""
        return self.work.key


_RUN: dict[type, Callable[..., Any]] = {Job: run_task, Bundle: run_bundle, Data: keep_data}


@dataclass(frozen=True, slots=True)
class _PerKey:
    """An annotation whose value differs from key to key."""

    values: dict[str, Any]

    def __call__(self, key: str) -> Any:
        """Give the value of a key."""
        return self.values[key]


class DaskGateway:
    """Sends tasks through a Dask client and tells observers what becomes of them.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self.is_within_process = client.scheduler.addr.startswith("inproc:")
        self._live: dict[str, Submission] = {}
        self._is_closed = False
        self.offers: Sequence[Offer] = ()
        self.on_slots: Callable[[Sequence[Sequence[int]]], None] = _ignore
        self.on_lost: Callable[[], None] = _do_nothing
        self._held: list[tuple[Callable[..., None], dict[str, Any]]] | None = None
        handlers = client._stream_handlers
        handlers["exadask-placed"] = self._unless_held(self._on_placed)
        handlers["exadask-report"] = self._unless_held(self._on_report)
        handlers["exadask-progress"] = self._unless_held(self._on_progress)
        handlers["exadask-dissolved"] = self._unless_held(self._on_dissolved)
        handlers["exadask-slots"] = self._on_slots
        for op, react in (
            ("key-in-memory", self._on_memory),
            ("task-erred", self._on_erred),
            ("cancelled-keys", self._on_cancelled),
        ):
            handlers[op] = _followed_by(handlers[op], self._unless_held(react))
        client.scheduler_comm.interval = _SEND_INTERVAL_S
        self._address, self._reconnect = client.scheduler.addr, client._reconnect
        client._reconnect = self._on_connection_lost

    # -- on the client's loop ---------------------------------------------------------------

    def send(self, batch: Sequence[Submission]) -> None:
        """Send tasks as one graph."""
        if not batch:
            return
        self._live.update((one.key, one) for one in batch)
        graph = {one.key: self._task(one) for one in batch}
        annotations = {
            "exadask": _PerKey({one.key: self._annotation(n, one) for n, one in enumerate(batch)}),
            "priority": _PerKey({one.key: one.work.kind.priority for one in batch}),
            "retries": _PerKey({one.key: one.retries for one in batch}),
        }
        way = pickled_within_process() if self.is_within_process else dask.config.set(_ANY_SIZE)
        try:
            with dask.annotate(**annotations), way:
                futures = self.client.get(graph, list(graph), sync=False, fifo_timeout=0)
        except Exception as error:  # whatever Dask raises: nobody else would tell the observers
            for one in batch:
                lost = ClusterLost(one.work.kind.name, f"it could not be sent: {error}")
                lost.__cause__ = error
                self._fail(one.key, lost)
            return
        for one, future in zip(batch, futures, strict=True):
            one.future = future

    def listen(self, op: str, react: Callable[..., None]) -> None:
        """Let somebody take a kind of message from the scheduler."""
        self.client._stream_handlers[op] = react

    def hold(self) -> None:
        """Take no news of tasks until `resume`: some are of tasks that are not known here yet."""
        self._held = []

    async def want(self, keys: Sequence[str]) -> dict[str, Future]:
        """Keep results and tasks in the cluster that another client has wanted until now.

        Returns
        -------
        dict of str to distributed.Future
            Those that are there.
        """
        found = await self.call("exadask_want", client=self.client.id, keys=list(keys))
        return {key: Future(key, self.client) for key in found}

    def submissions(self) -> list[Submission]:
        """Give the tasks that were sent and have not come to their end."""
        return list(self._live.values())

    def observe(self, sent: Iterable[Submission]) -> None:
        """Tell observers what becomes of tasks that another client has sent."""
        self._live.update((one.key, one) for one in sent)

    def resume(self) -> None:
        """Take the news that were held."""
        held, self._held = self._held or [], None
        for react, message in held:
            react(**message)

    def cancel(self, key: str) -> None:
        """End a task, whether it waits or runs."""
        self.tell("exadask-cancel", key=key)

    def drop(self, key: str, index: int) -> None:
        """Take a call out of a bundle, or end it if it runs."""
        self.tell("exadask-drop", key=key, index=index)

    def tell(self, op: str, **message: Any) -> None:
        """Send the scheduler a message."""
        if self.client.status == "running":
            self.client._send_to_scheduler({"op": op, **message})

    async def gather(self, future: Future | None, name: str) -> Any:
        """Bring a result here.

        Raises
        ------
        ClusterLost
            It is gone.
        """
        if future is None or future.cancelled():
            raise ClusterLost(name, _BROKEN)
        return await self.client.gather(future, asynchronous=True)

    async def explain(self, key: str) -> str:
        """Say what a task waits for."""
        answer: str = await self._answer("exadask_explain", key=key)
        return answer

    async def output(self, key: str, stream: Stream, index: int | None) -> bytes:
        """Bring what a task has written, or a call of a bundle."""
        answer: bytes = await self._answer("exadask_output", key=key, stream=stream, index=index)
        return answer

    async def call(self, question: str, **arguments: Any) -> Any:
        """Ask the scheduler.

        Raises
        ------
        ClusterUnreachable
            The connection to it is broken.
        """
        try:
            if self.client.status != "running":
                raise OSError(_BROKEN)
            return await getattr(self.client.scheduler, question)(**arguments)
        except OSError as error:
            advice = "Open a new Executor when it is there again."
            raise ClusterUnreachable(self._address, str(error), advice) from error

    async def _answer(self, question: str, **arguments: Any) -> Any:
        """Ask what has a short answer: a scheduler that was stopped gives none, and no error."""
        try:
            return await asyncio.wait_for(self.call(question, **arguments), _ANSWER_S)
        except asyncio.TimeoutError as error:
            raise ClusterUnreachable(
                self._address,
                f"no answer in {_ANSWER_S:g} s",
                "It may be stopped, or very busy. Try again; tasks go on when it does.",
            ) from error

    def close(self, reason: str) -> None:
        """Fail what is not done."""
        self._is_closed = True
        self._lose_all(reason)

    # -- on other threads -------------------------------------------------------------------

    def ask(self, question: str, **arguments: Any) -> Any:
        """Ask the scheduler one of exadask's questions; blocks.

        Raises
        ------
        ExadaskError
            It does not like the question, or cannot be reached.
        """
        answer = pickle.loads(self.run(self._answer(question, **arguments)))
        if isinstance(answer, ExadaskError):
            raise answer
        return answer

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
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    # -- news -------------------------------------------------------------------------------

    async def _on_connection_lost(self) -> None:
        """Fail what is not done: Dask cancels its own futures now, and tells nobody."""
        self._lose_all(_BROKEN)
        self.on_lost()
        await self._reconnect()
        if self.client.status != "running":  # what was submitted meanwhile went nowhere
            self._lose_all(_BROKEN)

    def _unless_held(self, react: Callable[..., None]) -> Callable[..., None]:
        def take(**message: Any) -> None:
            if self._held is None:
                react(**message)
            else:
                self._held.append((react, message))

        return take

    def _lose_all(self, reason: str) -> None:
        for key, one in list(self._live.items()):
            self._fail(key, ClusterLost(one.work.kind.name, reason))

    def _fail(self, key: str, error: BaseException) -> None:
        gone = self._live.pop(key, None)
        if gone is not None:
            gone.observer.failed(error)

    @staticmethod
    def _task(submission: Submission) -> Task:
        run = _RUN[type(submission.work)]
        inputs = [one if isinstance(one, Parcel) else TaskRef(one.key) for one in submission.inputs]
        return Task(submission.key, run, submission.work, *inputs)

    def _annotation(self, order: int, submission: Submission) -> dict[str, Any]:
        kind = submission.work.kind
        return {
            "name": kind.name,
            "client": self.client.id,
            "order": order,
            "cores": kind.request.cores,
            "gpu_units": kind.request.gpu_units,
            "memory_bytes": kind.request.memory_bytes,
            "time_s": kind.request.time_s,
            "parts": kind.request.parts,
            "is_apart": kind.request.is_apart,
            "warm_key": kind.setup.key if kind.setup else None,
            "pool": kind.pool,
            "is_bundle": isinstance(submission.work, Bundle),
        }

    def _on_placed(
        self,
        key: str,
        node: str,
        cores: Sequence[int],
        gpus: Sequence[str],
        mates: Sequence[str] = (),
    ) -> None:
        one = self._live.get(key)
        if one is not None:
            one.observer.placed(Seat(node, tuple(cores), tuple(gpus), tuple(mates)))

    def _on_report(self, key: str, report: bytes) -> None:
        one = self._live.get(key)
        if one is not None:
            one.observer.reported(pickle.loads(report))

    def _on_progress(self, key: str, items: bytes, returned: Sequence[int]) -> None:
        one = self._live.get(key)
        if one is not None:
            one.observer.progressed(pickle.loads(items), returned)

    def _on_dissolved(self, key: str, is_suspect: bool) -> None:
        one = self._live.pop(key, None)
        if one is not None:
            one.observer.dissolved(is_suspect=is_suspect)

    def _on_slots(self, slots: Sequence[Sequence[int]]) -> None:
        self.on_slots(slots)

    def _on_memory(self, key: str, **_: object) -> None:
        one = self._live.pop(key, None)
        if one is not None:
            one.observer.finished()

    def _on_erred(self, key: str, **_: object) -> None:
        one = self._live.get(key)
        if one is not None and one.future is not None:
            self._fail(key, one.future._state.exception)

    def _on_cancelled(self, keys: Iterable[str], **_: object) -> None:
        for key in keys:
            one = self._live.get(key)
            if one is not None:
                self._fail(key, ClusterLost(one.work.kind.name, "the scheduler dropped it"))


def _ignore(_: object) -> None:
    """Nobody wants to know."""


def _do_nothing() -> None:
    """Nobody minds."""


def _followed_by(first: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    def both(**message: Any) -> None:
        first(**message)
        then(**message)

    return both
