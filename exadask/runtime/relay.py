"""Bundles that stand ready on a node, for the share of one that is about to end.

From the end of a bundle to the beginning of the next on its share, news pass from the node to the
scheduler and back: some milliseconds, in which the cores idle. So when a bundle is about to end,
the node says so, and the next one is sent ahead, as its *heir*: it begins when the other has ended,
and only then is the share its own. What has no heir is released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exadask.core.ledger import ShareId, TaskId
from exadask.core.placement import Placement

if TYPE_CHECKING:
    from exadask.runtime.scheduler_plugin import HoldThenPlace


class Relay:
    """Who follows whom.

    Parameters
    ----------
    placement : Placement
        Has the shares and the queue.
    plugin : HoldThenPlace
        Sends tasks to nodes.
    now : callable
        Tells the time of the placement [s].
    """

    def __init__(
        self, placement: Placement, plugin: HoldThenPlace, now: Callable[[], float]
    ) -> None:
        self._placement, self._plugin, self._now = placement, plugin, now
        self._heirs: dict[ShareId, TaskId] = {}
        self._share_of: dict[TaskId, ShareId] = {}

    def on_nearing(self, share: int, key: str, **_: object) -> None:
        """Send the bundle that follows one which is about to end ahead to its node."""
        record = self._plugin.record_of(key)
        if record is None or record.share is None or record.share.share_id != share:
            return
        heir = self._choose(record.share.share_id)
        if heir is not None and not self._plugin.begin_ahead(heir, record.share, after=key):
            self.forget(heir)

    def release(self, share: ShareId) -> None:
        """Take a share back, or give it to its heir."""
        heir = self._heirs.get(share)
        if heir is not None:
            self.forget(heir)
            passed_on = self._placement.pass_on(share, heir, self._now())
            self._plugin.take_over(heir, passed_on)
            if passed_on is not None:
                return
        self._placement.release(share)

    def dismiss(self, share: ShareId) -> None:
        """Send the heir of a share back: another has a better right to it."""
        heir = self._heirs.get(share)
        if heir is not None:
            self.forget(heir)
            self._plugin.take_over(heir, None)

    def is_heir(self, task: TaskId) -> bool:
        """Whether a task stands ready."""
        return task in self._share_of

    def forget(self, task: TaskId) -> None:
        """Note that a task is no heir any more: it is cancelled, or sent back, or has its share."""
        share = self._share_of.pop(task, None)
        if share is not None:
            del self._heirs[share]

    def clear(self) -> None:
        """Forget all heirs."""
        self._heirs.clear()
        self._share_of.clear()

    def _choose(self, share: ShareId) -> TaskId | None:
        if share in self._heirs:
            return None
        task = self._placement.successor(share, self._now())
        if task is None:
            return None
        self._heirs[share], self._share_of[task.task] = task.task, share
        return task.task
