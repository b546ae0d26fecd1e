"""Which bundles are asked to end early, so that a task of higher priority need not wait for them.

A *bundle* is one task that makes many short calls: asked to *yield*, it ends before its next call,
and what it has not called comes back as another task. So a waiting task need not wait for the rest
of a bundle whose user priority is lower than its own.

**Who is asked.** For a blocked task, bundles of strictly lower priority on one node, whose shares
together with what is free there make it fit: those of the lowest priority first, and of these as
few as will do. Each share is asked once. What was asked is *promised* to the task: it is not asked
for again, nor for another task, until it is released. If the task finds room elsewhere, the promise
lapses, and the share is the first to be promised to the next.

**Keeping room.** Where a single share is all that the task needs, the task is first in line when it
is released. Otherwise others would take what becomes free piece by piece; so the node is reserved
for the task's class until all that was asked has come. A class has one such node at a time.

**Cost.** Nothing (one comparison) unless a class waits whose head has a higher priority than some
bundle. Then a dispatch looks at most at `_N_LOOKS` nodes in vain; a node that cannot help a class
is not looked at again for it until it has changed; and at most `_N_PROMISES` promises are open.
Tasks that must run alone and gangs are not served: all of a node, or bundles of many nodes, would
have to end for them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from exadask.core.books import Books
from exadask.core.events import WaitingTask, Yield
from exadask.core.ledger import ShareId, TaskId
from exadask.core.node import Held, HeldState, Node, Seat, units_fit
from exadask.core.queue import TaskClass, user_priority

__all__ = ["Yielding"]

_N_LOOKS = 16
_N_PROMISES = 64
_N_COMPARED = 8
"""Of how many nodes that would do the one is chosen where fewest bundles are asked."""


class _Level:
    """The bundles of one user priority that nobody has been promised, counted by node."""

    __slots__ = ("counts", "mask")

    def __init__(self) -> None:
        self.mask = 0
        self.counts: dict[int, int] = {}

    def add(self, node: Node) -> None:
        """Count a bundle."""
        before = self.counts.get(node.slot, 0)
        self.counts[node.slot] = before + 1
        if not before:
            self.mask |= node.bit

    def remove(self, node: Node) -> None:
        """Count a bundle no more."""
        self.counts[node.slot] -= 1
        if not self.counts[node.slot]:
            del self.counts[node.slot]
            self.mask ^= node.bit


@dataclass(slots=True, kw_only=True, eq=False)
class _Promise:
    """What will come to a waiting task: shares on one node that were asked to yield."""

    task: TaskId
    cls: TaskClass
    node: Node
    is_kept: bool
    pending: set[ShareId] = field(default_factory=set)


@dataclass(slots=True, kw_only=True, eq=False)
class _Struck:
    """Nodes that cannot help a class while its head has this priority, or a lower one."""

    priority: int
    mask: int = 0


class Yielding:
    """The bundles that run, and what they were asked.

    Parameters
    ----------
    books : Books
        The nodes, the queue and the shares; nodes are reserved there.

    Notes
    -----
    It must be told of every share that is booked, lent, resumed or gone, and of every task that no
    longer waits.
    """

    def __init__(self, books: Books) -> None:
        self._books, self._nodes, self._queue = books, books.nodes, books.queue
        self._levels: dict[int, _Level] = {}
        self._order: list[int] = []  # the keys of `_levels`; the last is the lowest priority
        self._on_node: dict[int, dict[ShareId, Held]] = {}  # by slot; those that `_levels` count
        self._promises: dict[TaskId, _Promise] = {}
        self._kept: dict[TaskClass, _Promise] = {}
        self._n_promised_on: dict[int, int] = {}
        self._came: list[_Promise] = []
        self._struck: dict[TaskClass, _Struck] = {}
        self._changed = 0

    # -- what happens -----------------------------------------------------------------------

    def enter(self, held: Held) -> None:
        """Note that a share is held now; nothing is done unless it is a bundle's."""
        if not held.is_bundle or held.promised_to is not None:
            return
        priority, node, share_id = held.priority, held.node, held.share.share_id
        there = self._on_node.setdefault(node.slot, {})
        if share_id in there:
            return
        there[share_id] = held
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
            insort(self._order, priority)
        level.add(node)
        self._note_change(node)

    def leave(self, held: Held) -> None:
        """Note that a share is about to be lent or released, or goes with its node."""
        if not held.is_bundle or held.state is not HeldState.HELD:
            return
        if held.promised_to is None:
            self._uncount(held)
            return
        promise = self._promises[held.promised_to]
        held.promised_to = None
        promise.pending.discard(held.share.share_id)
        if not promise.pending:
            self._came.append(promise)

    def forget(self, task: TaskId) -> None:
        """Note that a task does not wait any more: it was placed, or withdrawn."""
        if self._promises and task in self._promises:
            self._end(self._promises[task])

    # -- what is decided --------------------------------------------------------------------

    def settle(self) -> bool:
        """End promises that were kept in vain; return whether a node was opened by that."""
        has_opened = False
        for promise in self._came:
            if self._promises.get(promise.task) is promise:
                has_opened |= self._end(promise)
        self._came.clear()
        return has_opened

    def commands(self, now: float, fresh: int) -> list[Yield]:
        """Ask bundles to yield; all that fits somewhere must have been placed.

        Parameters
        ----------
        now : float
            The time [s].
        fresh : int
            The nodes that gained room since the last call.
        """
        order = self._queue.order
        if not self._order or not order or order[0][0][0] >= self._order[-1]:
            self._struck.clear()
            return []
        self._reconsider(fresh)
        if len(self._promises) >= _N_PROMISES or self._nodes.fresh:
            return []  # a node that has opened is first to be looked at for room
        commands: list[Yield] = []
        looks = _N_LOOKS
        for rank, cls in order:
            if not self._order or rank[0] >= self._order[-1] or looks <= 0:
                break
            if not cls.alone and cls.parts == 1 and cls not in self._kept:
                looks = self._serve(cls, now, looks, commands)
        return commands

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        free = [
            held
            for held in self._books.held.values()
            if held.is_bundle and held.promised_to is None and held.state is HeldState.HELD
        ]
        known = [held for there in self._on_node.values() for held in there.values()]
        assert {id(one) for one in free} == {id(one) for one in known}, "bundles are miscounted"
        assert self._order == sorted(self._levels), "levels"
        for priority, level in self._levels.items():
            there = [held.node for held in free if held.priority == priority]
            assert level.mask == _mask(there) != 0, "a level is wrong"
            assert sum(level.counts.values()) == len(there), "a level is miscounted"
        for task, promise in self._promises.items():
            assert task in self._queue, "promised to a task that does not wait"
            assert promise.pending or promise in self._came, "nothing is promised"
            for share_id in promise.pending:
                held = self._books.held[share_id]
                assert held.promised_to == task, "a promise is not known"
                assert held.is_asked, "promised, but not asked for"
                assert (held.state, held.node) == (HeldState.HELD, promise.node), "out of date"
        pending = [share for one in self._promises.values() for share in one.pending]
        assert len(pending) == len(set(pending)), "promised twice"
        assert all(self._promises.get(one.task) is one for one in self._kept.values())
        reserving = {cls for _, cls in self._queue.order if cls.reserved}
        urgent = self._queue.urgent
        assert all(cls in urgent or cls in self._kept for cls in reserving), "reserved for no one"

    # -- inside -----------------------------------------------------------------------------

    def _serve(self, cls: TaskClass, now: float, looks: int, commands: list[Yield]) -> int:
        """Ask for the first tasks of a class; return how many looks are left."""
        for task in self._queue.first_tasks(cls, 2 * _N_PROMISES):
            priority = user_priority(task.priority)
            if not self._order or priority >= self._order[-1]:
                break
            if len(self._promises) >= _N_PROMISES:
                break
            if task.task in self._promises:
                continue
            found, looks = self._search(cls, priority, now, looks)
            if not found:
                break  # the others ask for the same
            commands += self._promise(task, cls, found, now)
            if cls in self._kept:
                break
        return looks

    def _note_change(self, node: Node) -> None:
        if self._struck:
            self._changed |= node.bit

    def _reconsider(self, fresh: int) -> None:
        """Give the nodes that changed another chance."""
        if self._struck:
            keep = ~(self._changed | fresh)
            self._struck = {cls: one for cls, one in self._struck.items() if cls.n_tasks}
            for one in self._struck.values():
                one.mask &= keep
        self._changed = 0

    def _search(
        self, cls: TaskClass, priority: int, now: float, looks: int
    ) -> tuple[list[Held], int]:
        """Find bundles that make room for a task, and are promised to nobody."""
        struck = self._struck.get(cls)
        if struck is None or priority < struck.priority:
            struck = self._struck[cls] = _Struck(priority=priority)
        hope = self._nodes.runnable(cls) & self._nodes.usable(cls) & ~struck.mask
        hope &= self._nodes.room.lasting(cls.request, now)
        if cls.reserved:
            hope &= cls.reserved_mask
        best: list[Held] = []
        best_cost, n_compared = (0, 0, 0), 0
        for level in reversed(self._order[bisect_left(self._order, priority + 1) :]):
            for node in self._nodes.members(hope & self._levels[level].mask):
                if looks <= 0 or n_compared >= _N_COMPARED:
                    return best, looks
                hope &= ~node.bit
                found = self._on(node, cls, priority, now)
                if found is None:
                    looks -= 1
                    struck.mask |= node.bit
                    continue
                n_compared += 1
                cost = _cost(found)
                if not best or cost < best_cost:
                    best, best_cost = found, cost
                if best_cost <= (1, 1, -level):
                    return best, looks
            if best or not hope:
                break
        return best, looks

    def _on(self, node: Node, cls: TaskClass, priority: int, now: float) -> list[Held] | None:
        """Name the bundles of a node that make room for a task; None if they cannot."""
        is_for_another = node.reserved_for is not None and node.reserved_for is not cls
        if is_for_another or not node.has_time(cls.request, now) or node.ledger.net_cores < 0:
            return None
        able = [held for held in self._on_node[node.slot].values() if held.priority > priority]
        if not _would_fit(able, node, cls):
            return None
        # Those first that were asked already, then the lowest priority, then the youngest.
        able.sort(
            key=lambda held: (held.is_asked, held.priority, held.share.share_id), reverse=True
        )
        single = next((held for held in able if _covers(held, cls)), None)
        if single is not None:
            return [single]
        return None if self._n_promised_on.get(node.slot) else _fewest(able, node, cls)

    def _promise(
        self, task: WaitingTask, cls: TaskClass, found: list[Held], now: float
    ) -> list[Yield]:
        """Promise shares to a task, and ask for them."""
        node = found[0].node
        is_kept = len(found) > 1 or not _covers(found[0], cls)
        promise = _Promise(task=task.task, cls=cls, node=node, is_kept=is_kept)
        self._promises[task.task] = promise
        self._n_promised_on[node.slot] = self._n_promised_on.get(node.slot, 0) + 1
        commands = []
        for held in found:
            self._uncount(held)
            held.promised_to = task.task
            promise.pending.add(held.share.share_id)
            if not held.is_asked:
                held.is_asked, held.ends_at = True, min(held.ends_at, now)
                commands.append(Yield(share=held.share, for_task=task.task))
        if is_kept:
            self._kept[cls] = promise
            if not cls.reserved:
                self._books.reserve(cls, [Seat(node, cls.request)], now)
        return commands

    def _end(self, promise: _Promise) -> bool:
        """End a promise; return whether a node was opened by that."""
        del self._promises[promise.task]
        slot = promise.node.slot
        self._n_promised_on[slot] -= 1
        if not self._n_promised_on[slot]:
            del self._n_promised_on[slot]
        for share_id in promise.pending:
            held = self._books.held[share_id]
            held.promised_to = None
            self.enter(held)
        self._note_change(promise.node)
        if not promise.is_kept:
            return False
        cls = promise.cls
        del self._kept[cls]
        if not cls.reserved or cls in self._queue.urgent:
            return False
        self._books.drop_reservation(cls)
        return True

    def _uncount(self, held: Held) -> None:
        priority, node = held.priority, held.node
        there = self._on_node[node.slot]
        del there[held.share.share_id]
        if not there:
            del self._on_node[node.slot]
        level = self._levels[priority]
        level.remove(node)
        if not level.counts:
            del self._levels[priority]
            del self._order[bisect_left(self._order, priority)]


