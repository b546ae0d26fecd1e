"""Which calls travel together, and what that costs in time: the policy on a simulated clock."""

from __future__ import annotations

import math
import random

import pytest

from exadask.core.bundling import Estimate, Estimates, Lane, Pace
from tests.unit.bundling_simulation import (
    Call,
    Machine,
    best_makespan_s,
    least_makespan_s,
    simulated,
)


def lane_of(
    *calls: Call, known: dict[str, float] | None = None, pace: Pace | None = None
) -> Lane[Call]:
    """Make a lane for 2 slots, where these calls wait."""
    estimates = Estimates()
    for function, wall_s in (known or {}).items():
        estimates.of(function).measured(wall_s)
    lane = Lane[Call](pace or Pace(), estimates)
    lane.n_slots = 2
    for call in calls:
        lane.add(call)
    return lane


def sizes(lane: Lane[Call]) -> list[int]:
    """Take all that the lane lets go, each placed at once; give the numbers of calls."""
    found = []
    while (bundle := lane.next_bundle()) is not None:
        found.append(len(bundle))
        lane.placed()
    return found


# -- estimates ------------------------------------------------------------------------------


def test_the_first_calls_do_not_count_if_they_import() -> None:
    estimate = Estimate()
    assert not estimate.is_known
    for wall_s in (2.0, 0.001, 1.9, 0.002):
        estimate.measured(wall_s)
    assert estimate.mean_s == 0.001


def test_many_first_calls_that_import_are_soon_forgotten() -> None:
    estimate = Estimate()
    for _ in range(56):
        estimate.measured(1.0)
    for _ in range(5):
        estimate.measured(0.001)
    assert estimate.mean_s < 0.1


def test_a_mean_follows_bundles_at_once_and_single_calls_slowly() -> None:
    estimate = Estimate()
    estimate.measured(0.01, count=10)
    estimate.measured(0.05)
    assert estimate.mean_s < 0.01
    estimate.measured(2.0, count=100)
    assert estimate.mean_s == pytest.approx(0.02, rel=0.1)


def test_a_function_is_heavy_until_most_results_are_light_again() -> None:
    estimate = Estimate()
    estimate.weighed(is_heavy=True)
    for _ in range(10):
        assert estimate.is_heavy
        estimate.weighed(is_heavy=False)
    estimate.weighed(is_heavy=False)
    assert not estimate.is_heavy


# -- bundles --------------------------------------------------------------------------------


def test_unknown_calls_travel_one_by_one_and_fill_slots_at_a_doubling_rate() -> None:
    lane = lane_of(*(Call(1.0) for _ in range(100)))
    lane.n_slots = 0
    waves = []
    for _ in range(4):
        bundles = []
        while (bundle := lane.next_bundle()) is not None:
            bundles.append(bundle)
        assert all(len(one) == 1 for one in bundles)
        waves.append(len(bundles))
        for _ in bundles:
            lane.placed()
    assert waves == [4, 4, 8, 16]


def test_bundles_become_shorter_towards_the_end() -> None:
    lane = lane_of(*(Call(0.01) for _ in range(100)), known={"f": 0.01})
    lane.n_slots = 2
    found = []
    while (bundle := lane.next_bundle()) is not None:
        found.append(len(bundle))
        lane.placed()
        lane.ended(was_placed=True)
    assert found[0] == 24
    assert found == sorted(found, reverse=True)
    assert found[-1] == 1
    assert sum(found) == 100


def test_few_long_calls_travel_alone() -> None:
    lane = lane_of(*(Call(1.0) for _ in range(9)), known={"f": 1.0})
    assert sizes(lane) == [1] * 9


def test_what_the_user_says_counts_more_than_what_is_known() -> None:
    lane = lane_of(*(Call(1.0, bundle=20) for _ in range(50)), known={"f": 1.0})
    assert lane.n_bundles() == 3
    assert sizes(lane) == [20, 20, 10]


def test_no_bundle_has_more_calls_than_a_board() -> None:
    lane = lane_of(*(Call(0.0, bundle=100) for _ in range(30)), pace=Pace(most_calls=10))
    assert lane.n_bundles() == 3
    assert sizes(lane) == [10, 10, 10]


def test_suspects_travel_in_small_bundles_of_their_own() -> None:
    suspects = [Call(0.0, most_together=3) for _ in range(7)]
    lane = lane_of(*suspects, *(Call(0.0) for _ in range(5)), known={"f": 1e-6})
    assert sizes(lane) == [3, 3, 1, 5]
    assert lane_of(*suspects, known={"f": 1e-6}).n_bundles() == 3


