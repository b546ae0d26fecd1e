"""Random histories of a lane: every call is in one place, is done once, and travels as it may."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exadask.core.bundling import Estimates, Lane, Pace
from tests.unit.bundling_simulation import Call

PACE = Pace(most_calls=40, most_bytes=100)
KNOWN = {"10 us": 1e-5, "1 ms": 1e-3, "30 ms": 0.03, "1 s": 1.0}
FUNCTIONS = (*KNOWN, "new", "newer", "heavy")


class Sent:
    """A bundle in the cluster, and which of its calls are not done yet."""

    def __init__(self, calls: list[Call]) -> None:
        self.undone = list(calls)


class BundlingMachine(RuleBasedStateMachine):
    """A lane, and a cluster that does with its bundles whatever can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.estimates = Estimates()
        self.lane = Lane[Call](PACE, self.estimates)
        self.calls: list[Call] = []
        self.queue: list[Call] = []  # what should be in the lane, in its order
        self.waiting: list[Sent] = []
        self.running: list[Sent] = []
        self.n_done: dict[int, int] = {}
        self.n_slots = self.n_slots_most = 1

    @initialize(n_slots=st.integers(0, 12))
    def begin(self, n_slots: int) -> None:
        for function, wall_s in KNOWN.items():
            self.estimates.of(function).measured(wall_s, count=10)
        self.estimates.of("heavy").measured(1e-3)
        self.estimates.of("heavy").weighed(is_heavy=True)
        self.resize(n_slots)

    # -- calls ------------------------------------------------------------------------------

    @rule(
        function=st.sampled_from(FUNCTIONS),
        is_single=st.sampled_from([False] * 5 + [True]),
        nbytes=st.sampled_from([0, 0, 0, 5, 60, 1000]),
        bundle=st.sampled_from([None] * 5 + [2, 7, 1000]),
        most_together=st.sampled_from([None] * 5 + [3, 20]),
        count=st.sampled_from([1, 2, 5, 50, 200]),
    )
    def submit(
        self,
        function: str,
        is_single: bool,
        nbytes: int,
        bundle: int | None,
        most_together: int | None,
        count: int,
    ) -> None:
        for _ in range(count):
            call = Call(0.0, function, is_single, nbytes, bundle, most_together)
            self.calls.append(call)
            self.n_done[id(call)] = 0
            self.queue.append(call)
            self.lane.add(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), count=st.sampled_from([1, 1, 2, 30]))
    def drop(self, data: st.DataObject, count: int) -> None:
        """Calls that stand next to each other are wanted no more, wherever they are."""
        start = data.draw(st.integers(0, len(self.calls) - 1))
        for call in self.calls[start : start + count]:
            if not self.n_done[id(call)]:
                call.is_dropped = True

    @rule(function=st.sampled_from(FUNCTIONS), wall_s=st.sampled_from([1e-5, 1e-3, 0.1, 3.0]))
    def learn(self, function: str, wall_s: float) -> None:
        self.estimates.of(function).measured(wall_s)

    @rule(function=st.sampled_from(FUNCTIONS), is_heavy=st.booleans())
    def weigh(self, function: str, is_heavy: bool) -> None:
        self.estimates.of(function).weighed(is_heavy=is_heavy)

    # -- cluster ----------------------------------------------------------------------------

    @rule(n_slots=st.integers(0, 12))
    def resize(self, n_slots: int) -> None:
        """Slots join or leave; what runs goes on."""
        self.n_slots = n_slots
        self.n_slots_most = max(self.n_slots_most, n_slots)

    @rule(is_known=st.booleans())
    def tell_slots(self, is_known: bool) -> None:
        self.lane.n_slots = self.n_slots if is_known else 0

    @rule()
    def send(self) -> None:
        """Take all that the lane lets go."""
        while (bundle := self.lane.next_bundle()) is not None:
            self.queue = [call for call in self.queue if not call.is_dropped]
            assert bundle == self.queue[: len(bundle)], "the order is not kept"
            del self.queue[: len(bundle)]
            self._check_bundle(bundle)
            self.waiting.append(Sent(bundle))
        if any(not call.is_dropped for call in self.queue):
            assert self.waiting, "nothing is sent, though calls wait"

    def _check_bundle(self, bundle: list[Call]) -> None:
        """What travels together may, and is not too long."""
        assert bundle
        first = bundle[0]
        assert self.lane.limit_s(bundle) >= 0.05
        if len(bundle) == 1:
            return
        estimates = [self.estimates.of(call.function) for call in bundle]
        assert not any(call.is_single for call in bundle)
        assert {call.bundle for call in bundle} == {first.bundle}
        assert sum(call.nbytes for call in bundle) <= PACE.most_bytes
        assert {call.most_together for call in bundle} == {first.most_together}
        assert len(bundle) <= (first.most_together or PACE.most_calls)
        assert len(bundle) <= min(first.bundle or PACE.most_calls, PACE.most_calls)
        if first.bundle is None:
            assert all(one.is_known and not one.is_heavy for one in estimates)
            expected_s = sum(one.mean_s for one in estimates)
            assert expected_s <= PACE.bound_s + 1e-9
            assert self.lane.limit_s(bundle) >= 2 * expected_s * (1 - 1e-9)

    @precondition(lambda self: self.waiting and len(self.running) < self.n_slots)
    @rule(data=st.data(), count=st.integers(1, 12))
    def place(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, self.n_slots - len(self.running), len(self.waiting))):
            index = data.draw(st.integers(0, len(self.waiting) - 1))
            self.running.append(self.waiting.pop(index))
            self.lane.placed()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(0, 20), is_retried=st.booleans())
    def progress(self, data: st.DataObject, count: int, is_retried: bool) -> None:
        """The first calls of a bundle end; the last of them may have to be repeated."""
        sent = data.draw(st.sampled_from(self.running))
        done, sent.undone = sent.undone[:count], sent.undone[count:]
        if is_retried and done:
            self._give_back([done.pop()])
        self._finish(done)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def return_rest(self, data: st.DataObject) -> None:
        """What has not begun comes back, and the bundle goes on with the call that runs."""
        sent = data.draw(st.sampled_from(self.running))
        back, sent.undone = sent.undone[1:], sent.undone[:1]
        self._give_back(back)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), n_done=st.sampled_from([0, 1, 3, 1000, 1000]))
    def end(self, data: st.DataObject, n_done: int) -> None:
        """A bundle ends, before all its calls did or not."""
        sent = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self._finish(sent.undone[:n_done])
        self.lane.ended(was_placed=True)
        self._give_back(sent.undone[n_done:])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """A bundle that waits is gone, and its calls come back."""
        sent = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.lane.ended(was_placed=False)
        self._give_back(sent.undone)

    def _finish(self, calls: list[Call]) -> None:
        for call in calls:
            self.n_done[id(call)] += not call.is_dropped

    def _give_back(self, calls: list[Call]) -> None:
        self.queue[:0] = calls
        self.lane.give_back(calls)

    # -- always -----------------------------------------------------------------------------

    @invariant()
    def bundles_are_counted(self) -> None:
        assert self.lane.n_waiting == len(self.waiting)
        assert self.lane.n_running == len(self.running)
        most = max(PACE.ahead, PACE.ahead_unknown, self.n_slots_most + self.n_slots_most // 8)
        assert len(self.waiting) <= most, "too much waits in the cluster"

    @invariant()
    def every_call_is_in_one_place(self) -> None:
        alive = [call for call in self.queue if not call.is_dropped]
        assert [call for call in self.lane._queue if not call.is_dropped] == alive
        sent = [call for one in (*self.waiting, *self.running) for call in one.undone]
        places = [id(call) for call in (*alive, *sent) if not call.is_dropped]
        there = set(places)
        assert len(there) == len(places), "a call is in two places"
        for call in self.calls:
            assert call.is_dropped or self.n_done[id(call)] + (id(call) in there) == 1
        for position, call in enumerate(alive[:3]):
            assert position <= self.lane.position(call)
        assert (self.lane.n_bundles() > 0) == bool(alive)

    def teardown(self) -> None:
        """Let everything end: what waits is sent, and done once."""
        self.n_slots = max(1, self.n_slots)
        for _ in range(2 * len(self.calls) + 2):
            self.send()
            while self.waiting and len(self.running) < self.n_slots:
                self.running.append(self.waiting.pop(0))
                self.lane.placed()
            while self.running:
                self._finish(self.running.pop().undone)
                self.lane.ended(was_placed=True)
            if not self.queue and not self.waiting:
                break
        self.bundles_are_counted()
        assert len(self.lane) == self.lane.n_waiting == self.lane.n_running == 0
        for call in self.calls:
            assert self.n_done[id(call)] == 1 or call.is_dropped


BundlingMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestBundling = BundlingMachine.TestCase
