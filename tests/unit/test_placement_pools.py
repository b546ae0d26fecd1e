"""Placement with pools and with nodes that come and go: pins, ends, offers, and hope."""

from __future__ import annotations

import pytest

from exadask.core.events import Demand, Offer, WaitingTask
from exadask.core.ledger import NodeId, ShareId, TaskId
from exadask.core.placement import Place, Placement
from exadask.errors import ImpossibleRequest
from exadask.resources import NodeShape, Resources


def submit(
    core: Placement,
    name: str,
    *,
    cores: int = 1,
    gpus: float = 0,
    time: float | None = None,
    pool: str | None = None,
    priority: int = 0,
    allowed: tuple[str, ...] | None = None,
    warm: str | None = None,
    now: float = 0.0,
) -> None:
    task = WaitingTask(
        task=TaskId(name),
        request=Resources.parse(cores=cores, gpus=gpus, time=time),
        priority=(-priority,),
        pool=pool,
        allowed=None if allowed is None else frozenset(map(NodeId, allowed)),
        warm_key=warm,
    )
    core.submit(task, now)
    core.check()


def join(
    core: Placement,
    name: str,
    *,
    cores: int = 4,
    gpus: int = 0,
    pool: str | None = None,
    ends_at: float | None = None,
) -> None:
    core.add_node(
        NodeId(name), NodeShape.declare(cores=cores, gpus=gpus), ends_at=ends_at, pool=pool
    )
    core.check()


def placed(core: Placement, now: float = 0.0) -> dict[str, str]:
    commands = core.dispatch(now)
    core.check()
    return {command.share.task: command.share.node for command in commands}


def refusal(core: Placement, **asked: object) -> str:
    with pytest.raises(ImpossibleRequest) as caught:
        submit(core, "t", **asked)  # type: ignore[arg-type]  # handed through
    return str(caught.value)


# -- pins -------------------------------------------------------------------------------------


def test_a_pinned_task_runs_in_its_pool_only() -> None:
    core = Placement()
    join(core, "a", pool="cpu")
    join(core, "b", pool="debug")
    submit(core, "pinned", pool="debug", cores=3)
    submit(core, "second", pool="debug", cores=3)
    submit(core, "free", cores=3)
    assert placed(core) == {"pinned": "b", "free": "a"}
    join(core, "c", pool="debug")
    assert placed(core) == {"second": "c"}


def test_a_pinned_task_waits_for_its_pool() -> None:
    core = Placement()
    join(core, "a", pool="cpu")
    core.offers = [Offer(pool="gpu")]
    submit(core, "t", pool="gpu")
    assert placed(core) == {}
    assert core.explain(TaskId("t"), 0.0) == "waiting: no node of pool 'gpu' is connected"
    join(core, "b", pool="gpu", cores=1)
    assert placed(core) == {"t": "b"}


def test_explain_speaks_of_the_pool() -> None:
    core = Placement()
    core.offers = [Offer(pool="gpu")]
    join(core, "a", pool="gpu", cores=2)
    join(core, "b", pool="cpu", cores=8)
    submit(core, "wide", pool="gpu", cores=8)
    submit(core, "astray", pool="gpu", allowed=("b",))
    assert core.explain(TaskId("wide"), 0.0) == (
        "waiting: asks for 8 cores, but the largest connected node of pool 'gpu' has 2 cores, "
        "1 TiB of memory"
    )
    assert core.explain(TaskId("astray"), 0.0) == (
        "waiting: may only run on b, which is not of pool 'gpu'"
    )


# -- ends -------------------------------------------------------------------------------------


def test_a_later_end_lets_longer_tasks_in_and_an_earlier_one_keeps_them_out() -> None:
    core = Placement()
    core.offers = [Offer(pool="cpu", walltime_s=1000.0)]
    join(core, "a", ends_at=50.0)
    submit(core, "long", time=100)
    assert placed(core) == {}
    core.set_end(NodeId("a"), 200.0)
    assert placed(core, 10.0) == {"long": "a"}
    core.set_end(NodeId("a"), 60.0)
    submit(core, "next", time=100)
    assert placed(core, 10.0) == {}
    core.set_end(NodeId("a"), None)
    assert placed(core, 10.0) == {"next": "a"}
    core.set_end(NodeId("gone"), 60.0)


