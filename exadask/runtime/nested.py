"""Tasks that submit tasks: the agent's side and the child's side of it.

A task that waits for others lends its cores and GPUs out meanwhile, so that nested tasks can never
deadlock for want of the share that their parent holds.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from distributed import Client, Worker

from exadask.runtime.admission import Grant
from exadask.runtime.attempt import Attempt
from exadask.runtime.background import Background
from exadask.runtime.bundle_attempt import BundleAttempt
from exadask.runtime.call import LEAST_WINDOW, Call, Observer
from exadask.runtime.job import Answer, Ask, News, Report
from exadask.runtime.kind import Kind
from exadask.runtime.parcel import Parcel
from exadask.runtime.slot import Slot

AnyAttempt = Attempt | BundleAttempt
Lend = Callable[[AnyAttempt, Grant], None]
Reclaim = Callable[[AnyAttempt, Grant], Coroutine[Any, Any, None]]


class NestedService:
    """Answers what the tasks of a node ask of the cluster.

    Parameters
    ----------
    worker : distributed.Worker
        The node's worker.
    lend, reclaim : callable
        Give a waiting task's cores and GPUs back, and get them again.
    """

    def __init__(self, worker: Worker, lend: Lend, reclaim: Reclaim) -> None:
        self._worker, self._lend, self._reclaim = worker, lend, reclaim
        self._client: Client | None = None
        self._bundler: Any = None
        self._connecting = asyncio.Lock()
        self._calls: dict[AnyAttempt, dict[str, Call]] = {}
        self._kinds: weakref.WeakKeyDictionary[Slot, dict[int, Kind]] = weakref.WeakKeyDictionary()
        self._background = Background()

    def answer(self, ask: Ask, slot: Slot, attempt: AnyAttempt, grant: Grant) -> None:
        """Answer a child's question, in the background."""
        self._background.start(self._answer(ask, slot, attempt, grant))

    def forget_tasks_of(self, attempt: AnyAttempt) -> None:
        """Cancel and forget what a task has submitted and not waited for: it has ended."""
        for call in self._calls.pop(attempt, {}).values():
            self._bundler.cancel_now(call)

    async def close(self) -> None:
        """Let go of the cluster."""
        self._background.cancel()
        if self._client is not None:
            self._bundler.close("its node's agent has closed")
            await self._client.close()

    async def _answer(self, ask: Ask, slot: Slot, attempt: AnyAttempt, grant: Grant) -> None:
        try:
            value = await self._value(ask, slot, attempt, grant)
        except Exception as error:  # it is raised in the task that asked
            value = error
        if ask.verb != "submit":
            await slot.send(Answer(ask.ticket, value))
        elif isinstance(value, BaseException):
            await slot.send(News(ask.arguments[0], "failed", (value,)))

    async def _value(self, ask: Ask, slot: Slot, attempt: AnyAttempt, grant: Grant) -> Any:
        match ask.verb, ask.arguments:
            case "lend", ():
                return self._lend(attempt, grant)
            case "reclaim", ():
                return await self._reclaim(attempt, grant)
            case "submit", (_, int() as number, Kind() as kind, *_):
                # It comes with the first of its calls only, and is good for later tasks as well.
                self._kinds.setdefault(slot, {})[number] = kind
        bundler = await self._connected()
        if attempt.is_over:  # while the connection was made: nobody would end what it submits
            return None
        calls = self._calls.setdefault(attempt, {})
        match ask.verb, ask.arguments:
            case "submit", (key, number, _, arguments, inputs):
                known = tuple(calls[one] for one in inputs)
                call = calls[key] = Call(self._kinds[slot][number], arguments, known, key)
                return bundler.submit(call, _Relay(key, slot, self._background))
            case "forget", (key,):
                calls.pop(key, None)
                return None
            case verb, (key, *rest):
                call = calls[key]
        match verb:
            case "cancel":
                return bundler.cancel_now(call)
            case "fetch":
                value = await bundler.fetch_async(call)
                return value if isinstance(value, Parcel) else (value,)
            case "explain":
                return await bundler.explain_async(call)
            case "output":
                return await bundler.output_async(call, *rest)
        raise ValueError(f"a task asked its agent for {verb!r}")

    async def _connected(self) -> Any:
        from exadask.runtime.bundling import Bundler
        from exadask.runtime.gateway import DaskGateway  # it needs this node's agent itself

        async with self._connecting:
            if self._bundler is None:
                self._client = await Client(
                    self._worker.scheduler.address,
                    asynchronous=True,
                    set_as_default=False,
                    security=self._worker.security,
                    name="exadask-nested",
                )
                self._bundler = Bundler(DaskGateway(self._client))
        return self._bundler


