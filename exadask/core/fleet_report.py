"""What there is of each pool, and why no node comes, in words and figures for the user."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exadask.core.allocations import Allocation, AllocationState
from exadask.core.budget import Budget
from exadask.core.demand import candidates_of
from exadask.core.events import Demand
from exadask.core.fleet_state import FleetState
from exadask.core.pool_book import PoolBook, number
from exadask.core.sizes import longest_walltime_s
from exadask.units import render_seconds

_HOUR_S = 3600.0

__all__ = ["AllocationSummary", "FleetSummary", "PoolSummary", "explain_demand", "summarise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSummary:
    """One allocation.

    Parameters
    ----------
    name, pool : str
        Its name, and its pool's.
    job_id : str, optional
        What the batch system calls it.
    state : str
        asked for, queued, starting, live, ending or ended.
    nodes, joined : int
        Nodes asked for, and connected [nodes].
    since_s : float
        How long it is in this state [s].
    ran_s : float, optional
        How long it has run, or ran [s]. None: it has not begun.
    left_s : float, optional
        How long it still runs [s].
    reason : str
        The batch system's own words about it, or why it ended.
    is_held : bool
        Whether somebody must release it before it can start.
    """

    name: str
    pool: str
    job_id: str | None
    state: str
    nodes: int
    joined: int
    since_s: float
    ran_s: float | None
    left_s: float | None
    reason: str
    is_held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """One pool.

    Parameters
    ----------
    name : str
        Its name.
    closed_reason : str, optional
        Why nothing more is asked for. None: it is open.
    nodes, coming : int
        Nodes that are connected, and that have been asked for [nodes].
    n_failures : int
        Failures in a row.
    retry_in_s : float
        How long it pauses after a failure [s].
    last_failure : str
        The last failure, in words.
    allocations, ended : tuple of AllocationSummary
        Those that have not ended, and the last that have.
    """

    name: str
    closed_reason: str | None
    nodes: int
    coming: int
    n_failures: int
    retry_in_s: float
    last_failure: str
    allocations: tuple[AllocationSummary, ...]
    ended: tuple[AllocationSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSummary:
    """All pools, and the budget.

    Parameters
    ----------
    pools : tuple of PoolSummary
        The pools.
    budget_node_s : float, optional
        What may be spent [node-seconds]. None: any amount.
    spent_node_s, booked_node_s : float
        What was spent, and what running allocations may still cost [node-seconds].
    """

    pools: tuple[PoolSummary, ...]
    budget_node_s: float | None
    spent_node_s: float
    booked_node_s: float

    def __str__(self) -> str:
        lines = [line for pool in self.pools for line in _pool_lines(pool)]
        cost = f"spent: {self.spent_node_s / _HOUR_S:.2f} node-hours"
        if self.booked_node_s:
            cost += f"; booked until the walltimes: {self.booked_node_s / _HOUR_S:.2f}"
        if self.budget_node_s is not None:
            cost += f"; budget: {self.budget_node_s / _HOUR_S:.2f}"
        return "\n".join([*lines, cost])


def summarise(state: FleetState, now: float) -> FleetSummary:
    """Describe pools, allocations and the budget."""
    budget = state.budget
    return FleetSummary(
        pools=tuple(_pool(book, now) for book in state.books.values()),
        budget_node_s=None if budget.limit == math.inf else budget.limit,
        spent_node_s=budget.spent,
        booked_node_s=budget.booked,
    )


def explain_demand(state: FleetState, demand: Demand, now: float, *, is_manual: bool) -> str:
    """Say in a sentence why no node comes for tasks that wait."""
    books, budget = list(state.books.values()), state.budget
    if demand.is_bound:
        return "they may only run on certain nodes, so that no new node helps"
    indices = candidates_of(demand, [book.candidate(budget, now) for book in books])
    fitting = [books[index] for index in indices]
    if not fitting:
        where = "pool" if demand.pool is None else f"open pool called {demand.pool!r}"
        reasons = [_unfit(book, budget, demand, now) for book in books]
        return "; ".join([f"no {where} has nodes that could run them", *filter(None, reasons)])
    coming = [_coming(book) for book in fitting]
    if any(coming):
        return "; ".join(filter(None, coming))
    if is_manual:
        return "pools grow only as they are told to (scale is manual)"
    reasons = [book.hindrance(budget, now) for book in fitting]
    if None in reasons:
        name = fitting[reasons.index(None)].pool.name
        return f"nodes of pool {name} will be asked for if they still wait in a moment"
    return "; ".join(filter(None, reasons))


def _unfit(book: PoolBook, budget: Budget, demand: Demand, now: float) -> str | None:
    """Say why a pool gives no node for tasks that are not too large for its nodes."""
    is_too_small = book.shape is not None and not book.shape.fits(demand.request)
    if is_too_small or demand.pool not in (None, book.pool.name):
        return None
    walltime_s = longest_walltime_s(book.pool)
    time_s = demand.request.time_s or 0.0
    if walltime_s is not None and time_s > walltime_s:
        lasts = f"lasts at most {render_seconds(walltime_s)}, and they need"
        return f"an allocation of pool {book.pool.name} {lasts} {render_seconds(time_s)}"
    return book.hindrance(budget, now)


def _coming(book: PoolBook) -> str | None:
    """Describe what has been asked for and has no node yet."""
    parts = []
    for states, verb in (
        ((AllocationState.STARTING,), "starts"),
        ((AllocationState.ASKED, AllocationState.PENDING), "waits in the queue"),
    ):
        found = [one for one in book.active if one.state in states]
        if not found:
            continue
        nodes = number(sum(one.nodes for one in found), "node")
        text = f"{number(len(found), 'allocation')} of pool {book.pool.name} ({nodes}) "
        text += verb if len(found) == 1 else verb.replace("s", "", 1)
        first = found[0]
        if first.job_id is not None:
            text += f" as job {first.job_id}" if len(found) == 1 else f", first job {first.job_id}"
        if first.reason:
            text += f": {first.reason}"
        if first.is_held:
            text += " (it is held: somebody must release it)"
        parts.append(text)
    return "; ".join(parts) or None


def _pool(book: PoolBook, now: float) -> PoolSummary:
    active = book.active
    return PoolSummary(
        name=book.pool.name,
        closed_reason=book.closed_reason,
        nodes=sum(len(one.joined) for one in book.allocations.values()),
        coming=sum(one.nodes for one in active if not one.n_ever_joined),
        n_failures=book.n_failures,
        retry_in_s=max(0.0, book.retry_at - now) if book.is_open else 0.0,
        last_failure=book.last_failure,
        allocations=tuple(_allocation(one, now) for one in book.allocations.values()),
        ended=tuple(_allocation(one, now) for one in book.ended),
    )


def _allocation(one: Allocation, now: float) -> AllocationSummary:
    is_running = one.ends_at is not None and one.ended_at is None
    return AllocationSummary(
        name=one.name,
        pool=one.pool,
        job_id=one.job_id,
        state=one.state.value,
        nodes=one.nodes,
        joined=len(one.joined),
        since_s=now - one.history[-1][0],
        ran_s=one.ran_s(now),
        left_s=one.left_s(now) if is_running else None,
        reason=one.reason,
        is_held=one.is_held,
    )


def _pool_lines(pool: PoolSummary) -> list[str]:
    state = f"{pool.nodes} nodes"
    if pool.coming:
        state += f", {pool.coming} asked for"
    if pool.closed_reason is not None:
        state += f"; closed: {pool.closed_reason}"
    elif pool.retry_in_s > 0:
        state += f"; next attempt in {render_seconds(pool.retry_in_s)}: {pool.last_failure}"
    living = [_allocation_line(one) for one in pool.allocations]
    ended = [_allocation_line(one) for one in pool.ended]
    return [f"pool {pool.name}: {state}", *living, *ended]


def _allocation_line(one: AllocationSummary) -> str:
    job = f" (job {one.job_id})" if one.job_id is not None else ""
    line = f"  {one.name}{job}: {one.state} since {render_seconds(one.since_s)}"
    if one.state == "live":
        line += f", {one.joined} of {one.nodes} nodes"
    else:
        line += f", {one.nodes} nodes"
    if one.left_s is not None and one.state != "ended":
        line += f", {render_seconds(one.left_s)} left"
    if one.is_held:
        line += ", held"
    return f"{line}: {one.reason}" if one.reason else line
