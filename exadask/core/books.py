"""The nodes, the queue and the shares, kept consistent with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exadask.core.events import Resume
from exadask.core.ledger import NodeId, ShareId
from exadask.core.node import Held, HeldState, Node, Seat
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
        reserving = {name: cls for _, cls in self.queue.order for name in cls.reserved}
        reserved = {
            name: node.reserved_for
            for name, node in self.nodes.by_id.items()
            if node.reserved_for is not None
        }
        assert reserving == reserved, "the nodes and the reservations disagree"
        for cls in reserving.values():
            starts = [self.nodes.by_id[name].seat_start for name in cls.reserved]
            assert cls.reserved_start == max(starts), "the start of a reservation is wrong"
            nodes = [self.nodes.by_id[name] for name in cls.reserved]
            assert cls.reserved_mask == sum(node.bit for node in nodes), "reserved bits"
            assert cls.reserved_until <= min(node.ends_at for node in nodes), "reserved time"

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
        cls = node.reserved_for
        if cls is not None:
            was, before = node.seat_start, cls.reserved_start
            node.seat_start = node.earliest_start(node.reserved_seat, self.now, alone=cls.alone)
            if node.seat_start >= before:
                cls.reserved_start = node.seat_start
            elif was == before:  # the last of them: another is that now
                cls.reserved_start = self._start_of(cls)
            if cls.reserved_start > before:  # there is more time for others, on all its nodes
                has_gained = True
                self.nodes.fresh |= cls.reserved_mask
        self.nodes.update(node, has_gained=has_gained)

    def reserve(self, cls: TaskClass, seats: Sequence[Seat], now: float) -> None:
        """Keep nodes for the head of a class; nobody else is placed there."""
        for node, _ in seats:
            self.drop_reservation(node.reserved_for)
        cls.reserved, cls.reserved_since = tuple(node.name for node, _ in seats), now
        for node, seat in seats:
            node.reserved_for, node.reserved_seat = cls, seat
            node.seat_start = node.earliest_start(seat, now, alone=cls.alone)
            self.nodes.update(node, has_gained=False)
        cls.reserved_start = self._start_of(cls)
        cls.reserved_mask = sum(node.bit for node, _ in seats)
        cls.reserved_until = min(node.ends_at for node, _ in seats)

    def drop_reservation(self, cls: TaskClass | None) -> None:
        """End the reservation of a class, if it has one; its nodes open."""
        if cls is None or not cls.reserved:
            return
        names, cls.reserved, cls.reserved_mask = cls.reserved, (), 0
        cls.reserved_start = math.inf
        self.has_news = True
        for name in names:
            node = self.nodes.by_id[name]
            node.reserved_for, node.seat_start = None, math.inf
            self.changed(node, has_gained=True)

    def can_keep(self, cls: TaskClass, fresh: int) -> bool:
        """Whether the nodes that are reserved for a class, if any, can still ever run its head.

        Parameters
        ----------
        cls : TaskClass
            The class.
        fresh : int
            The nodes that have changed since this was asked last.
        """
        if self.now + (cls.request.time_s or 0.0) > cls.reserved_until:
            return not cls.reserved
        changed = self.nodes.members(cls.reserved_mask & fresh)
        return all(one.could_ever_start(one.reserved_seat, self.now) for one in changed)

    def _start_of(self, cls: TaskClass) -> float:
        return max(self.nodes.by_id[name].seat_start for name in cls.reserved)

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
