"""Gangs: several nodes at once, of one allocation, or none; they wait no longer than is stated."""

from __future__ import annotations

import heapq
import random

import pytest

from exadask.core.demand import Candidate, Coming, wishes
from exadask.core.events import Demand
from exadask.core.ledger import NodeId, ShareId, TaskId
from exadask.core.placement import Offer, Place, Placement, WaitingTask
from exadask.errors import ImpossibleRequest
from exadask.resources import NodeShape, Resources


def core_of(*nodes: int, reserve_after_s: float = 10.0, per_allocation: int = 100) -> Placement:
    core = Placement(reserve_after_s=reserve_after_s)
    for index, cores in enumerate(nodes):
        shape = NodeShape.declare(cores=cores, gpus=2, memory=1000)
        allocation = f"a{index // per_allocation}"
        core.add_node(NodeId(f"n{index}"), shape, allocation=allocation)
    return core


def submit(core: Placement, name: str, request: Resources, now: float = 0.0, **facts: int) -> None:
    core.submit(WaitingTask(task=TaskId(name), request=request, priority=(0,), **facts), now)  # type: ignore[arg-type]


def placed(core: Placement, now: float = 0.0) -> dict[str, dict[str, int]]:
    """Dispatch; gives for each task its nodes and how many cores it has there."""
    found = {}
    for command in core.dispatch(now):
        assert isinstance(command, Place)
        shares = (command.share, *command.mates)
        assert {share.task for share in shares} == {command.task}
        assert len({share.node for share in shares}) == len(shares)
        found[str(command.task)] = {str(share.node): len(share.cores) for share in shares}
    core.check()
    return found


def on_nodes(nodes: int, cores: int = 1, **more: float) -> Resources:
    return Resources(cores=cores, parts=nodes, is_apart=True, **more)  # type: ignore[arg-type]


def in_ranks(ranks: int, cores: int = 1, **more: int) -> Resources:
    return Resources(cores=cores, parts=ranks, **more)  # type: ignore[arg-type]


def test_all_parts_start_together_or_none() -> None:
    core = core_of(4, 4)
    submit(core, "filler", Resources(cores=3))
    assert placed(core) == {"filler": {"n0": 3}}
    submit(core, "gang", on_nodes(2, cores=2))
    submit(core, "small", Resources(cores=2))
    assert placed(core) == {"small": {"n1": 2}}, "the gang holds nothing while it waits"
    assert core.explain(TaskId("gang"), 0.0) == (
        "waiting: asks for 2 nodes with 2 cores each; at most 1 node of one allocation have room "
        "now"
    )
    core.release(ShareId(0))
    assert placed(core) == {"gang": {"n1": 2, "n0": 2}}
    assert core.explain(TaskId("gang"), 0.0) == "running on n1 with cores 2-3; n0 with cores 0-1"


def test_parts_that_need_not_be_apart_are_on_one_node_if_one_is_large_enough() -> None:
    core = core_of(4, 4)
    submit(core, "filler", Resources(cores=3))
    submit(core, "four", in_ranks(4))
    assert placed(core) == {"four": {"n0": 4}, "filler": {"n1": 3}}
    submit(core, "two", in_ranks(2))
    assert placed(core) == {}, "one core is free; two nodes are not taken for what fits on one"
    core.release(ShareId(0))
    assert placed(core) == {"two": {"n0": 2}}


def test_ranks_that_fit_on_no_node_are_spread_over_as_few_as_can_be() -> None:
    core = core_of(4, 4, 4)
    submit(core, "filler", Resources(cores=3))
    assert placed(core) == {"filler": {"n0": 3}}
    submit(core, "gang", in_ranks(7))
    assert placed(core) == {"gang": {"n1": 4, "n2": 3}}
    submit(core, "other", in_ranks(6))
    core.release(ShareId(1))
    assert placed(core) == {"other": {"n1": 4, "n0": 1, "n2": 1}}, "two have no room now"


def test_shares_of_gpus_are_counted_by_device() -> None:
    core = core_of(8, 8)
    submit(core, "gang", in_ranks(6, gpu_units=400))
    (command,) = core.dispatch(0.0)
    assert isinstance(command, Place)
    assert [len(share.gpus) for share in (command.share, *command.mates)] == [2, 1]
    assert [len(share.cores) for share in (command.share, *command.mates)] == [4, 2]


