"""What becomes of tasks that no node will ever run: an error that says why."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import TYPE_CHECKING

from exadask.core.events import Offer
from exadask.core.ledger import TaskId
from exadask.core.placement import WaitingTask
from exadask.errors import AllocationFailed, ExadaskError, ImpossibleRequest, NoNodeLeft
from exadask.runtime.job import Failure, TaskFailed
from exadask.runtime.parcel import Packer
from exadask.runtime.task_record import TaskRecord

if TYPE_CHECKING:
    from exadask.runtime.scheduler_plugin import HoldThenPlace


class LastResort:
    """Fails tasks that are held.

    Parameters
    ----------
    plugin : HoldThenPlace
        Has the records, the placement and the scheduler.

    Attributes
    ----------
    failures : list of (Offer, AllocationFailed)
        What closed pools offered, and why they are closed.
    """

    def __init__(self, plugin: HoldThenPlace) -> None:
        self._plugin = plugin
        self.failures: list[tuple[Offer, AllocationFailed]] = []

    def fail_hopeless(self) -> None:
        """Fail the waiting tasks that no node can ever run, connected or still to come."""
        placement = self._plugin.placement
        for task in placement.hopeless(asyncio.get_running_loop().time()):
            placement.withdraw(task)
            record = self._plugin.record_of(task)
            assert record is not None, "an unknown task waits"
            self.stop(record, task, self.why(record))

    def why(self, record: TaskRecord) -> ExadaskError:
        """Say why no node will ever run a task: its pool is closed, or it asks for too much."""
        for offer, failure in reversed(self.failures):
            if offer.fits(record.request, record.pool):
                return failure
        task = WaitingTask(
            task=TaskId(record.name), request=record.request, priority=(), pool=record.pool
        )
        try:
            self._plugin.placement.require_possible(task, asyncio.get_running_loop().time())
        except ImpossibleRequest as error:
            return error
        return NoNodeLeft(record.name, self._plugin.why_no_node_for(record) or "no node is left")

    def stop(self, record: TaskRecord, key: str, error: ExadaskError) -> None:
        """Fail a held task; Dask must first have finished the transition that led here."""
        what = type(error).__name__
        failure = Failure(exception=Packer().pack(error), summary=f"{what}: {error}", error=what)
        failed = pickle.dumps(TaskFailed(key, record.name, failure))
        asyncio.get_running_loop().call_soon(self._fail, key, failed)

    def _fail(self, key: str, failed: bytes) -> None:
        scheduler = self._plugin.scheduler
        ts = scheduler.tasks.get(key)
        if ts is None or ts.state != "no-worker":
            return
        stimulus = f"exadask-stop-{time.time()}"
        recommendations = scheduler.transition(
            key, "erred", stimulus_id=stimulus, cause=key, exception=failed
        )
        scheduler.transitions(recommendations, stimulus)
