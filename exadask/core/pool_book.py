"""What is known of one pool: its allocations, its failures, and what stands in the way of more."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from exadask.core.allocations import Allocation, AllocationState
from exadask.core.budget import Budget
from exadask.core.demand import Candidate, Coming
from exadask.core.events import Offer
from exadask.core.sizes import largest_size, longest_walltime_s
from exadask.pool import Pool
from exadask.units import render_seconds

__all__ = ["FleetLimits", "PoolBook", "number", "render_cost"]

_N_ENDED = 16


_NEAR_S = 60.0
"""How long an allocation that was asked for is expected any moment [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    """How patient a fleet is.

    Parameters
    ----------
    max_failures : int
        Failures in a row after which a pool is closed.
    max_passing : int
        The same for refusals that are known to pass, such as a controller that restarts.
    back_off_s, longest_back_off_s : float
        How long to wait after the first failure, doubled after each further one, and at most [s].
    lead_s : float
        How long before its end the successor of an allocation is asked for, at most a quarter of
        its walltime [s].
    grow_after_s : float
        How long tasks must wait beside nodes that could run them before more are asked for [s].
    cancel_after_s : float
        How long a queued allocation must be needless before it is cancelled [s].
    start_timeout_s : float
        How long an allocation may run without a node having joined [s].
    """

    max_failures: int = 3
    max_passing: int = 12
    back_off_s: float = 2.0
    longest_back_off_s: float = 300.0
    lead_s: float = 600.0
    grow_after_s: float = 2.0
    cancel_after_s: float = 30.0
    start_timeout_s: float = 300.0


class PoolBook:
    """One pool.

    Attributes
    ----------
    shape : NodeShape or None
        What its nodes have: as the last one that joined said; before, as declared.
    allocations : dict of str to Allocation
        Those that have not ended, oldest first.
    ended : deque of Allocation
        Some of those that have, the last one at the end.
    closed_reason : str or None
        Why nothing more is asked for.
    is_close_told : bool
        Whether the closing has been commanded.
    n_failures, n_passing : int
        Failures since a node has joined, and how many of them are known to pass.
    last_failure : str
        The last one, in words.
    failed : str or None
        The allocation that failed last.
    retry_at : float
        When another attempt may be made [s].
    target : int
        Nodes wanted by hand [nodes].
    """

    def __init__(self, pool: Pool, limits: FleetLimits) -> None:
        self.pool, self.shape = pool, pool.shape
        self._limits = limits
        self.allocations: dict[str, Allocation] = {}
        self.ended: deque[Allocation] = deque(maxlen=_N_ENDED)
        self.n_asked = 0
        self.closed_reason: str | None = None
        self.is_close_told = False
        self.n_failures = self.n_passing = 0
        self.last_failure = ""
        self.failed: str | None = None
        self.retry_at = -math.inf
        self.target = 0

    # -- what happens -------------------------------------------------------------------------

    def fail(
        self, allocation: Allocation, what: str, now: float, *, is_final: bool | None = None
    ) -> None:
        """Count a failure; wait a while, or close the pool.

        Parameters
        ----------
        allocation : Allocation
            What failed.
        what : str
            How, in words.
        now : float
            The time [s].
        is_final : bool, optional
            Whether another attempt cannot help; False if the reason is known to pass.
        """
        self.n_failures += 1
        self.n_passing += is_final is False
        n_counting = self.n_failures - self.n_passing
        self.last_failure, self.failed = what, allocation.name
        pause_s = self._limits.back_off_s * 2 ** min(self.n_failures - 1, 30)
        self.retry_at = now + min(pause_s, self._limits.longest_back_off_s)
        if is_final:
            self.close(f"{allocation.title} {what}")
        elif not self.has_nodes and (
            n_counting >= self._limits.max_failures or self.n_passing >= self._limits.max_passing
        ):
            self.close(
                f"{number(self.n_failures, 'allocation')} in a row brought no node; the last, "
                f"{allocation.title}, {what}"
            )

    def succeed(self) -> None:
        """Forget the failures, since a node has joined."""
        self.n_failures = self.n_passing = 0
        self.retry_at = -math.inf

    def close(self, reason: str) -> None:
        """Ask for nothing more, ever."""
        if self.closed_reason is None:
            text = reason.strip()
            self.closed_reason = text if text.endswith((".", "!", "?")) else f"{text}."

    # -- what is there ------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether more may be asked for some time."""
        return self.closed_reason is None

    @property
    def has_nodes(self) -> bool:
        """Whether a node is connected."""
        return any(one.joined for one in self.allocations.values())

    @property
    def active(self) -> list[Allocation]:
        """Allocations that are to stay, those whose nodes come soonest first."""
        active = [one for one in self.allocations.values() if one.is_active]
        return sorted(active, key=lambda one: one.is_queued)

    def ends_soon(self, allocation: Allocation, now: float) -> bool:
        """Whether it is time for the successor of an allocation."""
        lead_s = min(self._limits.lead_s, allocation.walltime_s / 4)
        return allocation.ends_within(lead_s, now)

    def n_occupying(self, now: float) -> int:
        """Count the allocations that stand in the way of others."""
        return sum(not self.ends_soon(one, now) for one in self.allocations.values())

    def at_hand(self, now: float) -> Offer | None:
        """Describe what is there or coming, with the longest time that any of it has left."""
        left_s = (
            one.left_s(now)
            for one in self.active
            if one.joined or one.n_coming(now, self._limits.start_timeout_s)
        )
        longest_s = max(left_s, default=None)
        if longest_s is None:
            return None
        n_nodes = max(one.nodes for one in self.active)
        return Offer(pool=self.pool.name, shape=self.shape, walltime_s=longest_s, nodes=n_nodes)

    # -- what may come ------------------------------------------------------------------------

    def candidate(self, budget: Budget, now: float) -> Candidate:
        """Describe the pool to `exadask.core.demand`."""
        # A pool that can never be paid for is no reason to leave another alone.
        walltime_s = longest_walltime_s(self.pool, affordable=budget.at_most_left)
        coming = (
            (one, one.n_coming(now, self._limits.start_timeout_s))
            for one in self.active
            if not self.ends_soon(one, now)
        )
        return Candidate(
            pool=self.pool.name,
            shape=self.shape,
            walltime_s=walltime_s or longest_walltime_s(self.pool) or 0.0,
            coming=tuple(
                Coming(
                    allocation=one.name,
                    nodes=nodes,
                    left_s=one.left_s(now),
                    joined=len(one.joined),
                )
                for one, nodes in coming
                if nodes
            ),
            room=self.room(budget, now),
            most=self.pool.max_nodes,
            is_open=self.is_open and walltime_s is not None,
        )

    def offers(self, budget: Budget, now: float) -> list[Offer]:
        """Say which nodes may still join."""
        name, shape = self.pool.name, self.shape
        walltime_s = longest_walltime_s(self.pool, affordable=budget.at_most_left)
        offers = []
        if self.is_open and walltime_s is not None:
            most = self.pool.max_nodes
            offers.append(Offer(pool=name, shape=shape, walltime_s=walltime_s, nodes=most))
        offers += [
            Offer(
                pool=name,
                shape=shape,
                walltime_s=one.left_s(now),
                is_near=self._is_near(one, now),
                nodes=one.nodes,
            )
            for one in self.active
            if one.n_coming(now, self._limits.start_timeout_s)
            and (self.is_open or not one.is_queued)
        ]
        return offers

    @staticmethod
    def _is_near(one: Allocation, now: float) -> bool:
        return not one.is_queued or now - one.asked_at < _NEAR_S

    def room(self, budget: Budget, now: float) -> int:
        """Return how many nodes may be asked for now [nodes]; a pause after a failure is no bar."""
        if not self.is_open:
            return 0
        size = largest_size(self.pool, affordable=budget.left)
        if size is None:
            return 0
        n_nodes = max(0, self._n_free(now)) * size.nodes
        return min(n_nodes, int(min(budget.left / size.walltime_s, 2**31)))

    def hindrance(self, budget: Budget, now: float) -> str | None:
        """Say in words why no allocation may be asked for now; None if one may."""
        if self.closed_reason is not None:
            return f"pool {self.pool.name} is closed: {self.closed_reason}"
        if self._n_free(now) <= 0:
            return self._full(now)
        if now < self.retry_at:
            return (
                f"pool {self.pool.name} waits another {render_seconds(self.retry_at - now)} after "
                f"{number(self.n_failures, 'failure')}; the last, {self.failed}, "
                f"{self.last_failure}"
            )
        if self.n_failures and any(one.is_active and not one.joined for one in self._list):
            return (
                f"pool {self.pool.name} tries one allocation at a time until a node joins, since "
                f"{self.failed} {self.last_failure}"
            )
        if largest_size(self.pool, affordable=budget.left) is None:
            return (
                f"the budget has {render_cost(budget.left)} left, and the smallest allocation of "
                f"pool {self.pool.name} may cost more"
            )
        return None

    @property
    def _list(self) -> list[Allocation]:
        return list(self.allocations.values())

    def _n_free(self, now: float) -> int:
        """How many more allocations the user and the site allow."""
        limits, n_there = self.pool.limits, self.n_occupying(now)
        free = self.pool.max_allocations - n_there
        if limits.running is not None:
            free = min(free, limits.running - n_there)
        if limits.queued is not None:
            free = min(free, limits.queued - self._n_queued)
        return free

    @property
    def _n_queued(self) -> int:
        """How many jobs the batch system may count as waiting."""
        return sum(
            one.is_queued or (one.state is AllocationState.ENDING and one.started_at is None)
            for one in self._list
        )

    def _full(self, now: float) -> str:
        limits, n_there, name = self.pool.limits, self.n_occupying(now), self.pool.name
        if n_there >= self.pool.max_allocations:
            return (
                f"pool {name} has its {number(n_there, 'allocation')} already "
                f"(max_allocations={self.pool.max_allocations})"
            )
        if limits.running is not None and n_there >= limits.running:
            return f"the site runs {number(limits.running, 'job')} of pool {name} at the same time"
        return (
            f"the site lets {number(limits.queued or 0, 'job')} of pool {name} wait at the same "
            "time"
        )


def number(count: int, noun: str) -> str:
    """Write a number of things.

    Examples
    --------
    >>> number(1, "node"), number(2, "node")
    ('1 node', '2 nodes')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def render_cost(node_seconds: float) -> str:
    """Write a cost for a human.

    Examples
    --------
    >>> render_cost(5400.0)
    '1.5 node-hours'
    """
    return f"{node_seconds / 3600:.4g} node-hours"