def reserve(core: Placement) -> None:
    """Reserve node "a" for the task "wide" at t=10; it can start there at t=50."""
    submit(core, "a", cores=3, time=50, allowed=("a",))
    submit(core, "b", cores=3, allowed=("b",))
    assert placed(core) == {"a": "a", "b": "b"}
    submit(core, "wide", cores=4, time=20)
    submit(core, "over", time=1)
    assert len(placed(core)) == 1
    placed(core, 10.0)
    assert "a is reserved" in core.explain(TaskId("wide"), 10.0)


def test_an_end_before_the_reservation_moves_it_to_another_node() -> None:
    core = Placement()
    join(core, "a")
    join(core, "b")
    reserve(core)
    core.set_end(NodeId("a"), 69.0)
    placed(core, 10.0)
    assert "b is reserved" in core.explain(TaskId("wide"), 10.0)


def test_an_end_after_the_reservation_leaves_it_alone() -> None:
    core = Placement()
    join(core, "a")
    join(core, "b")
    reserve(core)
    core.set_end(NodeId("a"), 71.0)
    placed(core, 10.0)
    assert "a is reserved" in core.explain(TaskId("wide"), 10.0)


def test_nodes_say_which_tasks_may_outlast_them() -> None:
    core = Placement()
    for name in "abc":
        join(core, name)
    submit(core, "long", time=100, allowed=("a",))
    submit(core, "unlimited", allowed=("b",))
    placed(core)
    nodes = [NodeId(name) for name in "abcz"]
    assert core.outlasting(nodes) == []
    for name in nodes:
        core.set_end(name, 60.0)
    assert core.outlasting(nodes) == ["a"]
    assert core.outlasting(nodes[1:]) == []


# -- what is possible -------------------------------------------------------------------------


def test_an_offer_must_fit_by_shape_pool_and_time() -> None:
    core = Placement()
    join(core, "a", pool="cpu", ends_at=60.0)
    core.offers = [
        Offer(pool="cpu", shape=NodeShape.declare(cores=4), walltime_s=3600.0),
        Offer(pool="gpu", shape=NodeShape.declare(cores=2, gpus=2), walltime_s=600.0),
    ]
    submit(core, "renewed", time=3600)
    submit(core, "gpu", gpus=2, time=600)
    assert "asks for 5 cores, but the largest node has 4 cores" in refusal(core, cores=5)
    assert "asks for 1 core, 3 GPUs, but the largest node has 2 cores, 2 GPUs" in refusal(
        core, gpus=3
    )
    assert "in pool 'cpu', but the largest node has 4 cores, 1 TiB" in refusal(
        core, gpus=1, pool="cpu"
    )
    assert "stays at most 1h. Lower time=" in refusal(core, time=3601)
    assert "stays at most 10m. Lower time=" in refusal(core, gpus=1, time=601)
    assert "no such pool is open; open are: cpu, gpu. Correct pool=" in refusal(core, pool="cqu")


def test_an_offer_of_unknown_shape_may_fit_anything() -> None:
    core = Placement()
    join(core, "a", pool="cpu")
    core.offers = [Offer(pool="new", walltime_s=60.0)]
    submit(core, "huge", cores=10_000, gpus=64, time=60)
    assert "stays at most 1m" in refusal(core, cores=10_000, time=61)


def test_without_offers_the_time_left_is_a_limit() -> None:
    core = Placement()
    join(core, "a", ends_at=60.0)
    submit(core, "short", time=60)
    assert "stays at most 1m" in refusal(core, time=61)
    assert "there are no pools here" in refusal(core, pool="cpu")


def test_with_neither_nodes_nor_offers_everything_waits_and_nothing_has_hope() -> None:
    core = Placement()
    submit(core, "a", cores=1000)
    submit(core, "b", pool="nowhere")
    assert core.hopeless(0.0) == ["a", "b"]