class _Relay:
    """Tells a child what becomes of a task that it submitted."""

    wants_reports = True

    def __init__(self, key: str, slot: Slot, background: Background) -> None:
        self._key, self._slot, self._background = key, slot, background

    def placed(self, call: Call, node: str) -> None:
        self._tell("placed", node)

    def reported(self, call: Call, report: Report) -> None:
        self._tell("reported", report)

    def finished(self, call: Call) -> None:
        self._tell("finished", call.value, call.has_value)

    def failed(self, call: Call, error: BaseException) -> None:
        self._tell("failed", error)

    def cancel(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def _tell(self, verb: str, *arguments: object) -> None:
        self._background.start(self._slot.send(News(self._key, verb, arguments)))


class NestedGateway:
    """The cluster as seen from inside a task: every wish goes through the agent.

    Parameters
    ----------
    link : Link
        The child's link to its agent.
    """

    lends = True

    def __init__(self, link: Any) -> None:
        self._link = link
        self._calls: dict[str, Call] = {}
        self._kinds: dict[Kind, int] = {}
        self._answers: dict[int, Future[Any]] = {}
        self._tickets = itertools.count()
        link.listen(self._on_message)

    def submit(self, call: Call, observer: Observer) -> None:
        """Hand over a call; returns at once."""
        call.observer = observer
        self._calls[call.key] = call
        is_new = call.kind not in self._kinds
        number = self._kinds.setdefault(call.kind, len(self._kinds))
        inputs = tuple(one.key for one in call.inputs)
        kind = call.kind if is_new else None
        self._tell("submit", call.key, number, kind, call.arguments, inputs)

    def submit_all(self, calls: Sequence[Call], observer: Observer) -> None:
        """Hand over several calls; returns at once."""
        for call in calls:
            self.submit(call, observer)

    def cancel(self, call: Call) -> None:
        """End a call."""
        self._tell("cancel", call.key)

    def forget(self, call: Call) -> None:
        """Let the cluster drop a result."""
        if call.observer is None:
            self._tell("forget", call.key)

    def fetch(self, call: Call) -> Any:
        """Bring a result here; blocks."""
        value = self._ask("fetch", call.key)
        return value if isinstance(value, Parcel) else value[0]

    def explain(self, call: Call) -> str:
        """Say what a call waits for; blocks."""
        return str(self._ask("explain", call.key))

    def output(self, call: Call, stream: str) -> bytes:
        """Bring what a call has written; blocks."""
        return bytes(self._ask("output", call.key, stream))

    def window(self) -> int:
        """Say how many calls keep the cluster busy [calls]."""
        return LEAST_WINDOW

    def lend(self) -> bool:
        """Lend the share of this task out while it waits; only the task's own thread can.

        Returns
        -------
        bool
            Whether the caller must end it, by `reclaim` or `reclaim_soon`.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        self._link.n_waits += 1
        if self._link.n_waits == 1:
            self._tell("lend")
        return True

    def reclaim(self) -> None:
        """Wait until the share is back, unless the task still waits for something else."""
        self._link.n_waits -= 1
        if self._link.n_waits == 0:
            self._ask("reclaim")

    def reclaim_soon(self) -> None:
        """Ask for the share, and do not wait for it."""
        self._link.n_waits -= 1
        if self._link.n_waits == 0:
            self._tell("reclaim")

    def _ask(self, verb: str, *arguments: object) -> Any:
        ticket = next(self._tickets)
        answer: Future[Any] = Future()
        self._answers[ticket] = answer
        self._link.send(Ask(ticket, verb, arguments))
        return answer.result()

    def _tell(self, verb: str, *arguments: object) -> None:
        self._link.send(Ask(next(self._tickets), verb, arguments))

    def _on_message(self, message: Answer | News) -> None:
        if isinstance(message, Answer):
            answer = self._answers.pop(message.ticket, None)
            if answer is None:
                return
            if isinstance(message.value, BaseException):
                answer.set_exception(message.value)
            else:
                answer.set_result(message.value)
            return
        call = self._calls.get(message.key)
        if call is None or call.observer is None:
            return
        observer = call.observer
        match message.verb, message.arguments:
            case "finished", (value, is_here):
                call.value, call.has_value = value, is_here
                self._close(call)
                observer.finished(call)
            case "failed", (error,):
                call.error = error
                self._close(call)
                observer.failed(call, error)
            case verb, arguments:
                getattr(observer, verb)(call, *arguments)

    def _close(self, call: Call) -> None:
        del self._calls[call.key]
        call.observer = None
