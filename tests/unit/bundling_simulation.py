"""One lane and its cluster, driven by a simulated clock: what automatic bundling costs in time.

The client is one processor: it makes bundles, and hears of what happens, one after the other. Its
bundles leave together at the end of each round. The scheduler places them in the order of arrival;
each of the four ways (client to scheduler, scheduler to slot, and back) takes a quarter of the
round trip. A slot obeys the agent's rules: calls behind one that lasts much longer than expected
are given back, and a bundle that has lasted too long begins no other call.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from exadask.core.bundling import Estimates, Lane, Pace

_POLL_S = 0.005
_SEEN_S = 0.003
_PATIENCE_S = 0.025
_PATIENCE = 4
_BACKLOG_INTERVAL_S = 0.5
_CALL_S = 5e-6


@dataclass(slots=True, eq=False)
class Call:
    """A call, and how long it lasts [s]."""

    wall_s: float
    function: str = "f"
    is_single: bool = False
    nbytes: int = 0
    bundle: int | None = None
    most_together: int | None = None
    is_dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the calls run on.

    Parameters
    ----------
    n_slots : int
        Slots at the beginning.
    joins : sequence of (float, int)
        When others join [s], and how many.
    round_trip_s : float
        From the client to a slot and back [s].
    bundle_s, call_s : float
        Time of the client for a bundle, and for each call in it [s].
    arrival_s : float
        Time between two submissions [s].
    import_s : float
        How much longer the first call in each slot lasts [s].
    tells_slots : bool
        Whether the client hears how many slots there are.
    """

    n_slots: int
    joins: Sequence[tuple[float, int]] = ()
    round_trip_s: float = 0.003
    bundle_s: float = 0.0015
    call_s: float = 5e-6
    arrival_s: float = 0.0
    import_s: float = 0.0
    tells_slots: bool = True


@dataclass(slots=True)
class Outcome:
    """What a run was like.

    Attributes
    ----------
    makespan_s : float
        From the first submission until the client has the last result [s].
    n_bundles, n_calls_most : int
        Bundles that were sent, and how many calls there were in the longest of them.
    n_waiting_most : int
        How many bundles were on their way, or waited in the cluster, at most [bundles].
    busy : list of (float, int)
        When how many slots were busy; each time that one got busy.
    """

    makespan_s: float = 0.0
    n_bundles: int = 0
    n_calls_most: int = 0
    n_waiting_most: int = 0
    busy: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Sent:
    calls: list[Call]
    expected_s: float
    limit_s: float
    was_placed: bool = False