def _cost(found: list[Held]) -> tuple[int, int, int]:
    """Say how much is asked: of how many anew, of how many at all, and of how high a priority."""
    n_asked = sum(not held.is_asked for held in found)
    return n_asked, len(found), -min(held.priority for held in found)


def _covers(held: Held, cls: TaskClass) -> bool:
    """Whether a share is all that a task of a class needs."""
    share, request = held.share, cls.request
    return (
        len(share.cores) >= request.cores
        and share.memory_bytes >= (request.memory_bytes or 0)
        and units_fit([units for _, units in share.gpus], request.gpu_units)
    )


def _fewest(able: list[Held], node: Node, cls: TaskClass) -> list[Held]:
    """Choose bundles of a node that make room, of which all together do: the first, and few."""
    chosen: list[Held] = []
    for held in able:
        chosen.append(held)
        if _would_fit(chosen, node, cls):
            break
    for held in reversed(chosen[:-1]):  # those of the higher priorities are spared first
        others = [one for one in chosen if one is not held]
        if not held.is_asked and _would_fit(others, node, cls):
            chosen = others
    return chosen


def _would_fit(ended: list[Held], node: Node, cls: TaskClass) -> bool:
    """Whether a task of a class would fit on a node, had these shares been released."""
    ledger, request = node.ledger, cls.request
    cores = ledger.net_cores
    for held in ended:
        cores += len(held.share.cores)
    if cores < request.cores:
        return False
    if request.memory_bytes:
        memory = ledger.free_memory_bytes + sum(held.share.memory_bytes for held in ended)
        if memory < request.memory_bytes:
            return False
    if not request.gpu_units:
        return True
    units = dict(zip(ledger.shape.gpu_ids, ledger.free_gpu_units, strict=True))
    for held in ended:
        for gpu, used in held.share.gpus:
            units[gpu] += used
    return units_fit(list(units.values()), request.gpu_units)


def _mask(nodes: list[Node]) -> int:
    mask = 0
    for node in nodes:
        mask |= node.bit
    return mask