def test_large_arguments_bound_a_bundle() -> None:
    pace = Pace(most_bytes=100)
    lane = lane_of(*(Call(0.0, nbytes=30) for _ in range(5)), known={"f": 1e-6}, pace=pace)
    assert sizes(lane) == [3, 2]
    lane = lane_of(Call(0.0, nbytes=300), Call(0.0, nbytes=1), known={"f": 1e-6}, pace=pace)
    assert sizes(lane) == [1, 1]


@pytest.mark.parametrize(
    "stranger", [Call(0.0, "new"), Call(0.0, is_single=True), Call(0.0, "big")]
)
def test_nobody_travels_with_a_stranger(stranger: Call) -> None:
    known = {"f": 1e-6, "big": 1e-6}
    lane = lane_of(*(Call(0.0) for _ in range(3)), stranger, *(Call(0.0),) * 2, known=known)
    lane._estimates.of("big").weighed(is_heavy=True)
    assert sizes(lane) == [3, 1, 2]


def test_functions_that_are_known_travel_together() -> None:
    calls = [Call(0.0, "fg"[index % 2]) for index in range(10)]
    assert sizes(lane_of(*calls, known={"f": 1e-6, "g": 1e-5})) == [10]


def test_dropped_calls_are_never_sent() -> None:
    calls = [Call(0.0) for _ in range(10)]
    lane = lane_of(*calls, known={"f": 1e-6})
    for call in calls[::2]:
        call.is_dropped = True
    assert lane.next_bundle() == calls[1::2]
    assert lane.next_bundle() is None


def test_a_queue_of_dropped_calls_asks_for_no_nodes() -> None:
    calls = [Call(0.0) for _ in range(10)]
    lane = lane_of(*calls)
    for call in calls:
        call.is_dropped = True
    assert lane.n_bundles() == len(lane) == 0


def test_what_was_given_back_goes_first() -> None:
    calls = [Call(0.0) for _ in range(4)]
    lane = lane_of(*calls[2:], known={"f": 1e-6})
    lane.give_back(calls[:2])
    assert [lane.position(call) for call in calls] == [0, 1, 2, 3]
    assert lane.next_bundle() == calls


def test_a_bundle_ends_early_when_it_lasts_twice_as_long_as_expected() -> None:
    lane = lane_of(known={"f": 0.01, "g": 0.1})
    assert lane.limit_s([Call(0.0)] * 10 + [Call(0.0, "g")]) == pytest.approx(0.4)
    assert lane.limit_s([Call(0.0)] * 2) == 0.05
    assert lane.limit_s([Call(0.0, bundle=2)] * 2) == math.inf


def test_many_slots_get_longer_bundles_that_can_be_sent_in_time() -> None:
    lane = lane_of(*(Call(1.0) for _ in range(8000)), known={"f": 1.0})
    lane.n_slots = 1000
    bundle = lane.next_bundle()
    assert bundle is not None
    assert len(bundle) == 3  # of 3 s: while a slot is busy with it, 2,000 can be sent


# -- in time --------------------------------------------------------------------------------


@pytest.mark.parametrize("tells_slots", [True, False])
@pytest.mark.parametrize(
    ("count", "wall_s", "n_slots", "least"),
    [
        (5_000, 0.001, 1, 0.96),
        (20_000, 0.001, 2, 0.97),
        (2_000, 0.01, 2, 0.98),
        (400, 0.1, 2, 0.98),
        (100, 1.0, 2, 0.99),
        (224, 1.0, 56, 0.95),
    ],
)
def test_slots_are_kept_busy(
    count: int, wall_s: float, n_slots: int, least: float, tells_slots: bool
) -> None:
    machine = Machine(n_slots=n_slots, tells_slots=tells_slots)
    took_s = simulated([wall_s] * count, machine).makespan_s
    assert count * wall_s / n_slots / took_s >= least


@pytest.mark.parametrize("tells_slots", [True, False])
@pytest.mark.parametrize(
    ("count", "wall_s", "n_slots", "most"),
    [
        (5_000, 1e-5, 56, 2.0),
        (1_000, 0.001, 56, 1.7),
        (10_000, 0.001, 56, 1.4),
        (2_000, 0.01, 56, 1.3),
        (400, 0.1, 56, 1.25),
        (10_000, 0.001, 1000, 1.8),
        (2_000, 0.01, 1000, 1.6),
    ],
)
def test_many_slots_are_filled_about_as_fast_as_bundles_can_be_sent(
    count: int, wall_s: float, n_slots: int, most: float, tells_slots: bool
) -> None:
    machine = Machine(n_slots=n_slots, tells_slots=tells_slots)
    seconds = [wall_s] * count
    took_s = simulated(seconds, machine).makespan_s
    assert took_s <= most * least_makespan_s(seconds, machine) + 5 * machine.round_trip_s


def test_a_thousand_slots_are_worth_having_for_longer_calls() -> None:
    machine = Machine(n_slots=1000)
    seconds = [0.1] * 2000
    assert simulated(seconds, machine).makespan_s < 1.3  # one by one, they take 3 s to send