class Simulation:
    """Some calls of one lane, from the first submission to the last result.

    Parameters
    ----------
    calls : sequence of Call
        In the order of their submission.
    machine : Machine
        What they run on.
    pace : Pace
        The bounds of bundles.
    estimates : Estimates
        What is known before.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        machine: Machine,
        pace: Pace | None = None,
        estimates: Estimates | None = None,
    ) -> None:
        self.machine, self.pace = machine, pace or Pace()
        self.estimates = estimates or Estimates()
        self.lane = Lane[Call](self.pace, self.estimates)
        self.outcome = Outcome()
        self._n_left = len(calls)
        self._calls = deque(calls)
        self._arrived: deque[_Sent] = deque()
        self._n_slots, self._n_free = machine.n_slots, machine.n_slots
        self._n_cold = machine.n_slots
        self._n_underway = 0
        self._client_free_s = self._told_s = -math.inf
        self._is_pump_due = False
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = itertools.count()
        self._hop_s = machine.round_trip_s / 4

    def run(self) -> Outcome:
        """Run all calls."""
        if self.machine.arrival_s:
            self._at(0.0, self._submit_some)
        else:
            self._at(0.0, self._submit_all)
        for when_s, count in self.machine.joins:
            self._at(when_s, functools.partial(self._join, count))
        while self._events and self._n_left:
            now, _, do = heapq.heappop(self._events)
            do(now)
        assert not self._n_left, "stalled"
        return self.outcome

    def _at(self, when_s: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._serial), do))

    # -- client -----------------------------------------------------------------------------

    def _submit_all(self, now: float) -> None:
        while self._calls:
            self.lane.add(self._calls.popleft())
        self._pump_soon(now)

    def _submit_some(self, now: float) -> None:
        for _ in range(max(1, round(0.002 / self.machine.arrival_s))):
            if self._calls:
                self.lane.add(self._calls.popleft())
        if self._calls:
            self._at(now + max(0.002, self.machine.arrival_s), self._submit_some)
        self._pump_soon(now)

    def _pump_soon(self, now: float) -> None:
        if not self._is_pump_due and len(self.lane):
            self._is_pump_due = True
            self._at(max(now, self._client_free_s), self._pump)

    def _pump(self, now: float) -> None:
        self._is_pump_due = False
        lane, machine, outcome = self.lane, self.machine, self.outcome
        batch: list[_Sent] = []
        free_s = now
        while (calls := lane.next_bundle()) is not None:
            expected_s = self.estimates.of(calls[0].function).mean_s
            batch.append(_Sent(calls, expected_s, lane.limit_s(calls)))
            outcome.n_calls_most = max(outcome.n_calls_most, len(calls))
            free_s += machine.bundle_s + len(calls) * machine.call_s
        self._client_free_s = free_s
        self._n_underway += len(batch)
        outcome.n_bundles += len(batch)
        outcome.n_waiting_most = max(outcome.n_waiting_most, self._n_underway)
        if batch:
            self._at(free_s + self._hop_s, lambda now: self._arrive(now, batch))
        is_due = now - self._told_s >= _BACKLOG_INTERVAL_S
        if len(lane) and machine.tells_slots and is_due:
            self._told_s = now
            self._at(now + self._hop_s, self._say_slots)
            self._at(now + _BACKLOG_INTERVAL_S, self._pump_soon)

    def _say_slots(self, now: float) -> None:
        count = self._n_slots
        self._hear(now, lambda: setattr(self.lane, "n_slots", count))

    def _hear(self, now: float, take: Callable[[], None]) -> None:
        """Let the client take a piece of news, once it has come and the client has time."""

        def arrives(now: float) -> None:
            if now < self._client_free_s:
                self._at(self._client_free_s, arrives)
            else:
                take()
                self._pump_soon(now)

        self._at(now + self._hop_s, arrives)

    def _take(self, done: Sequence[tuple[Call, float]]) -> None:
        by_function: dict[str, tuple[float, int]] = {}
        for call, wall_s in done:
            sum_s, count = by_function.get(call.function, (0.0, 0))
            by_function[call.function] = sum_s + wall_s + _CALL_S, count + 1
        for function, (sum_s, count) in by_function.items():
            self.estimates.of(function).measured(sum_s, count=count)
        self._n_left -= len(done)

    # -- scheduler --------------------------------------------------------------------------

    def _join(self, count: int, now: float) -> None:
        self._n_slots += count
        self._n_free += count
        self._n_cold += count
        self._place(now)

    def _arrive(self, now: float, batch: Sequence[_Sent]) -> None:
        self._arrived.extend(batch)
        self._place(now)

    def _place(self, now: float) -> None:
        while self._n_free and self._arrived:
            sent = self._arrived.popleft()
            self._n_free -= 1
            self._n_underway -= 1
            self.outcome.busy.append((now, self._n_slots - self._n_free))
            self._hear(now, functools.partial(self._placed, sent))
            self._run(now + self._hop_s, sent)

    def _placed(self, sent: _Sent) -> None:
        sent.was_placed = True
        self.lane.placed()

    def _free(self, now: float) -> None:
        self._n_free += 1
        self._place(now)

    # -- slot -------------------------------------------------------------------------------

    def _run(self, began_s: float, sent: _Sent) -> None:
        """Say when everything happens in a slot that begins a bundle."""
        calls = sent.calls
        warm_up_s = self.machine.import_s if self._n_cold > 0 else 0.0
        self._n_cold -= 1
        patience_s = max(_PATIENCE_S, _PATIENCE * sent.expected_s)
        is_alone = len(calls) == 1
        now, poll_s = began_s, began_s + _POLL_S
        done: list[tuple[Call, float]] = []
        back: list[Call] = []
        for index, call in enumerate(calls):
            if index and now - began_s > sent.limit_s:
                back = calls[index:]
                break
            wall_s = call.wall_s + (0.0 if index else warm_up_s)
            while poll_s < now + wall_s and not is_alone:
                if done:
                    self._tell(poll_s, done)
                    done = []
                if poll_s - now > patience_s and index + 1 < len(calls):
                    self._give_back(poll_s + _SEEN_S, calls[index + 1 :])
                    del calls[index + 1 :]
                poll_s += _POLL_S
            now += wall_s + _CALL_S
            done.append((call, wall_s))
        self._at(now + self._hop_s, self._free)
        self._end(now, sent, done, back)

    def _tell(self, now: float, done: list[tuple[Call, float]]) -> None:
        self._at(now + self._hop_s, lambda now: self._hear(now, lambda: self._take(done)))

    def _give_back(self, now: float, calls: list[Call]) -> None:
        self._at(now + self._hop_s, lambda now: self._hear(now, lambda: self.lane.give_back(calls)))

    def _end(
        self, now: float, sent: _Sent, done: list[tuple[Call, float]], back: list[Call]
    ) -> None:
        def take() -> None:
            self._take(done)
            self.lane.give_back(back)
            self.lane.ended(was_placed=sent.was_placed)
            if not self._n_left:
                self.outcome.makespan_s = now + 2 * self._hop_s

        self._at(now + self._hop_s, lambda now: self._hear(now, take))


def simulated(
    seconds: Sequence[float],
    machine: Machine,
    pace: Pace | None = None,
    estimates: Estimates | None = None,
) -> Outcome:
    """Run calls that last so long each [s]."""
    return Simulation([Call(wall_s) for wall_s in seconds], machine, pace, estimates).run()


def best_makespan_s(seconds: Sequence[float], n_slots: int) -> float:
    """Give the makespan of the list schedule that begins the longest calls first [s]."""
    ends = [0.0] * n_slots
    for one_s in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one_s)
    return max(ends)


def least_makespan_s(seconds: Sequence[float], machine: Machine) -> float:
    """Give what nothing can beat [s]: slots get their first bundle one after the other."""
    total_s = math.fsum(seconds)
    late_s, least_s = 0.0, math.inf
    for n_begun in range(1, machine.n_slots + 1):
        late_s += machine.bundle_s * n_begun
        least_s = min(least_s, (total_s + late_s) / n_begun)
    return max(least_s, max(seconds), len(seconds) * machine.call_s)