def test_hope_is_lost_with_offers_and_with_time() -> None:
    core = Placement()
    core.offers = [Offer(pool="gpu", shape=NodeShape.declare(cores=2, gpus=2), walltime_s=600.0)]
    join(core, "a", pool="cpu", ends_at=100.0)
    submit(core, "gpu", gpus=1)
    submit(core, "cpu", cores=4, time=50)
    submit(core, "bound", allowed=("a",))
    assert core.hopeless(0.0) == []
    assert core.hopeless(51.0) == ["cpu"]
    core.offers = []
    assert core.hopeless(0.0) == ["gpu"]
    core.remove_node(NodeId("a"))
    core.offers = [Offer(pool="cpu")]
    assert core.hopeless(0.0) == ["bound"]


# -- demand -----------------------------------------------------------------------------------


def test_demand_is_counted_by_what_nodes_must_have_in_the_order_of_service() -> None:
    core = Placement()
    for name in ("n0", "n1"):
        submit(core, name)
    submit(core, "n2", warm="model")
    submit(core, "wide", cores=4)
    submit(core, "pinned", pool="gpu", priority=1)
    submit(core, "bound", allowed=("a",), priority=-1)
    one = Resources(cores=1)
    assert core.demand() == [
        Demand(request=one, pool="gpu"),
        Demand(request=Resources(cores=4)),
        Demand(request=one, count=3),
        Demand(request=one, is_bound=True),
    ]


def test_idle_nodes_have_nothing_held_lent_or_reserved() -> None:
    core = Placement()
    for name in "ab":
        join(core, name)
    assert core.idle_nodes() == ["a", "b"]
    submit(core, "t", allowed=("b",))
    placed(core)
    assert core.idle_nodes() == ["a"]
    core.lend(ShareId(0))
    assert core.idle_nodes() == ["a"]
    core.release(ShareId(0))
    assert core.idle_nodes() == ["a", "b"]


# -- sparing GPUs -----------------------------------------------------------------------------

CPUS = NodeShape.declare(cores=4)
GPUS = NodeShape.declare(cores=8, gpus=4)


def placed_on(placement: Placement, now: float = 0.0) -> list[str]:
    """Dispatch, and name the nodes of what was placed."""
    return [str(one.share.node) for one in placement.dispatch(now) if isinstance(one, Place)]


def two_cpu_tasks() -> Placement:
    placement = Placement()
    placement.add_node(NodeId("gpu-0"), GPUS, pool="gpu")
    placement.offers = [Offer(pool="gpu", shape=GPUS), Offer(pool="cpu", shape=CPUS)]
    for name in ("a", "b"):
        task = WaitingTask(task=TaskId(name), request=Resources(), priority=(0,))
        placement.submit(task, now=0.0)
    return placement


def test_nodes_with_gpus_serve_anybody_while_no_other_is_near() -> None:
    assert placed_on(two_cpu_tasks()) == ["gpu-0", "gpu-0"]


def test_nodes_with_gpus_are_spared_when_others_are_near() -> None:
    placement = two_cpu_tasks()
    placement.offers = [*placement.offers, Offer(pool="cpu", shape=CPUS, is_near=True)]
    assert placed_on(placement) == []
    assert placement.explain(TaskId("a"), 0.0) == (
        "waiting: needs no GPU, and a node without GPUs is about to join"
    )
    placement.add_node(NodeId("cpu-0"), CPUS, pool="cpu")
    assert placed_on(placement) == ["cpu-0", "cpu-0"]
    placement.check()


def test_nodes_with_gpus_open_again_when_the_others_are_gone() -> None:
    placement = two_cpu_tasks()
    placement.offers = [Offer(pool="cpu", shape=CPUS, is_near=True)]
    assert placed_on(placement) == []
    placement.offers = [Offer(pool="gpu", shape=GPUS)]
    assert placed_on(placement) == ["gpu-0", "gpu-0"]


def test_a_pinned_task_and_a_fixed_cluster_know_no_such_rule() -> None:
    placement = two_cpu_tasks()
    placement.offers = [Offer(pool="cpu", shape=CPUS, is_near=True)]
    pinned = WaitingTask(task=TaskId("c"), request=Resources(), priority=(0,), pool="gpu")
    placement.submit(pinned, now=0.0)
    assert placed_on(placement) == ["gpu-0"]
    placement.offers = []
    assert placed_on(placement) == ["gpu-0", "gpu-0"]
