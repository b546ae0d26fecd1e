"""What clients ask the scheduler about a task, answered here or by the node that knows."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed import Scheduler

from exadask.core.ledger import TaskId
from exadask.errors import ExadaskError

if TYPE_CHECKING:
    from exadask.runtime.scheduler_plugin import HoldThenPlace


class Questions:
    """Answers about tasks.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Knows their states.
    plugin : HoldThenPlace
        Knows their places.
    """

    def __init__(self, scheduler: Scheduler, plugin: HoldThenPlace) -> None:
        self._scheduler, self._plugin = scheduler, plugin

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Give the answers by the names of the questions."""
        return {
            "exadask_explain": self.explain,
            "exadask_output": self.output,
            "exadask_save": self.save,
        }

    async def explain(self, key: str) -> str:
        """Say what a task waits for, or where it runs."""
        ts = self._scheduler.tasks.get(key)
        if ts is None:
            return "on its way to the scheduler"
        if ts.state == "waiting":
            names = sorted(self._name(one.key) for one in ts.waiting_on)
            return f"waiting for {len(names)} of its inputs: {', '.join(names[:5])}"
        if ts.state in ("no-worker", "processing"):
            where = self._where(TaskId(key))
            record = self._plugin.record_of(key) if ts.state == "no-worker" else None
            why = self._plugin.why_no_node_for(record) if record is not None else None
            return where if why is None else f"{where}; {why}"
        return str({"memory": "finished", "erred": "failed"}.get(ts.state, ts.state))

    def _where(self, key: TaskId) -> str:
        """Say what a task that waits for a share, or has one, waits for, or where it runs."""
        record = self._plugin.record_of(key)
        if record is not None and self._plugin.relay.is_heir(key):
            return f"next on node {record.node}, where a bundle is about to end"
        return self._plugin.placement.explain(key, asyncio.get_running_loop().time())

    async def output(self, key: str, stream: str, index: int | None = None) -> bytes:
        """Fetch what a task has written from the node where it ran last."""
        record = self._plugin.record_of(key)
        if record is None or record.node not in self._scheduler.workers:
            return b""
        written: bytes = await self._scheduler.rpc(record.node).exadask_output(
            key=key, stream=stream, index=index
        )
        return written

    async def save(self, key: str, **where: Any) -> None:
        """Let a node that has a result write it into a file.

        Raises
        ------
        LookupError
            No node has it any more.
        OSError
            It cannot be written.
        """
        ts = self._scheduler.tasks.get(key)
        holder = next(iter(ts.who_has or ()), None) if ts is not None else None
        if holder is None:
            raise LookupError(f"the result of {key} is gone")
        await self._scheduler.rpc(holder.address).exadask_save(key=key, **where)

    def _name(self, key: str) -> str:
        record = self._plugin.record_of(key)
        return record.name if record else key


def answered(question: Callable[..., Any]) -> Callable[..., Any]:
    """Let a client ask, see `DaskGateway.ask`: an error of exadask travels back as itself."""

    async def answer(**arguments: Any) -> bytes:
        try:
            told = question(**arguments)
            return pickle.dumps(await told if asyncio.iscoroutine(told) else told)
        except ExadaskError as error:
            return pickle.dumps(error)

    return answer