def test_a_larger_node_that_joins_takes_all_ranks() -> None:
    core = core_of(4, 4)
    submit(core, "filler", on_nodes(2, cores=2))
    submit(core, "gang", in_ranks(8))
    assert placed(core) == {"gang": {"n0": 4, "n1": 4}}
    submit(core, "again", in_ranks(8))
    core.add_node(NodeId("large"), NodeShape.declare(cores=8, memory=1000), allocation="b")
    assert placed(core) == {"again": {"large": 8}}


def test_a_gang_stays_within_one_allocation() -> None:
    core = core_of(4, 4, per_allocation=1)
    with pytest.raises(ImpossibleRequest, match="2 nodes with 4 cores each, but one allocation"):
        submit(core, "gang", on_nodes(2, cores=4))
    core.add_node(NodeId("n2"), NodeShape.declare(cores=4, memory=1000), allocation="a1")
    submit(core, "gang", on_nodes(2, cores=4))
    assert placed(core) == {"gang": {"n1": 4, "n2": 4}}


def test_a_gang_waits_for_nodes_that_may_still_join() -> None:
    core = core_of(4, per_allocation=1)
    shape = NodeShape.declare(cores=4, memory=1000)
    core.offers = [Offer(pool=None, shape=shape, nodes=2)]
    submit(core, "gang", on_nodes(2, cores=4))
    assert "so far 1 node of that kind joined" in core.explain(TaskId("gang"), 0.0)
    with pytest.raises(ImpossibleRequest, match="at most 2 nodes with 4 cores"):
        submit(core, "three", on_nodes(3, cores=4))
    core.offers = []
    assert core.hopeless(0.0) == ["gang"]


def test_a_gang_that_does_not_fit_the_time_that_is_left_is_refused() -> None:
    core = Placement()
    for name in ("n0", "n1"):
        core.add_node(NodeId(name), NodeShape.declare(cores=4), ends_at=60.0, allocation="a")
    with pytest.raises(ImpossibleRequest, match="stays at most 1m"):
        submit(core, "gang", on_nodes(2, time_s=61.0))


def test_small_tasks_run_in_the_gap_if_they_end_before_the_gang_begins() -> None:
    core = core_of(4, 4, reserve_after_s=10.0)
    submit(core, "long", Resources(cores=3, time_s=100.0))
    assert placed(core) == {"long": {"n0": 3}}
    submit(core, "gang", on_nodes(2, cores=4))
    submit(core, "s0", Resources(cores=1, time_s=5.0))
    assert placed(core) == {"s0": {"n0": 1}}
    assert core.next_deadline() == 10.0
    assert placed(core, 10.0) == {}
    assert "n1, n0 are reserved" in core.explain(TaskId("gang"), 10.0)
    for name, time_s in (("fits", 90.0), ("late", 91.0), ("unknown", None)):
        submit(core, name, Resources(cores=1, time_s=time_s), now=10.0)
    core.release(ShareId(1))
    assert placed(core, 10.0) == {"fits": {"n0": 1}}, "the whole gang begins at 100 s, not before"
    assert placed(core, 11.0) == {}
    core.release(ShareId(0))
    core.release(ShareId(2))
    assert placed(core, 50.0) == {"gang": {"n0": 4, "n1": 4}}


def test_a_reservation_ends_with_any_of_its_nodes() -> None:
    core = core_of(4, 4, 4, reserve_after_s=10.0)
    for index in range(3):
        submit(core, f"long{index}", Resources(cores=3, time_s=100.0))
    assert len(placed(core)) == 3
    submit(core, "gang", on_nodes(2, cores=4))
    submit(core, "small", Resources(cores=1))
    placed(core)
    placed(core, 10.0)
    first = {name for name, node in core.nodes.items() if node.reserved_for is not None}
    assert len(first) == 2
    lost = min(first)
    core.remove_node(lost)
    placed(core, 11.0)
    after = {name for name, node in core.nodes.items() if node.reserved_for is not None}
    assert after == {"n0", "n1", "n2"} - {lost}, "another takes its place"
    core.pause_node(min(after))
    assert all(node.reserved_for is None for node in core.nodes.values())


