"""Which bundles are asked to end early, for whom, and that nobody else takes the room."""

from __future__ import annotations

import time

import pytest

from exadask.core.ledger import NodeId, Share, TaskId
from exadask.core.placement import Place, Placement, WaitingTask, Yield
from exadask.resources import NodeShape, Resources


class Cluster:
    """A placement with short words for tests; it checks itself after each step."""

    def __init__(self, *cores: int, gpus: int = 0) -> None:
        self.core = Placement()
        self.now = 0.0
        self.shares: dict[str, Share] = {}
        for index, n_cores in enumerate(cores):
            shape = NodeShape.declare(cores=n_cores, gpus=gpus, memory=1000)
            self.core.add_node(NodeId(f"node-{index}"), shape)

    def submit(
        self,
        *names: str,
        cores: int = 1,
        gpus: float = 0,
        memory: int | None = None,
        time_s: float | None = None,
        priority: int = 0,
        is_bundle: bool = False,
        on: str | None = None,
        alone: bool = False,
    ) -> None:
        for name in names:
            task = WaitingTask(
                task=TaskId(name),
                request=Resources.parse(cores=cores, gpus=gpus, memory=memory, time=time_s),
                priority=(-priority, 0),
                allowed=None if on is None else frozenset([NodeId(on)]),
                alone=alone,
                is_bundle=is_bundle,
            )
            self.core.submit(task, self.now)

    def bundles(
        self,
        *names: str,
        cores: int = 1,
        gpus: float = 0,
        memory: int | None = None,
        priority: int = 0,
        on: str | None = None,
    ) -> None:
        """Submit bundles that find room."""
        self.submit(
            *names,
            cores=cores,
            gpus=gpus,
            memory=memory,
            priority=priority,
            is_bundle=True,
            on=on,
        )
        assert sorted(self.dispatch()) == sorted(names)

    def dispatch(self, *, after_s: float = 0.0) -> list[str]:
        """Dispatch; write "task" for a placement, "bundle>task" for one asked to yield to it."""
        self.now += after_s
        written = []
        for command in self.core.dispatch(self.now):
            if isinstance(command, Yield):
                written.append(f"{command.share.task}>{command.for_task}")
            elif isinstance(command, Place):
                self.shares[command.task] = command.share
                written.append(command.task)
        self.core.check()
        return written

    def end(self, *names: str) -> list[str]:
        for name in names:
            self.core.release(self.shares.pop(name).share_id)
            self.core.check()
        return self.dispatch()


def test_a_bundle_yields_to_a_task_of_higher_priority() -> None:
    cluster = Cluster(1)
    cluster.bundles("b")
    cluster.submit("t", priority=1)
    assert cluster.dispatch() == ["b>t"]
    assert cluster.end("b") == ["t"]


@pytest.mark.parametrize(("is_bundle", "priority"), [(False, 1), (True, 0), (True, -1)])
def test_nothing_else_yields(is_bundle: bool, priority: int) -> None:
    cluster = Cluster(1)
    cluster.submit("b", is_bundle=is_bundle)
    cluster.dispatch()
    cluster.submit("t", priority=priority)
    assert cluster.dispatch() == []


def test_no_share_is_asked_twice() -> None:
    cluster = Cluster(1)
    cluster.bundles("b")
    cluster.submit("t", priority=1)
    assert cluster.dispatch() == ["b>t"]
    assert cluster.dispatch(after_s=1.0) == []
    cluster.submit("u", priority=2)
    assert cluster.dispatch() == []
    assert cluster.end("b") == ["u"]  # it goes first, whoever it was asked for


def test_as_many_are_asked_as_tasks_wait() -> None:
    cluster = Cluster(4)
    cluster.bundles("a", "b", "c", "d")
    cluster.submit("t", "u", priority=1)
    assert cluster.dispatch() == ["d>t", "c>u"]
    cluster.submit("v", priority=1)
    assert cluster.dispatch() == ["b>v"]


def test_nobody_is_asked_while_there_is_room() -> None:
    cluster = Cluster(2)
    cluster.bundles("b")
    cluster.submit("t", priority=1)
    assert cluster.dispatch() == ["t"]


def test_the_lowest_priority_is_asked_first() -> None:
    cluster = Cluster(1, 1, 1)
    for name, priority in (("a", 1), ("b", 0), ("c", 2)):
        cluster.bundles(name, priority=priority)
    cluster.submit("t", "u", "v", priority=2)
    assert cluster.dispatch() == ["b>t", "a>u"]


def test_of_all_nodes_one_is_chosen_where_fewest_are_asked() -> None:
    cluster = Cluster(4, 4)
    cluster.bundles("a", "b", "c", "d", on="node-0")
    cluster.bundles("e", "f", cores=2, on="node-1")
    cluster.submit("t", cores=3, priority=1)
    assert cluster.dispatch() == ["f>t", "e>t"]


def test_what_is_free_counts() -> None:
    cluster = Cluster(4)
    cluster.bundles("a", "b", "c")
    cluster.submit("t", cores=2, priority=1)
    assert cluster.dispatch() == ["c>t"]


def test_no_more_are_asked_than_are_needed() -> None:
    cluster = Cluster(5)
    cluster.bundles("a", cores=1, priority=-1)
    cluster.bundles("b", cores=4)
    cluster.submit("t", cores=5, priority=1)
    assert sorted(cluster.dispatch()) == ["a>t", "b>t"]
    cluster = Cluster(5)
    cluster.bundles("a", cores=1, priority=-1)
    cluster.bundles("b", cores=3)
    cluster.submit("t", cores=4, priority=1)
    assert cluster.dispatch() == ["b>t"]  # with the free core, "a" may stay