@pytest.mark.parametrize("tells_slots", [True, False])
@pytest.mark.parametrize("position", [0, 1, 2, 7, 13, 20, 29, 37, 49])
def test_nobody_waits_behind_one_long_call(position: int, tells_slots: bool) -> None:
    seconds = [0.02] * 100
    seconds[position] *= 50
    took_s = simulated(seconds, Machine(n_slots=2, tells_slots=tells_slots)).makespan_s
    assert took_s <= 1.1 * best_makespan_s(seconds, 2)


@pytest.mark.parametrize("tells_slots", [True, False])
def test_long_calls_are_not_bundled_whatever_the_backlog(tells_slots: bool) -> None:
    outcome = simulated([1.0] * 560, Machine(n_slots=56, tells_slots=tells_slots))
    assert outcome.n_calls_most == 1
    assert outcome.makespan_s <= 10 + 0.25


def bimodal(count: int, long_s: float, share: float) -> list[float]:
    """Draw calls of 1 ms, of which a share takes longer."""
    rng = random.Random(3)
    return [long_s if rng.random() < share else 0.001 for _ in range(count)]


def lognormal(count: int, mean_s: float, sigma: float) -> list[float]:
    """Draw durations that differ much."""
    rng = random.Random(5)
    return [rng.lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma) for _ in range(count)]


UNEVEN = {
    "lognormal": lognormal(1000, 0.01, 1.5),
    "one in ten 50 times longer": bimodal(1500, 0.05, 0.1),
    "one in fifty 20 times longer": bimodal(3000, 0.02, 0.02),
    "one in fifty 1000 times longer": bimodal(2000, 1.0, 0.02),
    "the last ones 20 times longer": [0.001] * 3000 + [0.02] * 300,
    "the first ones 20 times longer": [0.02] * 300 + [0.001] * 3000,
    "longer and longer": [0.001 * 50 ** (index / 2000) for index in range(2000)],
}


@pytest.mark.parametrize(("n_slots", "most", "late_s"), [(2, 1.02, 0.1), (56, 1.2, 0.6)])
@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_calls_leave_no_slot_alone_for_long(
    name: str, n_slots: int, most: float, late_s: float
) -> None:
    seconds, machine = UNEVEN[name], Machine(n_slots=n_slots)
    took_s = simulated(seconds, machine).makespan_s
    assert took_s <= most * best_makespan_s(seconds, n_slots) + late_s


@pytest.mark.parametrize(("n_slots", "late_s"), [(2, 0.1), (56, 0.3)])
def test_slow_first_calls_are_forgotten(n_slots: int, late_s: float) -> None:
    machine = Machine(n_slots=n_slots, import_s=1.0)
    seconds = [0.001] * 5000
    assert simulated(seconds, machine).makespan_s <= 1.0 + 5.0 / n_slots + late_s


@pytest.mark.parametrize("tells_slots", [True, False])
def test_slots_that_join_late_are_filled_as_fast_as_bundles_can_be_sent(tells_slots: bool) -> None:
    machine = Machine(n_slots=2, joins=[(1.1, 54)], tells_slots=tells_slots)
    outcome = simulated([0.01] * 2500, machine)
    full_s = next(when_s for when_s, n_busy in outcome.busy if n_busy == 56)
    assert full_s <= 1.1 + 56 * machine.bundle_s + 8 * machine.round_trip_s


@pytest.mark.parametrize("arrival_s", [1e-5, 2e-3])
def test_calls_may_come_one_by_one(arrival_s: float) -> None:
    outcome = simulated([0.001] * 2000, Machine(n_slots=2, arrival_s=arrival_s))
    assert outcome.makespan_s <= max(1.0, 2000 * arrival_s) + 0.1


@pytest.mark.parametrize("tells_slots", [True, False])
@pytest.mark.parametrize("n_slots", [1, 2, 56, 1000])
@pytest.mark.parametrize("wall_s", [1e-5, 0.001, 0.1])
def test_few_bundles_wait_in_the_cluster(wall_s: float, n_slots: int, tells_slots: bool) -> None:
    outcome = simulated([wall_s] * 2000, Machine(n_slots=n_slots, tells_slots=tells_slots))
    assert outcome.n_waiting_most <= max(4, n_slots)


def test_a_known_function_is_bundled_from_the_first_call() -> None:
    seconds, machine, estimates = [0.001] * 1000, Machine(n_slots=2), Estimates()
    estimates.of("f").measured(0.001)
    cold, warm = simulated(seconds, machine), simulated(seconds, machine, estimates=estimates)
    assert warm.n_bundles < cold.n_bundles
    assert warm.makespan_s < cold.makespan_s
