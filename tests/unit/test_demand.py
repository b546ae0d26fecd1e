"""How many nodes of which pool would help."""

from __future__ import annotations

import time

import pytest

from exadask.core.demand import Candidate, Coming, candidates_of, wishes
from exadask.core.events import Demand
from exadask.resources import NodeShape, Resources

CPU = NodeShape.declare(cores=8, memory=1000)
GPU = NodeShape.declare(cores=8, gpus=4, memory=1000)


def need(count: int = 1, *, pool: str | None = None, alone: bool = False, **asked: float) -> Demand:
    request = Resources.parse(**asked)  # type: ignore[arg-type]  # handed through
    return Demand(request=request, pool=pool, alone=alone, count=count)


def pool(
    name: str = "cpu",
    shape: NodeShape | None = CPU,
    *,
    room: int = 100,
    coming: int | tuple[int, ...] = (),
    walltime_s: float = 3600.0,
    is_open: bool = True,
) -> Candidate:
    nodes = (coming,) if isinstance(coming, int) else coming
    return Candidate(
        pool=name,
        shape=shape,
        walltime_s=walltime_s,
        coming=tuple(
            Coming(allocation=f"{name}-{index}", nodes=one, left_s=walltime_s)
            for index, one in enumerate(nodes)
        ),
        room=room,
        is_open=is_open,
    )


def more(demand: list[Demand], *pools: Candidate) -> list[int]:
    return [wish.more for wish in wishes(demand, pools)]


# -- how many ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "nodes"),
    [
        ([], 0),
        ([need(1)], 1),
        ([need(8)], 1),
        ([need(9)], 2),
        ([need(4, cores=5)], 4),
        ([need(4, cores=5), need(12)], 4),
        ([need(4, cores=5), need(13)], 5),
        ([need(3, cores=1, memory=600)], 3),
        ([need(3, alone=True)], 3),
        ([need(3, alone=True), need(1)], 4),
        ([need(9, cores=9)], 0),
    ],
)
def test_all_that_waits_could_run_at_once(demand: list[Demand], nodes: int) -> None:
    assert more(demand, pool()) == [nodes]


def test_fractions_of_gpus_share_devices() -> None:
    assert more([need(16, gpus=0.25), need(4, gpus=0.5)], pool("gpu", GPU)) == [3], "cores"
    wide = NodeShape.declare(cores=64, gpus=4)
    assert more([need(16, gpus=0.25), need(4, gpus=0.5)], pool("gpu", wide)) == [2]
    assert more([need(3, gpus=0.6)], pool("gpu", wide)) == [1]


def test_bound_tasks_ask_for_nothing() -> None:
    demand = [Demand(request=Resources(), is_bound=True, count=5)]
    assert more(demand, pool()) == [0]


def test_what_is_coming_is_used_first_and_in_order() -> None:
    (wish,) = wishes([need(20)], [pool(coming=(1, 1, 1))])
    assert (wish.more, wish.needed) == (0, {"cpu-0": 1, "cpu-1": 1, "cpu-2": 1})
    (wish,) = wishes([need(9)], [pool(coming=(1, 2, 1))])
    assert (wish.more, wish.needed) == (0, {"cpu-0": 1, "cpu-1": 1, "cpu-2": 0})
    (wish,) = wishes([need(40)], [pool(coming=(1, 2, 1))])
    assert (wish.more, wish.needed) == (1, {"cpu-0": 1, "cpu-1": 2, "cpu-2": 1})


def test_what_is_coming_for_too_short_a_time_is_not_used() -> None:
    coming = (Coming(allocation="old", nodes=1, left_s=60.0),)
    candidate = Candidate(pool="cpu", shape=CPU, walltime_s=3600.0, coming=coming, room=9)
    (wish,) = wishes([need(1, time=100)], [candidate])
    assert (wish.more, wish.needed, wish.time_s) == (1, {"old": 0}, 100.0)
    (wish,) = wishes([need(1, time=60), need(8)], [candidate])
    assert (wish.more, wish.needed, wish.time_s) == (1, {"old": 1}, 0.0)


def test_only_ripe_tasks_ask_for_more() -> None:
    wide, narrow = need(2, cores=8), need(4)
    (wish,) = wishes([wide, narrow], [pool(coming=2)], ripe=[narrow])
    assert (wish.more, wish.needed) == (0, {"cpu-0": 2})
    (wish,) = wishes([wide, narrow], [pool(coming=2)], ripe=[wide])
    assert (wish.more, wish.needed) == (0, {"cpu-0": 2}), "narrow tasks find no room, and wait"
    (wish,) = wishes([wide, narrow], [pool(coming=2)])
    assert (wish.more, wish.needed) == (1, {"cpu-0": 2})
    (wish,) = wishes([wide, narrow], [pool(coming=1)], ripe=[])
    assert (wish.more, wish.needed, wish.beyond) == (0, {"cpu-0": 1}, 0)


def test_the_room_is_respected_and_the_rest_is_told() -> None:
    (wish,) = wishes([need(40)], [pool(room=2)])
    assert (wish.more, wish.beyond) == (2, 3)
    assert wish.reason == "40 tasks of 1 core wait; 5 nodes of 8 cores would run them at once"


# -- of which pool ----------------------------------------------------------------------------


def test_pools_are_used_in_their_order_and_overflow_into_the_next() -> None:
    assert more([need(24)], pool(room=2), pool("debug", room=1)) == [2, 1]
    assert more([need(24)], pool(), pool("debug")) == [3, 0]


def test_what_is_coming_in_the_second_pool_counts_before_new_nodes_of_the_first() -> None:
    first, second = wishes([need(16)], [pool(), pool("debug", coming=1)])
    assert (first.more, second.needed, second.more) == (1, {"debug-0": 1}, 0)


