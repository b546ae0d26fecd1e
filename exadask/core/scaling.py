"""When to ask for allocations, and when to let them go.

`Fleet` is told what becomes of allocations and answers `decide` with commands. It has no clock:
`now` is an argument, in seconds.

**Growing** (mode "auto"). `exadask.core.demand` says how many nodes would run all waiting tasks at
once. They are asked for at once for tasks that nothing could run which is there or coming; for
others when they have waited for ``grow_after_s``, so that a burst of short tasks causes no job.
Never more than the user's caps, the site's limits and the budget allow.

**Shrinking.** An allocation is given back whole when all its nodes have idled for the pool's
``idle_s``; one that waits is cancelled when nobody has needed it for ``cancel_after_s``, the newest
first. Both never in the same decision as growth of that pool, so that nothing is asked for and
cancelled in turns.

**Successors.** An allocation that is about to end does not count against the caps any more, so that
the next one is asked for in time, if there is work for it.

**Failures.** An allocation that is refused, or ends without a node having joined, is a failure. The
pool pauses, longer each time, and tries one allocation at a time until a node joins. After
``max_failures`` in a row, or at once if another attempt cannot help, it is closed for good; as long
as it has nodes it is not, since then it works.

In mode "manual" only `Fleet.scale` counts, and successors keep up what it says.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

from exadask.core.allocations import Allocation, AllocationState
from exadask.core.budget import Budget
from exadask.core.decision import Decision
from exadask.core.events import (
    Cancel,
    ClosePool,
    Command,
    Demand,
    GiveBack,
    Offer,
    Step,
    Submit,
)
from exadask.core.fleet_report import FleetSummary, explain_demand, summarise
from exadask.core.fleet_state import FleetState
from exadask.core.ledger import NodeId
from exadask.core.pool_book import FleetLimits
from exadask.errors import InvalidRequest, InvalidTransition, shown
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

__all__ = [
    "Cancel",
    "ClosePool",
    "Command",
    "Fleet",
    "FleetLimits",
    "GiveBack",
    "Step",
    "Submit",
]

Mode: TypeAlias = Literal["auto", "manual"]


class Fleet:
    """All pools, and their allocations.

    Parameters
    ----------
    pools : sequence of Pool
        The pools, in the order in which they are to be used.
    mode : {"auto", "manual"}
        Whether the demand decides, or only `scale`.
    budget_node_s : float, optional
        What all allocations together may cost [node-seconds]. None: any amount.
    limits : FleetLimits
        How patient it is.
    n_earlier : mapping of str to int, optional
        For each pool, how many names of allocations have been used before.
    spent_node_s : float
        What those did cost [node-seconds].

    Notes
    -----
    Not thread-safe; one loop owns it. The name of an allocation is never used again, and a report
    about one that has ended is dropped.

    Examples
    --------
    >>> from exadask.resources import Resources
    >>> fleet = Fleet([Pool.declare("cpu", batch="slurm", nodes=[1, 4], cores=8)])
    >>> demand = [Demand(request=Resources(cores=8), count=3)]
    >>> (command,) = fleet.decide(0.0, demand, idle={})
    >>> command.allocation, command.nodes, command.reason
    ('cpu-0', 3, '3 tasks of 8 cores wait; 3 nodes of 8 cores would run them at once')
    >>> fleet.submitted("cpu-0", "4711", now=0.1)
    >>> fleet.decide(1.0, demand, idle={})
    []
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        mode: Mode = "auto",
        budget_node_s: float | None = None,
        limits: FleetLimits | None = None,
        n_earlier: Mapping[str, int] | None = None,
        spent_node_s: float = 0.0,
    ) -> None:
        self.mode: Mode = mode
        budget = Budget(budget_node_s, spent_node_s)
        self._state = FleetState(pools, budget, limits or FleetLimits())
        for name, count in (n_earlier or {}).items():
            self._state.books[name].n_asked = count

    # -- events -----------------------------------------------------------------------------

    def submitted(self, allocation: str, job_id: str, now: float) -> None:
        """Note that the batch system has taken an allocation."""
        found = self._state.find(allocation)
        if found is not None:
            if found.job_id is not None:
                raise InvalidTransition(f"allocation {allocation}", "submitted", found.job_id)
            found.job_id = job_id
            found.enter(AllocationState.PENDING, now)

    def refused(
        self, allocation: str, reason: str, now: float, *, is_permanent: bool | None
    ) -> None:
        """Note that the batch system has not taken an allocation; None: not clear whether ever."""
        found = self._state.find(allocation)
        if found is None:
            return
        if found.job_id is not None:
            raise InvalidTransition(f"allocation {allocation}", "refused", found.job_id)
        self._state.end(found, now, EndCause.CANCELLED, reason)
        what = f"was refused: {reason}"
        self._state.book_of(found).fail(found, what, now, is_final=is_permanent)

    def reported(self, allocation: str, news: JobStatus, now: float) -> None:
        """Take in what the batch system says of the job of an allocation."""
        found = self._state.find(allocation)
        if found is None:
            return
        if news.state is JobState.ENDED:
            self._ended(found, now, news.cause, news.reason)
            return
        found.hear(news, now)
        book = self._state.book_of(found)
        if news.is_hopeless and found.state is AllocationState.PENDING and book.is_open:
            what = f"can never start: {news.reason or 'the batch system says so'}"
            book.fail(found, what, now, is_final=True)
        if found.has_vanished(now):
            self._ended(found, now, None, "the batch system does not know it any more")

    def query_failed(self) -> None:
        """Note that the batch system has not answered: that says nothing about the jobs."""

    def node_joined(
        self, allocation: str, node: NodeId, now: float, shape: NodeShape | None = None
    ) -> None:
        """Note that a node has joined, and what it has."""
        found = self._state.find(allocation)
        if found is None:
            return
        book = self._state.book_of(found)
        found.join(node, now)
        book.succeed()
        if shape is not None:
            book.shape = shape  # a real node knows better than a profile

    def believable_end(self, allocation: str, told_at: float) -> float:
        """Bound when an allocation ends as one of its nodes says, whose clock may be wrong [s]."""
        found = self._state.find(allocation)
        return told_at if found is None else found.believable_end(told_at)

    def node_left(self, allocation: str, node: NodeId, now: float) -> None:
        """Note that a node has gone, for whatever reason."""
        found = self._state.find(allocation)
        if found is not None:
            found.leave(node, now)

    def learn_shape(self, pool: str, shape: NodeShape) -> None:
        """Note what the batch system says that the nodes of a pool have."""
        book = self._state.pool(pool)
        book.shape = book.shape or shape

    def scale(self, pool: str, nodes: int) -> None:
        """Say by hand how many nodes a pool is to have, rounded up to whole allocations.

        Raises
        ------
        InvalidRequest
            There is no such pool, that is no number of nodes, or the mode is "auto".
        """
        book = self._state.pool(pool)
        if self.mode != "manual":
            raise InvalidRequest(
                f"pool {pool!r} follows what waits.", 'Use scale="manual" to set its size by hand.'
            )
        is_number = isinstance(nodes, int) and not isinstance(nodes, bool)
        if not is_number or not 0 <= nodes < 2**31:
            raise InvalidRequest(f"nodes={shown(nodes)} is not valid.", "Give a whole number >= 0.")
        book.target = nodes

    def close_pool(self, pool: str, reason: str) -> None:
        """Ask for nothing more in a pool; its queued allocations are cancelled."""
        self._state.pool(pool).close(reason)

    # -- decisions --------------------------------------------------------------------------

    def decide(
        self,
        now: float,
        demand: Sequence[Demand],
        idle: Mapping[NodeId, float],
        outlasting: Collection[NodeId] = (),
    ) -> list[Command]:
        """Decide what to ask for, and what to give back.

        Parameters
        ----------
        now : float
            The time [s].
        demand : sequence of Demand
            What waits, from `Placement.demand`.
        idle : mapping of NodeId to float
            The nodes where nothing runs, and since when [s].
        outlasting : collection of NodeId
            Those of `ending_nodes` where tasks may go on after the end.

        Returns
        -------
        list of Command
            To be performed in this order; the books have them already.
        """
        steps = self._steps(now, demand, idle, outlasting)
        return [step.command for step in steps if step.command is not None]

    def plan(
        self,
        now: float,
        demand: Sequence[Demand],
        idle: Mapping[NodeId, float],
        outlasting: Collection[NodeId] = (),
    ) -> list[Step]:
        """Say what `decide` would do, and what not, and why; nothing changes."""
        books = self._state.books.values()
        shared = {id(one): one for book in books for one in (book.pool, book.shape)}
        twin = copy.deepcopy(self, shared)
        steps = twin._steps(now, demand, idle, outlasting)
        if self.mode == "auto":
            steps += Decision(twin._state, now, idle).regret(demand)
        return steps

    def ending_nodes(self, now: float) -> list[NodeId]:
        """Name the nodes whose allocations are about to end."""
        return [
            node
            for book in self._state.books.values()
            for one in book.active
            if book.ends_soon(one, now)
            for node in one.joined
        ]

    def offers(self, now: float) -> list[Offer]:
        """Say which nodes may still join, for `Placement.offers`."""
        return [
            offer
            for book in self._state.books.values()
            for offer in book.offers(self._state.budget, now)
        ]

    def end_of(self, allocation: str) -> float | None:
        """Return when a running allocation is expected to end [s]; None if that is not known."""
        found = self._state.allocations.get(allocation)
        return None if found is None else found.ends_at

    def summary(self, now: float) -> FleetSummary:
        """Describe all pools and allocations, for ``exadask status``."""
        return summarise(self._state, now)

    def explain(self, demand: Demand, now: float) -> str:
        """Say in a sentence why no node comes for tasks that wait."""
        return explain_demand(self._state, demand, now, is_manual=self.mode == "manual")

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        self._state.check()

    def _steps(
        self,
        now: float,
        demand: Sequence[Demand],
        idle: Mapping[NodeId, float],
        outlasting: Collection[NodeId],
    ) -> list[Step]:
        decision = Decision(self._state, now, idle)
        if self.mode == "manual":
            return decision.follow_targets()
        return decision.follow_demand(demand, outlasting)

    def _ended(self, one: Allocation, now: float, cause: EndCause | None, reason: str) -> None:
        """Note the end of a job, and count it if it was a failure."""
        is_ours = one.state is AllocationState.ENDING
        self._state.end(one, now, cause, reason)
        if is_ours or one.n_ever_joined:
            return
        because = f": {reason}" if reason else ""
        if cause is EndCause.CANCELLED:
            what = f"was cancelled by somebody{because}"
        elif cause is None:
            what = f"vanished{because}"
        else:
            what = f"ended before any node had joined ({cause.value}){because}"
        self._state.book_of(one).fail(one, what, now)