def test_a_gang_takes_reservations_of_those_that_have_waited_less() -> None:
    core = core_of(4, 4, reserve_after_s=10.0)
    for index in range(2):
        submit(core, f"long{index}", Resources(cores=3))
    placed(core)
    submit(core, "single", Resources(cores=4, memory_bytes=1))  # overtaken first
    submit(core, "s0", Resources())
    placed(core)
    submit(core, "gang", on_nodes(2, cores=4))
    submit(core, "later", Resources(cores=2, memory_bytes=2))
    submit(core, "s1", Resources(), now=1.0)
    placed(core, 1.0)
    placed(core, 10.0)  # a node is reserved for "single"
    placed(core, 11.0)  # the gang cannot have both; "later" gets the other
    core.release(ShareId(0))
    core.release(ShareId(2))
    running = placed(core, 12.0)
    assert "single" in running
    names = {name: node.reserved_for for name, node in core.nodes.items()}
    assert all(cls is not None and cls.head.task == "gang" for cls in names.values()), names


@pytest.mark.parametrize("seed", range(8))
def test_a_gang_starts_within_its_bound_under_a_stream_of_small_tasks(seed: int) -> None:
    """Two gangs, each of all nodes, wait for two drains of the longest small task at most."""
    draw, all_state_it = random.Random(seed), seed % 2 == 0
    core, now, n_sent = core_of(4, 4, 4, reserve_after_s=3.0), 0.0, 0
    ends: list[tuple[float, ShareId]] = []
    begun: dict[str, float] = {}
    n_backfilled = 0
    while len(begun) < 2:
        while core.n_waiting < 6 + 2 - len(begun):
            lasts_s = draw.choice([0.2, 1.0, 2.0])
            request = Resources(
                cores=draw.choice([1, 1, 2]), time_s=lasts_s if all_state_it else None
            )
            submit(core, f"{lasts_s}-{n_sent}", request, now)
            n_sent += 1
            if n_sent == 20:
                submit(core, "gang-a", on_nodes(3, cores=4), now)
                submit(core, "gang-b", on_nodes(3, cores=3), now)
        for command in core.dispatch(now):
            assert isinstance(command, Place)
            name = str(command.task)
            if name.startswith("gang"):
                begun[name] = now
                lasts_s = 0.5
            else:
                lasts_s = float(name.split("-")[0])
                n_backfilled += core.nodes[command.share.node].reserved_for is not None
            for share in (command.share, *command.mates):
                heapq.heappush(ends, (now + lasts_s, share.share_id))
        core.check()
        assert now <= 20 * 2.0 / 12 + 3.0 + 2 * (2.0 + 0.5) + 2.0, "it waits longer than is stated"
        now, share_id = heapq.heappop(ends)
        core.release(share_id)
    assert bool(n_backfilled) == all_state_it, "the time until all nodes are free is for others"


def test_the_demand_counts_all_nodes_of_a_gang() -> None:
    shape = NodeShape.declare(cores=4)
    pool = Candidate(pool="cpu", shape=shape, walltime_s=60.0, room=10, most=4)
    gangs = Demand(request=on_nodes(3, cores=4), count=2)
    (wish,) = wishes([gangs], [pool])
    assert (wish.more, wish.least, wish.beyond) == (6, 3, 0)
    assert wish.reason == (
        "2 tasks of 3 nodes with 4 cores each wait; 6 nodes of 4 cores would run them at once"
    )
    (wish,) = wishes([Demand(request=in_ranks(10), count=1)], [pool])
    assert (wish.more, wish.least) == (3, 3)
    (wish,) = wishes([Demand(request=on_nodes(5, cores=4), count=1)], [pool])
    assert (wish.more, wish.beyond) == (0, 0), "no allocation has five"


def test_gangs_that_exceed_the_room_leave_their_nodes_together() -> None:
    shape = NodeShape.declare(cores=4)
    pool = Candidate(pool="cpu", shape=shape, walltime_s=60.0, room=5, most=5)
    (wish,) = wishes([Demand(request=on_nodes(2, cores=4), count=1000)], [pool])
    assert wish.more <= 5
    assert wish.beyond > 900


def test_nodes_that_join_one_by_one_are_not_asked_for_again() -> None:
    shape = NodeShape.declare(cores=4)
    coming = Coming(allocation="cpu-0", nodes=1, left_s=60.0, joined=2)
    pool = Candidate(pool="cpu", shape=shape, walltime_s=60.0, room=9, most=3, coming=(coming,))
    (wish,) = wishes([Demand(request=on_nodes(3, cores=4), count=1)], [pool])
    assert (wish.more, dict(wish.needed)) == (0, {"cpu-0": 1})
    (wish,) = wishes([Demand(request=on_nodes(3, cores=4, time_s=61.0), count=1)], [pool])
    assert wish.more == 0, "nor is there a pool whose nodes stay so long"
