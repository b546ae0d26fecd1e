"""Which waiting task goes where, and when.

`Placement` is told what happens (nodes join and leave, tasks are submitted, shares come back) and
answers `dispatch` with commands. It has no clock: `now` is an argument, in seconds.

Tasks of equal request, warm key, allowed nodes, solitude and pool form a *class*, in which the
order is strict: priority, then arrival. A class whose head fits nowhere is blocked; the others
backfill.

**Order of the classes**, by their heads: the user's priority strictly; then the *wider* class,
which asks for the larger part of a node in any resource, since narrow tasks fill the gaps that wide
ones leave and not the other way round; then Dask's priority and the arrival.

**No class starves.** A class is *overtaken* while it places nothing and something is placed that
ranks behind its head or arrived after it. After ``reserve_after_s`` it is *urgent*: urgent classes
go first, the longest overtaken before all, even before higher priorities. If its head finds no room
even so, one node is *reserved* for it: where it can start soonest, as far as the time limits of the
running tasks tell, or that with most free cores. Nobody else is placed there, except a task whose
own time limit ends before the reservation begins (EASY backfill; Lifka, JSSPP 1995). So each class
places a task at least every ``reserve_after_s`` plus the time in which a node drains, as long as
there is a node for each urgent class.

**GPUs are spared.** Where nodes may still join, a task that needs no GPU leaves nodes with GPUs
alone as long as a node without GPUs that fits it is there, or is expected within a minute.

**Gangs** are placed all at once or not at all; see `exadask.core.gang`. One whose parts may share
nodes is an ordinary task wherever a node, connected or still to come, has room for all of it.

**Choice of the node**, among those with room: warm for the task's warm key; holding most of its
inputs, if that is 64 KiB or more; without GPUs, if it needs none; fewest free cores; first joined.

**Cost.** A dispatch looks at a blocked class only for nodes that gained room since the last one,
so that nothing is searched twice; see `exadask.core.nodes` for the sets of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from exadask.core.books import Books
from exadask.core.events import Demand, Offer, Place, Resume, WaitingTask, Yield
from exadask.core.explain import explain_task
from exadask.core.gang import choose_seats, gather_parts, seats_to_reserve
from exadask.core.heirs import class_of_heir
from exadask.core.ledger import NodeId, Share, ShareId, TaskId
from exadask.core.node import Held, HeldState, Node, Seat
from exadask.core.prospects import check_possible, hopeless
from exadask.core.queue import Rank, TaskClass, user_priority
from exadask.core.yielding import Yielding
from exadask.resources import NodeShape, Resources

__all__ = ["Demand", "Offer", "Place", "Placement", "Resume", "WaitingTask", "Yield"]


@dataclass(slots=True, kw_only=True, eq=False)
class _Round:
    """What one dispatch has done and seen so far."""

    number: int
    now: float
    commands: list[Place | Resume | Yield]
    fresh: int = 0
    passed: list[TaskClass] = field(default_factory=list)  # blocked, and not overtaken yet
    progressed: set[TaskClass] = field(default_factory=set)
    lowest_rank: Rank | None = None
    latest_arrival: int = -1


class Placement:
    """The queue and the nodes.

    Parameters
    ----------
    reserve_after_s : float
        How long a class may be overtaken before a node is reserved for it [s].

    Notes
    -----
    Not thread-safe; one loop owns it. A late report (of a node or share that is gone) is dropped;
    what cannot have happened raises `InvalidTransition`.

    Examples
    --------
    >>> placement = Placement()
    >>> placement.add_node(NodeId("node-0"), NodeShape.declare(cores=4))
    >>> for name in ("a", "b"):
    ...     task = WaitingTask(task=TaskId(name), request=Resources(cores=3), priority=(0,))
    ...     placement.submit(task, now=0.0)
    >>> [(place.task, place.share.cores) for place in placement.dispatch(now=0.0)]
    [('a', (0, 1, 2))]
    >>> placement.explain(TaskId("b"), now=1.0)
    'waiting: needs 3 cores; the nodes have at most 1 free of 4 (node-0)'
    """

    def __init__(self, *, reserve_after_s: float = 10.0) -> None:
        self._offers: Sequence[Offer] = ()
        self._reserve_after_s = reserve_after_s
        self._books = Books()
        self._nodes, self._queue = self._books.nodes, self._books.queue
        self._yielding = Yielding(self._books)
        self._n_rounds = 0

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        """The nodes, to be read only."""
        return MappingProxyType(self._nodes.by_id)

    @property
    def offers(self) -> Sequence[Offer]:
        """Nodes that may still join, for elastic pools: what fits them may wait for them."""
        return self._offers

    @offers.setter
    def offers(self, offers: Sequence[Offer]) -> None:
        self._offers = offers
        self._nodes.expect(offers)
        gather_parts(self._books, self._offers)

    @property
    def n_waiting(self) -> int:
        """How many tasks wait."""
        return len(self._queue)

    # -- nodes ------------------------------------------------------------------------------

    def add_node(
        self,
        node: NodeId,
        shape: NodeShape,
        *,
        ends_at: float | None = None,
        pool: str | None = None,
        allocation: str | None = None,
    ) -> None:
        """Let a node join.

        Parameters
        ----------
        node : NodeId
            Its name.
        shape : NodeShape
            What it has.
        ends_at : float, optional
            When its allocation ends [s], on the clock of `now`. None: never.
        pool : str, optional
            The pool that it belongs to.
        allocation : str, optional
            The allocation that it belongs to; gangs stay within one. None: that of all others
            without one.

        Raises
        ------
        InvalidTransition
            A node of this name is connected.
        """
        ends_at = math.inf if ends_at is None else ends_at
        self._nodes.add(node, shape, ends_at=ends_at, pool=pool, allocation=allocation)
        self._queue.rescale(self._nodes.scale)
        gather_parts(self._books, self._offers)

    def set_end(self, node: NodeId, ends_at: float | None) -> None:
        """Note that the allocation of a node ends at another time than was said.

        Parameters
        ----------
        node : NodeId
            Its name; a node that has left is a late report.
        ends_at : float, optional
            When its allocation ends [s], on the clock of `now`. None: never.
        """
        changed = self._nodes.by_id.get(node)
        if changed is None:
            return
        was_at = changed.ends_at
        self._nodes.room.set_end(changed, math.inf if ends_at is None else ends_at)
        cls = changed.reserved_for
        if cls is not None:
            start = 0.0 if cls.reserved_start == math.inf else cls.reserved_start
            cls.reserved_until = min(cls.reserved_until, changed.ends_at)
            if not changed.has_time(cls.request, max(self._books.now, start)):
                self._books.drop_reservation(cls)
        self._books.changed(changed, has_gained=changed.ends_at > was_at)
        self._books.has_news = True

    def remove_node(self, node: NodeId) -> list[TaskId]:
        """Let a node leave, and all shares with it.

        Returns
        -------
        list of TaskId
            The tasks that held or had lent a share there, oldest first; empty for an unknown node.
        """
        gone = self._nodes.by_id.get(node)
        if gone is None:
            return []
        self._books.drop_reservation(gone.reserved_for)
        for share_id, held in gone.shares.items():
            self._yielding.leave(held)
            del self._books.held[share_id]
        self._books.wanted.pop(node, None)
        self._nodes.remove(gone)
        self._queue.rescale(self._nodes.scale)
        gather_parts(self._books, self._offers)
        return list(dict.fromkeys(held.share.task for held in gone.shares.values()))

    def pause_node(self, node: NodeId) -> None:
        """Place nothing more on a node; what runs there goes on."""
        paused = self._nodes.by_id.get(node)
        if paused is not None and not paused.is_paused:
            paused.is_paused = True
            self._books.drop_reservation(paused.reserved_for)
            self._books.changed(paused, has_gained=False)

    def resume_node(self, node: NodeId) -> None:
        """End a pause."""
        resumed = self._nodes.by_id.get(node)
        if resumed is not None and resumed.is_paused:
            resumed.is_paused = False
            self._books.changed(resumed, has_gained=True)

    def note_warm(self, node: NodeId, key: str, *, is_warm: bool = True) -> None:
        """Remember that a node is warm for a key, or no more."""
        if node in self._nodes.by_id:
            self._nodes.note_warm(self._nodes.by_id[node], key, is_warm=is_warm)

    # -- tasks ------------------------------------------------------------------------------

    def submit(self, task: WaitingTask, now: float) -> None:
        """Queue a task for `dispatch`.

        Raises
        ------
        ImpossibleRequest
            Neither a connected node, in the time that is left to it, nor any of `offers` could run
            it, were it empty. With neither of the two it just waits.
        InvalidTransition
            It waits already.
        """
        self.require_possible(task, now)
        cls = self._queue.add(task)
        if cls.is_spread and cls.n_tasks == 1:
            gather_parts(self._books, self._offers)

    def require_possible(self, task: WaitingTask, now: float) -> None:
        """Raise what `submit` would raise of a task that can never run; queue nothing."""
        check_possible(self._nodes, self.offers, task, self._books.tick(now))

    def withdraw(self, task_id: TaskId) -> None:
        """Forget a waiting task; nothing happens if it does not wait."""
        self._books.drop_reservation(self._queue.discard(task_id))
        self._yielding.forget(task_id)

    def waiting(self, task_id: TaskId) -> bool:
        """Whether a task waits."""
        return task_id in self._queue

    # -- shares -----------------------------------------------------------------------------

    def release(self, share_id: ShareId) -> None:
        """Take a share back, lent or not.

        Raises
        ------
        InvalidTransition
            There never was such a share. One that is gone already is a late report.
        """
        held = self._books.find(share_id, "release")
        if held is None:
            return
        node = held.node
        self._yielding.leave(held)
        del self._books.held[share_id]
        node.ledger.release(held.share)
        node.remove(held)
        self._books.note_wanted(node)
        self._books.changed(node, has_gained=True)

    def successor(self, share_id: ShareId, now: float) -> WaitingTask | None:
        """Choose the bundle that goes on with the share of one that is about to end.

        It asks for the same, at the same priority, and nobody else waits who might have the better
        right to what becomes free.

        Returns
        -------
        WaitingTask or None
            It waits no more: `pass_on` gives it the share, or `submit` queues it again.
        """
        held = self._books.held.get(share_id)
        cls = None if held is None else class_of_heir(self._books, held, now)
        if cls is None:
            return None
        task = cls.head
        self._queue.pop_head(cls)
        self._yielding.forget(task.task)
        return task

    def pass_on(self, share_id: ShareId, task_id: TaskId, now: float) -> Share | None:
        """Give the share of a bundle that has ended to its successor.

        Returns
        -------
        Share or None
            What it holds now. None: it was promised to another, or is lent or gone.
        """
        held = self._books.held.get(share_id)
        if held is None or held.state is not HeldState.HELD or held.promised_to is not None:
            return None
        self._yielding.leave(held)
        held.node.remove(held)
        held.share = held.node.ledger.pass_on(share_id, task_id)
        held.begin(now)
        held.node.add(held)
        self._yielding.enter(held)
        self._books.changed(held.node, has_gained=False)
        return held.share

    def lend(self, share_id: ShareId) -> None:
        """Give others the cores and GPUs of a task that waits for them; it keeps its memory.

        Raises
        ------
        InvalidTransition
            There never was such a share.
        """
        held = self._books.find(share_id, "lend")
        if held is None or held.state is HeldState.LENT:
            return
        if held.state is HeldState.HELD:
            self._yielding.leave(held)
            held.node.ledger.lend(share_id)
        self._books.enter(held, HeldState.LENT)
        self._books.changed(held.node, has_gained=True)

    def reclaim(self, share_id: ShareId, now: float) -> None:
        """Ask for a lent share back: the same GPUs, and as many cores.

        A `Resume` answers, from the dispatch that finds room; until then nobody is placed there. A
        share that is not lent is confirmed by a `Resume` as it is.

        Raises
        ------
        InvalidTransition
            There never was such a share.
        """
        self._books.tick(now)
        held = self._books.find(share_id, "reclaim")
        if held is None or held.state is HeldState.WANTED:
            return
        if held.state is HeldState.HELD:
            self._books.confirm.append(share_id)
            return
        self._books.enter(held, HeldState.WANTED)
        self._books.changed(held.node, has_gained=False)

    def charge(self, task_id: TaskId, node: NodeId, request: Resources) -> ShareId:
        """Book work that runs on a node without having been placed there.

        Returns
        -------
        ShareId
            What to `release` when it ends. If the node has left, nothing is booked under it.
        """
        share_id = self._books.new_share_id()
        charged = self._nodes.by_id.get(node)
        if charged is not None:
            share = charged.ledger.overdraw(task_id, request, share_id)
            held = Held(share, request, charged, now=self._books.now)
            held.is_charged = True
            self._books.book(held)
        return share_id

    # -- decisions --------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[Place | Resume | Yield]:
        """Decide what starts now, and which bundles are asked to end.

        Returns
        -------
        list of Place, Resume or Yield
            To be performed in this order; the books have them already.
        """
        now = self._books.tick(now)
        self._n_rounds += 1
        resumed = self._books.resume()
        round_ = _Round(number=self._n_rounds, now=now, commands=[*resumed])
        for command in resumed:
            self._yielding.enter(self._books.held[command.share.share_id])
        if self._queue.promote(now, self._reserve_after_s):
            self._books.has_news = True
        if self._books.has_news or self._nodes.fresh or self._queue.unsettled:
            self._serve(round_)
        if self._yielding.settle() or self._nodes.fresh:
            self._serve(round_)  # a reservation has ended, so that its node is open again
        round_.commands += self._yielding.commands(now, round_.fresh)
        return round_.commands

    def next_deadline(self) -> float | None:
        """When to dispatch again even if nothing happens, since a class becomes urgent [s]."""
        since = next(iter(self._queue.overtaken.values()), None)
        return None if since is None else since + self._reserve_after_s

    # -- questions --------------------------------------------------------------------------

    def demand(self) -> list[Demand]:
        """Count the waiting tasks by what they need; those served first come first."""
        return self._queue.demand()

    def hopeless(self, now: float) -> list[TaskId]:
        """Name the waiting tasks that neither a connected node nor an offer can ever run.

        A node counts if the time that is left to it is enough. With neither nodes nor offers these
        are all tasks.
        """
        return hopeless(self._nodes, self._queue, self.offers, max(now, self._books.now))

    def capacity(self, request: Resources, pool: str | None) -> int:
        """Say how many tasks like this the connected nodes could run at once, were they empty."""
        return self._nodes.capacity(request, pool)

    def idle_nodes(self) -> list[NodeId]:
        """Name the nodes where nothing is held, lent or reserved, in the order of joining."""
        return [node.name for node in self._nodes.by_id.values() if node.is_unused]

    def outlasting(self, among: Iterable[NodeId]) -> list[NodeId]:
        """Name those nodes where a task may, by its time limit, run beyond the node's end."""
        nodes = (self._nodes.by_id[name] for name in among if name in self._nodes.by_id)
        return [node.name for node in nodes if node.has_outlasting]

    def explain(self, task_id: TaskId, now: float) -> str:
        """Say in a sentence where a task runs, or what it waits for; O(waiting and running)."""
        return explain_task(self._books, task_id, max(now, self._books.now))

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        self._books.check()
        self._yielding.check()

    # -- a dispatch -------------------------------------------------------------------------

    def _serve(self, round_: _Round) -> None:
        """Place what there is room for."""
        self._books.has_news = False
        self._serve_urgent(round_)
        self._serve_all(round_)
        self._queue.mark_older(round_.latest_arrival, round_.now, besides=round_.progressed)

    def _serve_urgent(self, round_: _Round) -> None:
        """Place the heads of urgent classes, or reserve nodes for them."""
        while True:
            self._admit_fresh(round_)
            for cls in list(self._queue.urgent):
                if not self._books.can_keep(cls, round_.fresh):
                    self._books.drop_reservation(cls)
                if not self._place_head(cls, round_) and not cls.reserved:
                    self._reserve(cls, round_.now)
            if not self._nodes.fresh:
                return

    def _serve_all(self, round_: _Round) -> None:
        """Place heads in the order of the classes, until all are blocked or the nodes full."""
        order, index = self._queue.order, 0
        top = self._most_free(round_, len(self._nodes.buckets))
        while index < len(order) and top:
            cls = order[index][1]
            if cls.request.cores <= top and self._place_head(cls, round_):
                top = self._most_free(round_, top)  # the class moved back, or is gone
                continue
            if cls.request.cores > top:
                self._pass_over(cls, round_)
            index += 1
        while index < len(order) and round_.lowest_rank and order[index][0] < round_.lowest_rank:
            self._queue.mark_overtaken(order[index][1], round_.now)
            index += 1

    def _most_free(self, round_: _Round, at_most: int) -> int:
        among = -1 if self._queue.unsettled else round_.fresh
        return self._nodes.most_free(among, at_most)

    def _admit_fresh(self, round_: _Round) -> None:
        """Let all classes look at the nodes that gained room."""
        fresh = self._nodes.take_fresh()
        if fresh:
            round_.fresh |= fresh
            self._n_rounds += 1
            round_.number = self._n_rounds

    def _pass_over(self, cls: TaskClass, round_: _Round) -> None:
        """Note that a class is blocked: what is placed from now on overtakes it."""
        if not cls.is_settled:
            self._queue.settle(cls)
        if cls.overtaken_since is None:
            if round_.lowest_rank is not None and cls.rank < round_.lowest_rank:
                self._queue.mark_overtaken(cls, round_.now)
            else:
                round_.passed.append(cls)

    def _place_head(self, cls: TaskClass, round_: _Round) -> bool:
        """Place the first task of a class, if there is room."""
        nodes, now = self._nodes, round_.now
        if cls.hope_round != round_.number:
            cls.hope_round = round_.number
            cls.hope = nodes.runnable(cls) & (round_.fresh if cls.is_settled else -1)
        task = cls.head
        seats = self._choose(cls, task, now) if cls.hope else None
        if seats is None:
            self._pass_over(cls, round_)
            return False
        shares = [self._book(seat, task, now) for seat in seats]
        round_.commands.append(Place(share=shares[0], mates=tuple(shares[1:]), task=task.task))
        for passed in round_.passed:
            self._queue.mark_overtaken(passed, now)
        round_.passed.clear()
        round_.latest_arrival = max(round_.latest_arrival, cls.arrival)
        if round_.lowest_rank is None or cls.rank > round_.lowest_rank:
            round_.lowest_rank = cls.rank
        round_.progressed.add(cls)
        self._queue.pop_head(cls)
        self._books.drop_reservation(cls)
        self._yielding.forget(task.task)
        return True

    def _choose(self, cls: TaskClass, task: WaitingTask, now: float) -> Sequence[Seat] | None:
        """Choose the node, or nodes, where a task starts now."""
        if cls.parts > 1:
            return choose_seats(self._nodes, cls, task, now)
        node = self._nodes.choose(cls, task, now)
        return None if node is None else (Seat(node, cls.request),)

    def _book(self, seat: Seat, task: WaitingTask, now: float) -> Share:
        """Enter what a task gets of a node."""
        node, request = seat
        share = node.ledger.allocate(task.task, request, self._books.new_share_id())
        assert share is not None, "a node was chosen that has no room"
        held = Held(
            share,
            request,
            node,
            now=now,
            alone=task.alone,
            is_bundle=task.is_bundle,
            priority=user_priority(task.priority),
        )
        self._books.book(held)
        self._yielding.enter(held)
        return share

    def _reserve(self, cls: TaskClass, now: float) -> None:
        """Keep a node for a class, or those of a gang, if there are any that can ever run it."""
        if cls.parts > 1:
            seats = seats_to_reserve(self._nodes, cls, now, self._queue.urgent)
        else:
            node = self._nodes.node_to_reserve(cls, now)
            seats = None if node is None else [Seat(node, cls.request)]
        if seats is not None:
            self._books.reserve(cls, seats, now)