def test_a_part_of_the_room_is_kept_until_the_rest_comes() -> None:
    cluster = Cluster(4)
    cluster.bundles("a", "b", "c", "d")
    cluster.submit("low", "lower")
    cluster.submit("t", cores=2, priority=1)
    assert cluster.dispatch() == ["d>t", "c>t"]
    assert cluster.end("d") == []
    assert cluster.end("b") == ["t"]
    assert cluster.end("c") == ["low"]


def test_kept_room_is_given_up_if_it_is_not_enough() -> None:
    cluster = Cluster(3)
    cluster.bundles("a", "b")
    cluster.submit("x", cores=1)
    cluster.dispatch()
    cluster.submit("t", cores=2, memory=900, priority=1)
    assert cluster.dispatch() == ["b>t", "a>t"]
    cluster.core.charge(TaskId("stranger"), NodeId("node-0"), Resources(memory_bytes=500))
    cluster.submit("low")
    assert cluster.end("a", "b") == ["low"]


def test_a_task_that_is_withdrawn_gives_its_promise_to_the_next() -> None:
    cluster = Cluster(2)
    cluster.bundles("a", "b")
    cluster.submit("t", cores=2, priority=1)
    assert cluster.dispatch() == ["b>t", "a>t"]
    cluster.core.withdraw(TaskId("t"))
    cluster.core.check()
    cluster.submit("u", "v", "w", priority=1)
    assert cluster.dispatch() == []
    assert cluster.end("a") == ["u"]


def test_a_task_that_finds_room_elsewhere_gives_its_promise_to_the_next() -> None:
    cluster = Cluster(1, 1)
    cluster.bundles("a")
    cluster.submit("long", priority=1)
    assert cluster.dispatch() == ["long"]
    cluster.submit("t", priority=1)
    assert cluster.dispatch() == ["a>t"]
    assert cluster.end("long") == ["t"]
    cluster.submit("u", priority=1)
    assert cluster.dispatch() == []
    assert cluster.end("a") == ["u"]


def test_gpus_and_memory_are_needed_too() -> None:
    cluster = Cluster(8, gpus=2)
    cluster.bundles("a", "b", gpus=1)
    cluster.bundles("c", memory=800)
    cluster.submit("t", gpus=1, priority=1)
    assert cluster.dispatch() == ["b>t"]
    cluster.submit("u", memory=500, priority=1)
    assert cluster.dispatch() == ["c>u"]
    assert cluster.end("c") == ["u"]
    assert cluster.end("b") == ["t"]


def test_a_task_asks_only_where_it_may_run() -> None:
    cluster = Cluster(1, 1)
    cluster.bundles("a", "b")
    there = cluster.shares["b"].node
    cluster.submit("t", priority=1, on=there)
    assert cluster.dispatch() == ["b>t"]
    cluster = Cluster(1)
    cluster.bundles("a")
    cluster.core.set_end(NodeId("node-0"), 100.0)
    cluster.submit("t", priority=1, time_s=50)
    cluster.now = 60.0
    assert cluster.dispatch() == []
    cluster.core.pause_node(NodeId("node-0"))
    cluster.submit("u", priority=1)
    assert cluster.dispatch() == []


def test_a_task_that_must_run_alone_asks_nobody() -> None:
    cluster = Cluster(2)
    cluster.bundles("a")
    cluster.submit("t", priority=1, alone=True)
    assert cluster.dispatch() == []


def test_a_lost_node_keeps_no_promise() -> None:
    cluster = Cluster(1, 1)
    cluster.bundles("a", "b")
    cluster.submit("t", priority=1)
    (asked,) = cluster.dispatch()
    lost = asked[0]
    cluster.core.remove_node(cluster.shares.pop(lost).node)
    (other,) = cluster.shares
    assert cluster.dispatch() == [f"{other}>t"]


def test_a_lent_share_is_not_asked() -> None:
    cluster = Cluster(1)
    cluster.bundles("a")
    share = cluster.shares["a"].share_id
    cluster.core.lend(share)
    cluster.submit("t", priority=1)
    assert cluster.dispatch() == ["t"]
    cluster.core.reclaim(share, cluster.now)
    cluster.core.reclaim(share, cluster.now)
    assert cluster.end("t") == []
    cluster.submit("u", priority=1)
    assert cluster.dispatch() == ["a>u"]


def test_little_is_asked_in_one_dispatch_and_at_a_time() -> None:
    cluster = Cluster(*[1] * 200)
    cluster.bundles(*(f"b{index}" for index in range(200)))
    cluster.submit(*(f"t{index}" for index in range(300)), priority=1)
    asked_for = [len(cluster.dispatch()) for _ in range(5)]
    assert asked_for == [64, 0, 0, 0, 0]
    assert cluster.dispatch() == []
    asked = [name for name, share in cluster.shares.items() if _is_asked(cluster, share)]
    assert len(cluster.end(*asked[:10])) == 20  # as many are placed, and asked anew


def _is_asked(cluster: Cluster, share: Share) -> bool:
    return cluster.core.nodes[share.node].shares[share.share_id].is_asked


def test_it_costs_nothing_where_no_bundle_is_lower() -> None:
    cluster = Cluster(*[8] * 500)
    cluster.bundles(*(f"b{index}" for index in range(4000)), priority=1)
    cluster.submit(*(f"t{index}" for index in range(1000)), priority=1)
    cluster.dispatch()
    start = time.process_time()
    for _ in range(1000):
        cluster.core.dispatch(cluster.now)
    assert time.process_time() - start < 0.2  # 5 us each, with room for a slow machine
