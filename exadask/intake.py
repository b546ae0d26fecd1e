"""From a callable and its arguments to a call that is handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exadask.core.events import Offer, WaitingTask
from exadask.core.ledger import TaskId
from exadask.core.nodes import NodeIndex
from exadask.core.prospects import check_possible
from exadask.errors import InvalidRequest
from exadask.future import Future
from exadask.journal.learning import Learned
from exadask.journal.run import RunJournal, checkpoint_of
from exadask.packing import Kinds, TaskPacker
from exadask.runtime.call import Call, Gateway, Observer

if TYPE_CHECKING:
    from distributed import Client


class Intake:
    """Takes what a user submits to one executor, which locks it.

    Parameters
    ----------
    gateway : Gateway
        The way to the cluster.
    segment_bytes : int
        Buffers from this size go to shared memory [bytes].
    runs : Path, optional
        The folder of the runs from which ``memory="auto"`` learns.
    client : callable
        Gives the Dask client whose futures may be arguments; None if there is none.

    Attributes
    ----------
    journal : RunJournal or None
        Where is written what happens, and where results are found again.
    """

    def __init__(
        self,
        gateway: Gateway,
        segment_bytes: int,
        runs: Path | None,
        client: Callable[[], Client | None],
    ) -> None:
        self._gateway, self._client = gateway, client
        self._kinds, self._learned = Kinds(segment_bytes), Learned(runs)
        self.journal: RunJournal | None = None

    def packer(self, task: Any) -> TaskPacker:
        """Give what packs the calls of a task.

        Raises
        ------
        ImpossibleRequest
            No node is large enough.
        """
        offers: Sequence[Offer] = getattr(self._gateway, "offers", ())
        packer = self._kinds.packer(self._learned.resolved(task, offers))
        if offers and packer.possible_on is not offers:
            name, request, pool = packer.kind.name, packer.kind.request, packer.kind.pool
            task = WaitingTask(task=TaskId(name), request=request, priority=(), pool=pool)
            check_possible(NodeIndex(), offers, task, now=0.0)
            packer.possible_on = offers
        return packer

    def call(self, packer: TaskPacker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Pack a call, and name what it computes if its result may be found again."""
        call = packer.call(args, kwargs, self._input_of)
        if self.journal is not None and self._wants(packer):
            self.journal.remembered.identify(call, packer.task, args, kwargs)
            call.check = getattr(packer.task.function, "is_whole", None)
        if call.kind.checkpoint:
            call.checkpoint = checkpoint_of(call, self.journal)
        return call

    def calls(self, packer: TaskPacker, arguments: Iterator[tuple[Any, ...]]) -> Iterator[Call]:
        """Pack calls as they are asked for."""
        if packer.kind.checkpoint or self._wants(packer):
            return (self.call(packer, args, {}) for args in arguments)
        return packer.calls(arguments, self._input_of)

    def data(self, value: object) -> Call:
        """Pack a value that calls share."""
        call = self._kinds.data(value)
        if self.journal is not None:
            self.journal.remembered.identify_value(call, value)
        return call

    def submit(self, call: Call) -> Future[Any]:
        """Hand a call over, unless its result is there already."""
        future: Future[Any] = Future(self._gateway, call)
        if call.digest is not None and self.journal is not None and self.journal.find(call):
            future.finished(call)
        else:
            self._gateway.submit(call, future)
        return future

    def submit_all(self, calls: Sequence[Call], observer: Observer) -> None:
        """Hand calls of one kind over, but for those whose results are there already."""
        if self.journal is not None:
            calls = [one for one in calls if one.digest is None or not self.journal.find(one)]
        if calls and not any(call.inputs for call in calls):
            self._gateway.submit_all(calls, observer)
            return
        for call in calls:
            self._gateway.submit(call, observer)

    def _wants(self, packer: TaskPacker) -> bool:
        return self.journal is not None and self.journal.remembered.wants(packer.kind)

    def _input_of(self, future: Any, name: str) -> Any:
        """Give what the value of a future among the arguments comes from."""
        if isinstance(future, Future):
            if future._gateway is not self._gateway:
                raise InvalidRequest(
                    f"task {name!r} got the future of {future.name!r}, which belongs to another "
                    "executor (perhaps one that is closed).",
                    "Pass its result() instead.",
                )
            return future._call
        client = self._client()
        if client is None or future.client.scheduler.addr != client.scheduler.addr:
            raise InvalidRequest(
                f"task {name!r} got the Dask future {future.key!r} of another cluster.",
                "Pass its result() instead, or make it with Executor.client.",
            )
        return future