def test_a_pin_a_shape_and_a_walltime_choose_the_pool() -> None:
    pools = (pool(walltime_s=600.0), pool("long", NodeShape.declare(cores=4), walltime_s=7200.0))
    assert more([need(1, pool="long")], *pools) == [0, 1]
    assert more([need(1, time=601)], *pools) == [0, 1]
    assert more([need(1, cores=5)], *pools) == [1, 0]
    assert more([need(1, cores=5, time=601)], *pools) == [0, 0]


def test_tasks_without_gpus_never_ask_for_gpu_nodes_where_others_fit() -> None:
    assert more([need(24)], pool("gpu", GPU), pool(room=1)) == [0, 1]
    assert more([need(24)], pool("gpu", GPU), pool(room=0)) == [0, 0], "even at its cap"
    assert more([need(24)], pool("gpu", GPU)) == [3]
    assert more([need(24)], pool("gpu", GPU), pool(is_open=False, room=0)) == [3, 0]
    assert more([need(24, pool="gpu")], pool("gpu", GPU), pool()) == [3, 0]


def test_tasks_with_gpus_ask_only_for_gpu_nodes() -> None:
    assert more([need(5, gpus=1)], pool(), pool("gpu", GPU)) == [0, 2]
    assert candidates_of(need(1, gpus=1), [pool(), pool("gpu", GPU)]) == [1]


def test_a_pool_of_unknown_shape_is_asked_for_one_allocation_to_learn_it() -> None:
    (wish,) = wishes([need(100, cores=32)], [pool(shape=None)])
    assert (wish.more, wish.reason) == (
        1,
        "100 tasks of 32 cores wait; 1 node would run them at once",
    )
    (wish,) = wishes([need(100, cores=32)], [pool(shape=None, coming=3)])
    assert (wish.more, wish.needed) == (0, {"cpu-0": 3})
    assert more([need(100)], pool(shape=None, room=0)) == [0]


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "shape", "reason"),
    [
        ([need(1)], CPU, "1 task of 1 core waits; 1 node of 8 cores would run it at once"),
        (
            [need(2, cores=5), need(1, cores=4)],
            CPU,
            "2 tasks of 5 cores and 1 other wait; 3 nodes of 8 cores would run them at once",
        ),
        (
            [need(3, memory=500)],
            CPU,
            "3 tasks of 500 B of memory wait; 2 nodes of 0.9766 KiB would run them at once",
        ),
        (
            [need(5, gpus=0.5)],
            GPU,
            "5 tasks of 0.5 GPU wait; 1 node of 4 GPUs would run them at once",
        ),
    ],
)
def test_the_reason_names_the_scarce_resource(
    demand: list[Demand], shape: NodeShape, reason: str
) -> None:
    (wish,) = wishes(demand, [pool(shape=shape)])
    assert wish.reason == reason


# -- many -------------------------------------------------------------------------------------

BIG = NodeShape.declare(cores=128)


@pytest.mark.parametrize(
    ("demand", "nodes"),
    [
        ([need(1_000_000)], 7813),
        ([need(10_000, cores=96), need(10_000, cores=32)], 10_000),
        ([need(9_000, cores=128)], 9_000),
        ([need(300_000, cores=3), need(1, cores=128)], 7_144),
        ([need(1_000, cores=width) for width in range(32, 0, -1)], 4_125),
    ],
)
def test_many_tasks_are_estimated(demand: list[Demand], nodes: int) -> None:
    assert more(demand, pool(shape=BIG, room=20_000))[0] == pytest.approx(nodes, rel=0.05)


def test_a_few_tasks_are_not_forgotten_among_many() -> None:
    demand = [need(1_000_000), need(4, gpus=1), need(3, pool="debug")]
    pools = pool(shape=BIG, room=9408), pool("gpu", GPU), pool("debug", BIG)
    cpu, gpu, debug = more(demand, *pools)
    assert cpu == pytest.approx(7813, rel=0.01)
    assert (gpu, debug) == (1, 1)


def test_more_than_the_room_of_many_fills_it_and_overflows() -> None:
    pools = pool(shape=BIG, room=4), pool("more", BIG, room=3000), pool("rest", BIG, room=9408)
    first, second, third = wishes([need(1_000_000)], pools)
    assert (first.more, second.more) == (4, 3000)
    assert third.more == pytest.approx(7813 - 3004, rel=0.02)


def test_what_is_coming_of_many_is_counted_in_full() -> None:
    (wish,) = wishes([need(100_000)], [pool(shape=BIG, coming=(300, 300, 300), room=100)])
    assert wish.more == 0
    assert (wish.needed["cpu-0"], wish.needed["cpu-1"]) == (300, 300)
    assert wish.needed["cpu-2"] == pytest.approx(182, abs=5)


def test_asking_twice_for_the_same_need_adds_nothing() -> None:
    for count in (10, 600, 5_000, 123_457):
        demand = [need(count, cores=3), need(count // 7, cores=50)]
        (wish,) = wishes(demand, [pool(shape=BIG, room=9408)])
        coming = pool(shape=BIG, coming=wish.more, room=9408 - wish.more)
        (again,) = wishes(demand, [coming])
        assert again.more == 0, count


def test_a_plan_for_a_large_machine_takes_milliseconds() -> None:
    demand = [need(1_000_000), need(50_000, gpus=1), need(20_000, cores=64, time=600)]
    pools = pool(shape=BIG, room=9408, coming=(4000, 100)), pool("gpu", GPU, room=9408)
    began_s = time.perf_counter()
    wishes(demand, pools)
    assert time.perf_counter() - began_s < 0.4, "a shared machine may be slow; about 0.05 otherwise"
