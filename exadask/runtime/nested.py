"""Tasks that submit tasks: the agent's side and the child's side of it.

A task that waits for others lends its cores and GPUs out meanwhile, so that nested tasks can never
deadlock for want of the share that their parent holds.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from distributed import Client, Worker

from exadask.runtime.admission import Grant
from exadask.runtime.attempt import Attempt
from exadask.runtime.background import Background
from exadask.runtime.job import Answer, Ask, News, Report, Submission
from exadask.runtime.parcel import Parcel
from exadask.runtime.slot import Slot

Lend = Callable[[Attempt, Grant], None]
Reclaim = Callable[[Attempt, Grant], Coroutine[Any, Any, None]]


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
        self._gateway: Any = None
        self._connecting = asyncio.Lock()
        self._keys: dict[Attempt, set[str]] = {}
        self._background = Background()

    def answer(self, ask: Ask, slot: Slot, attempt: Attempt, grant: Grant) -> None:
        """Answer a child's question, in the background."""
        self._background.start(self._answer(ask, slot, attempt, grant))

    def forget_tasks_of(self, attempt: Attempt) -> None:
        """Cancel and forget what a task has submitted and not waited for: it has ended."""
        for key in self._keys.pop(attempt, ()):
            self._gateway.cancel(key)
            self._gateway.forget(key)

    async def close(self) -> None:
        """Let go of the cluster."""
        self._background.cancel()
        if self._client is not None:
            self._gateway.close("its node's agent has closed")
            await self._client.close()

    async def _answer(self, ask: Ask, slot: Slot, attempt: Attempt, grant: Grant) -> None:
        try:
            value = await self._value(ask, slot, attempt, grant)
        except Exception as error:  # it is raised in the task that asked
            value = error
        await slot.send(Answer(ask.ticket, value))

    async def _value(self, ask: Ask, slot: Slot, attempt: Attempt, grant: Grant) -> Any:
        match ask.verb, ask.arguments:
            case "lend", ():
                return self._lend(attempt, grant)
            case "reclaim", ():
                return await self._reclaim(attempt, grant)
        gateway = await self._connected()
        match ask.verb, ask.arguments:
            case "submit", (Submission() as submission,):
                self._keys.setdefault(attempt, set()).add(submission.job.key)
                return gateway.submit(submission, self._relay(submission, slot))
            case "cancel", (str() as key,):
                return gateway.cancel(key)
            case "forget", (str() as key,):
                self._keys.get(attempt, set()).discard(key)
                return gateway.forget(key)
            case "fetch", (str() as key,):
                value = await gateway.fetch_async(key)
                return value if isinstance(value, Parcel) else (value,)
            case "explain", (str() as key,):
                return await gateway.explain_async(key)
            case "output", (str() as key, stream):
                return await gateway.output_async(key, stream)
        raise ValueError(f"a task asked its agent for {ask.verb!r}")

    def _relay(self, submission: Submission, slot: Slot) -> _Relay:
        return _Relay(submission.job.key, slot, self._background)

    async def _connected(self) -> Any:
        from exadask.runtime.gateway import DaskGateway  # it needs this node's agent itself

        async with self._connecting:
            if self._gateway is None:
                self._client = await Client(
                    self._worker.scheduler.address,
                    asynchronous=True,
                    set_as_default=False,
                    security=self._worker.security,
                    name="exadask-nested",
                )
                self._gateway = DaskGateway(self._client)
        return self._gateway


class _Relay:
    """Tells a child what becomes of a task that it submitted."""

    def __init__(self, key: str, slot: Slot, background: Background) -> None:
        self._key, self._slot, self._background = key, slot, background

    def placed(self, node: str) -> None:
        self._tell("placed", node)

    def reported(self, report: Report) -> None:
        self._tell("reported", report)

    def finished(self, value: Parcel | None) -> None:
        self._tell("finished", value)

    def failed(self, error: BaseException) -> None:
        self._tell("failed", error)

    def _tell(self, verb: str, *arguments: object) -> None:
        self._background.start(self._slot.send(News(self._key, verb, arguments)))


class NestedGateway:
    """The cluster as seen from inside a task: every wish goes through the agent.

    Parameters
    ----------
    link : Link
        The child's link to its agent.
    """

    def __init__(self, link: Any) -> None:
        self._link = link
        self._observers: dict[str, Any] = {}
        self._answers: dict[int, Future[Any]] = {}
        self._tickets = itertools.count()
        link.listen(self._on_message)

    def submit(self, submission: Submission, observer: Any) -> None:
        """Hand over a task; returns when the agent has it."""
        self._observers[submission.job.key] = observer
        self._ask("submit", submission)

    def cancel(self, key: str) -> None:
        """End a task."""
        self._tell("cancel", key)

    def forget(self, key: str) -> None:
        """Let the cluster drop a result."""
        self._tell("forget", key)

    def fetch(self, key: str) -> Any:
        """Bring a result here; blocks."""
        value = self._ask("fetch", key)
        return value if isinstance(value, Parcel) else value[0]

    def explain(self, key: str) -> str:
        """Say what a task waits for; blocks."""
        return str(self._ask("explain", key))

    def output(self, key: str, stream: str) -> bytes:
        """Bring what a task has written; blocks."""
        return bytes(self._ask("output", key, stream))

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
        is_last = message.verb in ("finished", "failed")
        observers = self._observers
        observer = observers.pop(message.key, None) if is_last else observers.get(message.key)
        if observer is not None:
            getattr(observer, message.verb)(*message.arguments)
