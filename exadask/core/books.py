"""The nodes, the queue and the shares, kept consistent with each other."""

from __future__ import annotations

import math

from exadask.core.events import Resume
from exadask.core.ledger import NodeId, ShareId
from exadask.core.node import Held, HeldState, Node
from exadask.core.nodes import NodeIndex
from exadask.core.queue import TaskClass, WaitingQueue
from exadask.errors import InvalidTransition

__all__ = ["Books"]


class Books:
    """What `exadask.core.placement` knows; all that changes in one part is told to the others.

    Attributes
    ----------
    nodes : NodeIndex
        The nodes.
    queue : WaitingQueue
        The waiting tasks.
    held : dict of ShareId to Held
        All shares, oldest first.
    wanted : dict of NodeId to Node
        Nodes where lent shares are wanted back.
    confirm : list of ShareId
        Shares that are to be confirmed as they are.
    now : float
        The latest time that was told [s].
    has_news : bool
        Whether something happened that may let a task start.
    """

    def __init__(self) -> None:
        self.nodes = NodeIndex()
        self.queue = WaitingQueue()
        self.held: dict[ShareId, Held] = {}
        self.wanted: dict[NodeId, Node] = {}
        self.confirm: list[ShareId] = []
        self.now = -math.inf
        self.has_news = False
        self._n_shares = 0

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        self.nodes.check()
        self.queue.check()
        by_node = {
            share_id: held
            for node in self.nodes.by_id.values()
            for share_id, held in node.shares.items()
        }
        assert by_node == self.held, "the nodes and the shares disagree"
        assert set(self.wanted) == {n.name for n in self.nodes.by_id.values() if n.wanted}
        reserving = {cls.reserved: cls for _, cls in self.queue.order if cls.reserved is not None}
        reserved = {
            name: node.reserved_for
            for name, node in self.nodes.by_id.items()
            if node.reserved_for is not None
        }
        assert reserving == reserved, "the nodes and the reservations disagree"

    def tick(self, now: float) -> float:
        """Note the time, which never runs backwards; return it."""
        self.now = max(self.now, now)
        return self.now

    def new_share_id(self) -> ShareId:
        """Return a name that no share has had."""
        self._n_shares += 1
        return ShareId(self._n_shares - 1)

    def find(self, share_id: ShareId, event: str) -> Held | None:
        """Find a share; None if it is gone, so that the report is late.

        Raises
        ------
        InvalidTransition
            There never was such a share.
        """
        held = self.held.get(share_id)
        if held is None and not 0 <= share_id < self._n_shares:
            raise InvalidTransition(f"share {share_id}", event, "never given")
        return held

    def book(self, held: Held) -> None:
        """Enter a new share."""
        self.held[held.share.share_id] = held
        held.node.add(held)
        self.changed(held.node, has_gained=False)

    def enter(self, held: Held, state: HeldState) -> None:
        """Move a share to another state."""
        held.node.enter(held, state)
        self.note_wanted(held.node)

    def note_wanted(self, node: Node) -> None:
        """Note whether lent shares are wanted back on a node."""
        if node.wanted:
            self.wanted[node.name] = node
        else:
            self.wanted.pop(node.name, None)

    def changed(self, node: Node, *, has_gained: bool) -> None:
        """Bring the sets of nodes, and a reservation, up to date with a node."""
        if node.reserved_for is not None:
            before = node.reserved_start
            node.reserved_start = node.earliest_start(node.reserved_for, self.now)
            has_gained = has_gained or node.reserved_start > before
        self.nodes.update(node, has_gained=has_gained)

    def reserve(self, cls: TaskClass, node: Node, now: float) -> None:
        """Keep a node for the head of a class; nobody else is placed there."""
        cls.reserved, cls.reserved_since = node.name, now
        node.reserved_for = cls
        node.reserved_start = node.earliest_start(cls, now)
        self.nodes.update(node, has_gained=False)

    def drop_reservation(self, cls: TaskClass | None) -> None:
        """End the reservation of a class, if it has one; its node opens."""
        if cls is None or cls.reserved is None:
            return
        node = self.nodes.by_id[cls.reserved]
        cls.reserved = node.reserved_for = None
        node.reserved_start = math.inf
        self.has_news = True
        self.changed(node, has_gained=True)

    def resume(self) -> list[Resume]:
        """Give lent shares back that are wanted, on each node in the order of asking."""
        resumed = [
            Resume(share=self.held[share_id].share)
            for share_id in self.confirm
            if share_id in self.held and self.held[share_id].state is HeldState.HELD
        ]
        self.confirm.clear()
        for node in list(self.wanted.values()):
            while node.wanted and node.alone is None:
                held = self.held[node.wanted[0]]
                if held.alone and node.n_active:
                    break
                cores = min(held.request.cores, node.shape.cores)  # a charge may ask for more
                share = node.ledger.reclaim(held.share.share_id, cores)
                if share is None:
                    break
                self.enter(held, HeldState.HELD)
                held.share = share
                resumed.append(Resume(share=share))
                self.changed(node, has_gained=True)
        return resumed
