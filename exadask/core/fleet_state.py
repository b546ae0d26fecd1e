"""The books of all pools: their allocations, the budget, and what was seen for how long."""

from __future__ import annotations

from collections.abc import Sequence

from exadask.core.allocations import Allocation, AllocationState
from exadask.core.budget import Budget
from exadask.core.events import Cancel, GiveBack, Step, Submit
from exadask.core.pool_book import FleetLimits, PoolBook, number
from exadask.core.sizes import Size
from exadask.errors import InvalidRequest, InvalidTransition
from exadask.job_status import EndCause
from exadask.pool import Pool
from exadask.units import render_seconds

__all__ = ["FleetState"]


class FleetState:
    """All that a decision depends on.

    Attributes
    ----------
    books : dict of str to PoolBook
        The pools, in the order in which they are to be used.
    allocations : dict of str to Allocation
        Those of all pools that have not ended.
    waiting_since : dict
        Since when tasks of a kind have waited without interruption [s].
    needless_since : dict of str to float
        Since when no task has needed an allocation that has not begun [s].
    """

    def __init__(self, pools: Sequence[Pool], budget: Budget, limits: FleetLimits) -> None:
        self.limits, self.budget = limits, budget
        self.books = {pool.name: PoolBook(pool, limits) for pool in pools}
        self.allocations: dict[str, Allocation] = {}
        self.waiting_since: dict[tuple[object, ...], float] = {}
        self.needless_since: dict[str, float] = {}

    def pool(self, name: str) -> PoolBook:
        """Find a pool.

        Raises
        ------
        InvalidRequest
            There is none of this name.
        """
        if name not in self.books:
            known = ", ".join(self.books)
            raise InvalidRequest(f"there is no pool {name!r}.", f"There are: {known}.")
        return self.books[name]

    def book_of(self, allocation: Allocation) -> PoolBook:
        """Return the pool of an allocation."""
        return self.books[allocation.pool]

    def find(self, name: str) -> Allocation | None:
        """Find an allocation; None if it has ended, so that a report about it is late.

        Raises
        ------
        InvalidTransition
            There never was such an allocation.
        """
        found = self.allocations.get(name)
        if found is None:
            pool, _, serial = name.rpartition("-")
            book = self.books.get(pool)
            if book is None or not serial.isdigit() or int(serial) >= book.n_asked:
                raise InvalidTransition(f"allocation {name}", "report", "never asked for")
        return found

    def begin(self, book: PoolBook, size: Size, reason: str, now: float) -> Step:
        """Enter an allocation, and ask for it."""
        pool = book.pool.name
        one = Allocation(f"{pool}-{book.n_asked}", pool, size.nodes, size.walltime_s, now=now)
        book.n_asked += 1
        self.budget.book(one.name, one.cost)
        self.allocations[one.name] = book.allocations[one.name] = one
        command = Submit(
            allocation=one.name,
            pool=pool,
            nodes=one.nodes,
            walltime_s=one.walltime_s,
            reason=reason,
        )
        text = (
            f"ask for {number(one.nodes, 'node')} of pool {pool} for "
            f"{render_seconds(one.walltime_s)} as {one.name}: {reason}"
        )
        return Step(pool=pool, text=text, command=command)

    def give_up(self, one: Allocation, reason: str, now: float) -> Step:
        """Let an allocation go, and end it."""
        is_live = one.state is AllocationState.LIVE
        one.enter(AllocationState.ENDING, now)
        self.needless_since.pop(one.name, None)
        kind, word = (GiveBack, "give back") if is_live else (Cancel, "cancel")
        text = f"{word} {one.title} with {number(one.nodes, 'node')}: {reason}"
        return Step(pool=one.pool, text=text, command=kind(allocation=one.name, reason=reason))

    def end(self, one: Allocation, now: float, cause: EndCause | None, reason: str) -> None:
        """Strike an allocation that has ended, and pay for it."""
        cost = one.spent(now, cause)
        one.enter(AllocationState.ENDED, now)
        one.reason = reason or (cause.value if cause else "")
        self.budget.settle(one.name, cost)
        book = self.book_of(one)
        del self.allocations[one.name], book.allocations[one.name]
        book.ended.append(one)
        self.needless_since.pop(one.name, None)

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        listed = {
            name: one for book in self.books.values() for name, one in book.allocations.items()
        }
        assert listed == self.allocations, "the pools and the allocations disagree"
        self.budget.check({name: one.cost for name, one in listed.items()})
        for name, one in listed.items():
            assert one.state is not AllocationState.ENDED, f"{name} has ended"
            assert (one.started_at is None) == (one.ends_at is None), name
            assert one.n_ever_joined >= len(one.joined), name
            is_nodeless = one.started_at is not None and not one.joined
            assert (one.nodeless_since is not None) == is_nodeless, name
        for book in self.books.values():
            assert all(one.state is AllocationState.ENDED for one in book.ended), book.pool.name
        assert self.needless_since.keys() <= listed.keys(), "an allocation is needless and gone"
