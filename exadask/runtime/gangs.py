"""The gangs that run: tasks that hold shares of several nodes, of which Dask knows only the first.

Dask runs such a task on the node of its first part. The agents of the other nodes are told when it
has ended, for whatever reason; they end what is left of it there, and only their word gives their
shares back. A gang that loses any of its nodes waits for room again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from exadask.core.ledger import NodeId, Share
from exadask.runtime.task_record import TaskRecord, share_on_wire

if TYPE_CHECKING:
    from exadask.runtime.scheduler_plugin import HoldThenPlace

logger = logging.getLogger(__name__)


class Gangs:
    """Who holds which other nodes.

    Parameters
    ----------
    plugin : HoldThenPlace
        Has the records, and speaks with the nodes.
    """

    def __init__(self, plugin: HoldThenPlace) -> None:
        self._plugin = plugin
        self._placed: dict[str, TaskRecord] = {}

    def begin(self, key: str, record: TaskRecord, mates: Sequence[Share]) -> list[dict[str, Any]]:
        """Note the other nodes of a task that is placed; tell them for its first node."""
        record.mates = tuple(mates)
        if not mates:
            return []
        self._placed[key] = record
        return [
            {**share_on_wire(one), "address": self._plugin.roster.address_of(one.node)}
            for one in mates
        ]

    def end(self, key: str, record: TaskRecord) -> None:
        """Let the other nodes end what is left of a task; they say when their shares are free."""
        mates, record.mates = record.mates, ()
        if mates:
            del self._placed[key]
            for share in mates:
                self._plugin.drain(share)

    def forget(self, key: str, record: TaskRecord) -> None:
        """Note that Dask did not let a task go, so that it holds nothing."""
        record.mates = ()
        self._placed.pop(key, None)

    def on_broken(self, key: str, share: int, address: str, **_: object) -> None:
        """Take the word of a gang's first node that it has lost another one."""
        record = self._placed.get(key)
        node = self._plugin.roster.by_address.get(address)
        if record is None or record.share is None or record.share.share_id != share:
            return
        there = [one.node for one in record.mates if node in (None, one.node)]
        self._break(key, record, there[0] if there else record.mates[0].node)

    def lose(self, node: NodeId) -> None:
        """Let all gangs that had a part on a node wait for room again."""
        for key, record in list(self._placed.items()):
            if any(share.node == node for share in record.mates):
                self._break(key, record, node)

    def clear(self) -> None:
        """Let all that is left of all gangs end."""
        for key, record in list(self._placed.items()):
            self.end(key, record)

    def _break(self, key: str, record: TaskRecord, node: NodeId) -> None:
        logger.info("task %s lost node %s, and waits for others", record.name, node)
        record.lost_mate = node
        self._plugin.scheduler.transitions({key: "released"}, f"exadask-gang-{time.time()}")
        record.lost_mate = None
