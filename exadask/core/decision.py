"""One decision of a fleet: what is given up, what is asked for, what is given back; and why."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from exadask.core.allocations import Allocation, AllocationState
from exadask.core.demand import Wish, candidates_of, wishes
from exadask.core.events import ClosePool, Demand, Offer, Step
from exadask.core.fleet_report import explain_demand
from exadask.core.fleet_state import FleetState
from exadask.core.ledger import NodeId
from exadask.core.pool_book import PoolBook, number
from exadask.core.sizes import choose_size
from exadask.units import render_seconds

__all__ = ["Decision"]

_N_REGRETS = 5


class Decision:
    """What to do now; the rules are told in `exadask.core.scaling`.

    Parameters
    ----------
    state : FleetState
        The books; a decision enters there what it decides.
    now : float
        The time [s].
    idle : mapping of NodeId to float
        The nodes where nothing runs, and since when [s].
    """

    def __init__(self, state: FleetState, now: float, idle: Mapping[NodeId, float]) -> None:
        self._state, self._now, self._idle = state, now, idle

    def follow_demand(self, demand: Sequence[Demand], outlasting: Collection[NodeId]) -> list[Step]:
        """Do what the waiting tasks call for."""
        steps = self._expire() + self._close()
        ripe = self._ripe(demand)
        state, now = self._state, self._now
        candidates = [book.candidate(state.budget, now) for book in state.books.values()]
        for wanted in wishes(demand, candidates, ripe=ripe):
            book = state.books[wanted.pool]
            wish, kept = self._with_successors(book, wanted, outlasting)
            grown = self._grow(book, wish)
            steps += grown
            is_growing = any(step.command is not None for step in grown)
            steps += self._shrink(book, wish, kept, is_growing=is_growing)
            steps += self._give_back(book, demand, kept)
        return steps

    def follow_targets(self) -> list[Step]:
        """Do what was said by hand."""
        steps = self._expire() + self._close()
        for book in self._state.books.values():
            steps += self._follow_target(book)
        return steps

    def regret(self, demand: Sequence[Demand]) -> list[Step]:
        """Say for which tasks no node can be asked for at all, and why."""
        state = self._state
        candidates = [book.candidate(state.budget, self._now) for book in state.books.values()]
        lost = (one for one in demand if not one.is_bound and not candidates_of(one, candidates))
        return [
            Step(
                pool=one.pool or "",
                text=f"{number(one.count, 'task')} of {one.request}: "
                + explain_demand(state, one, self._now, is_manual=False),
            )
            for one in itertools.islice(lost, _N_REGRETS)
        ]

    # -- what cannot go on --------------------------------------------------------------------

    def _expire(self) -> list[Step]:
        """Give up allocations that run without nodes."""
        steps, timeout_s = [], self._state.limits.start_timeout_s
        for one in list(self._state.allocations.values()):
            if not one.is_active or one.nodeless_since is None:
                continue
            if self._now - one.nodeless_since < timeout_s:
                continue
            if one.n_ever_joined:
                reason = "all its nodes have gone"
            else:
                reason = f"no node joined within {render_seconds(timeout_s)} of its start"
                what = f"ran, but {reason}"
                self._state.book_of(one).fail(one, what, self._now)
            steps.append(self._give_up(one, reason))
        return steps

    def _close(self) -> list[Step]:
        """Tell about pools that have closed, and cancel what is queued there."""
        steps = []
        for book in self._state.books.values():
            if book.closed_reason is None:
                continue
            if not book.is_close_told:
                book.is_close_told = True
                name, reason = book.pool.name, book.closed_reason
                command = ClosePool(pool=name, reason=reason, log_of=book.failed)
                steps.append(Step(pool=name, text=f"close pool {name}: {reason}", command=command))
            steps += [
                self._give_up(one, "its pool is closed")
                for one in book.active
                if one.state is AllocationState.PENDING
            ]
        return steps

    def _give_up(self, one: Allocation, reason: str) -> Step:
        return self._state.give_up(one, reason, self._now)

    # -- growing ------------------------------------------------------------------------------

    def _ripe(self, demand: Sequence[Demand]) -> list[Demand]:
        """Return the tasks for which nodes may be asked now."""
        state, now = self._state, self._now
        since, ripe = dict[tuple[object, ...], float](), list[Demand]()
        at_hand = [offer for book in state.books.values() if (offer := book.at_hand(now))]
        for one in demand:
            kind = (one.request, one.pool, one.is_bound, one.alone)
            since[kind] = state.waiting_since.get(kind, now)
            is_old = now - since[kind] >= state.limits.grow_after_s
            if is_old or not any(offer.fits(one.request, one.pool) for offer in at_hand):
                ripe.append(one)
        state.waiting_since = since
        return ripe

    def _grow(self, book: PoolBook, wish: Wish) -> list[Step]:
        """Ask for nodes, as far as the rules allow; say what stands in the way of the rest."""
        steps, left, why_not = list[Step](), wish.more, None
        budget = self._state.budget
        while left > 0:
            why_not = book.hindrance(budget, self._now)
            if why_not is not None:
                break
            wanted = max(left, wish.least)
            size = choose_size(book.pool, wanted, time_s=wish.time_s, affordable=budget.left)
            if size is None:
                why_not = (
                    f"no allocation that lasts {render_seconds(wish.time_s)} is both allowed there "
                    "and within the budget"
                )
                break
            steps.append(self._state.begin(book, size, wish.reason, self._now))
            left -= size.nodes
        missing = max(0, left) + wish.beyond
        if missing:
            why_not = why_not or book.hindrance(budget, self._now) or "it has no room for them"
            would = f"{number(missing, 'more node')} of pool {wish.pool} would help, but {why_not}"
            steps.append(Step(pool=wish.pool, text=would))
        return steps

    def _with_successors(
        self, book: PoolBook, wish: Wish, outlasting: Collection[NodeId]
    ) -> tuple[Wish, set[str]]:
        """Add nodes for tasks that go on when their allocation ends; name those that are kept."""
        ending = (one for one in book.active if book.ends_soon(one, self._now))
        n_nodes = n_left = sum(node in outlasting for one in ending for node in one.joined)
        kept = set[str]()
        for one in book.active:
            if n_left <= 0 or book.ends_soon(one, self._now):
                continue
            n_spare = one.n_coming(self._now, self._state.limits.start_timeout_s)
            n_spare -= wish.needed.get(one.name, 0)
            n_spare += sum(node in self._idle for node in one.joined)
            if n_spare > 0:
                kept.add(one.name)
                n_left -= n_spare
        if n_left <= 0 or not book.is_open:
            return wish, kept
        reason = wish.reason or (
            f"tasks on {number(n_nodes, 'node')} may go on when their allocation ends"
        )
        return replace(wish, more=wish.more + n_left, reason=reason), kept

    # -- shrinking ----------------------------------------------------------------------------

    def _shrink(
        self, book: PoolBook, wish: Wish, kept: Collection[str], *, is_growing: bool
    ) -> list[Step]:
        """Cancel what has not begun and that nobody has needed for a while, the newest first."""
        steps, needless_since = [], self._state.needless_since
        for one in reversed(list(book.allocations.values())):
            has_begun = one.state not in (AllocationState.PENDING, AllocationState.STARTING)
            if has_begun or one.name in kept or wish.needed.get(one.name, 0):
                needless_since.pop(one.name, None)
                continue
            since = needless_since.setdefault(one.name, self._now)
            is_due = self._now - since >= self._state.limits.cancel_after_s
            if is_due and not is_growing:
                steps.append(self._give_up(one, "no task needs it any more"))
        return steps

    def _give_back(
        self, book: PoolBook, demand: Sequence[Demand], kept: Collection[str]
    ) -> list[Step]:
        """Give allocations back whose nodes all idle."""
        steps = []
        for one in book.active:
            if not one.joined or one.name in kept or one.joined - self._idle.keys():
                continue
            idle_s = self._now - max(self._idle[node] for node in one.joined)
            rest = Offer(
                pool=one.pool,
                shape=book.shape,
                walltime_s=one.left_s(self._now),
                nodes=len(one.joined),
            )
            free = [each for each in demand if not each.is_bound]
            is_wanted = any(rest.fits(each.request, each.pool) for each in free)
            whole = replace(rest, nodes=one.nodes)
            has_lost = not one.n_coming(self._now, self._state.limits.start_timeout_s)
            if not is_wanted and has_lost and any(whole.fits(x.request, x.pool) for x in free):
                steps.append(
                    self._give_up(one, "a gang waits that needs more nodes than it has left")
                )
                continue
            if idle_s < book.pool.idle_s:
                continue
            # Tasks that could run there and yet do not start are not waited for much longer.
            if not is_wanted or idle_s >= 2 * book.pool.idle_s:
                reason = f"nothing has run there for {render_seconds(idle_s)}"
                steps.append(self._give_up(one, reason))
        return steps

    def _follow_target(self, book: PoolBook) -> list[Step]:
        """Ask for what is missing to the nodes that were set by hand; let go what is too much."""
        there = [one for one in book.active if not book.ends_soon(one, self._now)]
        n_nodes = sum(one.nodes for one in there)
        name, target = book.pool.name, book.target
        if n_nodes < target:
            reason = f"{number(target, 'node')} of pool {name} were asked for"
            return self._grow(book, Wish(pool=name, more=target - n_nodes, reason=reason))
        if target == 0:
            there = book.active
            n_nodes = sum(one.nodes for one in there)
        steps = []
        for one in sorted(there, key=self._order_of_leaving):
            if one.state is not AllocationState.ASKED and n_nodes - one.nodes >= target:
                n_nodes -= one.nodes
                reason = f"{number(target, 'node')} of pool {name} are enough"
                steps.append(self._give_up(one, reason))
        return steps

    def _order_of_leaving(self, one: Allocation) -> tuple[bool, int, float]:
        """Sort those without nodes before those with few busy ones, the newest first."""
        return bool(one.joined), len(one.joined - self._idle.keys()), -one.asked_at
