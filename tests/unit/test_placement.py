"""Every rule of the placement, one by one, on a few nodes and a simulated clock."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from exadask.core.ledger import NodeId, Share, ShareId, TaskId
from exadask.core.placement import Offer, Place, Placement, Resume, WaitingTask
from exadask.errors import ImpossibleRequest, InvalidTransition
from exadask.resources import NodeShape, Resources


class Cluster:
    """A placement with short words for tests; it checks itself after each step."""

    def __init__(self, *cores: int, reserve_after_s: float = 10.0) -> None:
        self.core = Placement(reserve_after_s=reserve_after_s)
        self.now = 0.0
        self.shares: dict[str, Share] = {}
        for index, n_cores in enumerate(cores):
            self.join(f"node-{index}", n_cores)

    def join(
        self,
        name: str,
        cores: int = 4,
        gpus: int = 0,
        *,
        ends_at: float | None = None,
        pool: str | None = None,
    ) -> None:
        shape = NodeShape.declare(cores=cores, gpus=gpus, memory=1024)
        self.core.add_node(NodeId(name), shape, ends_at=ends_at, pool=pool)
        self.core.check()

    def submit(
        self,
        name: str,
        cores: int = 1,
        gpus: float = 0,
        *,
        memory: int | None = None,
        time_s: float | None = None,
        priority: int = 0,
        local: Mapping[str, int] | None = None,
        warm: str | None = None,
        allowed: tuple[str, ...] | None = None,
        alone: bool = False,
        pool: str | None = None,
    ) -> None:
        task = WaitingTask(
            task=TaskId(name),
            request=Resources.parse(cores=cores, gpus=gpus, memory=memory, time=time_s),
            priority=(-priority,),
            locality={NodeId(node): n_bytes for node, n_bytes in (local or {}).items()},
            warm_key=warm,
            allowed=None if allowed is None else frozenset(map(NodeId, allowed)),
            alone=alone,
            pool=pool,
        )
        self.core.submit(task, self.now)
        self.core.check()

    def dispatch(self, *, after_s: float = 0.0) -> list[str]:
        """Dispatch, and write "task@node" for a placement, "+task@node" for a resume."""
        self.now += after_s
        written = []
        for command in self.core.dispatch(self.now):
            share = command.share
            self.shares[share.task] = share
            sign = "+" if isinstance(command, Resume) else ""
            written.append(f"{sign}{share.task}@{share.node.removeprefix('node-')}")
        self.core.check()
        return written

    def release(self, *names: str) -> None:
        for name in names:
            self.core.release(self.shares.pop(name).share_id)
            self.core.check()

    def lend(self, name: str) -> None:
        self.core.lend(self.shares[name].share_id)
        self.core.check()

    def reclaim(self, name: str) -> None:
        self.core.reclaim(self.shares[name].share_id, self.now)
        self.core.check()

    def explain(self, name: str) -> str:
        return self.core.explain(TaskId(name), self.now)


# -- order ----------------------------------------------------------------------------------


def test_within_a_class_priority_then_arrival() -> None:
    cluster = Cluster(1)
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        cluster.submit(name, priority=priority)
    placed = []
    for _ in range(4):
        (command,) = cluster.dispatch()
        placed.append(command[0])
        cluster.release(command[0])
    assert placed == ["b", "d", "a", "c"]


def test_user_priority_goes_before_width() -> None:
    cluster = Cluster(4)
    cluster.submit("wide", 4)
    cluster.submit("narrow", 1, priority=1)
    assert cluster.dispatch() == ["narrow@0"]


def test_wide_tasks_go_first_and_narrow_ones_fill_the_gaps() -> None:
    cluster = Cluster(4, 4)
    for index in range(4):
        cluster.submit(f"n{index}", 1)
    cluster.submit("w0", 3)
    cluster.submit("w1", 3)
    assert cluster.dispatch() == ["w0@0", "w1@1", "n0@0", "n1@1"]


def test_width_is_the_dominant_share_of_any_resource() -> None:
    cluster = Cluster(4)
    cluster.submit("cores", 2)
    cluster.submit("memory", 1, memory=900)
    assert cluster.dispatch() == ["memory@0", "cores@0"]


def test_width_is_measured_against_the_nodes_there_are() -> None:
    cluster = Cluster(4)
    cluster.submit("cores", 4)
    cluster.submit("memory", 1, memory=900)
    cluster.join("node-1", 64)
    assert [placed.split("@")[0] for placed in cluster.dispatch()] == ["memory", "cores"]


def test_dasks_order_decides_among_equals() -> None:
    cluster = Cluster(1)
    for name, order in (("late", 7), ("early", 3)):
        request = Resources(cores=1)
        task = WaitingTask(task=TaskId(name), request=request, priority=(0, order))
        cluster.core.submit(task, 0.0)
    assert cluster.dispatch() == ["early@0"]


def test_a_blocked_class_lets_others_backfill() -> None:
    cluster = Cluster(4)
    cluster.submit("running", 2)
    cluster.dispatch()
    cluster.submit("blocked", 4, priority=5)
    cluster.submit("small", 1)
    assert cluster.dispatch() == ["small@0"]


# -- nodes ----------------------------------------------------------------------------------


def test_best_fit_keeps_wide_gaps() -> None:
    cluster = Cluster(8, 4, 2)
    cluster.submit("a", 2)
    assert cluster.dispatch() == ["a@2"]
    cluster.submit("b", 2)
    assert cluster.dispatch() == ["b@1"]
    cluster.submit("c", 2)
    assert cluster.dispatch() == ["c@1"]


def test_equal_nodes_fill_in_the_order_of_joining() -> None:
    cluster = Cluster(1, 1, 1)
    for name in "abc":
        cluster.submit(name)
    assert cluster.dispatch() == ["a@0", "b@1", "c@2"]


def test_a_node_that_joins_is_used_at_once() -> None:
    cluster = Cluster(1)
    for name in "abc":
        cluster.submit(name)
    assert cluster.dispatch() == ["a@0"]
    cluster.join("node-1", 1)
    assert cluster.dispatch() == ["b@1"]


def test_warm_goes_before_local_goes_before_best_fit() -> None:
    cluster = Cluster(2, 4, 4)
    cluster.core.note_warm(NodeId("node-2"), "model")
    inputs = {"node-1": 10**6}
    cluster.submit("warm", local=inputs, warm="model")
    cluster.submit("local", local=inputs)
    cluster.submit("tight", memory=1)
    assert sorted(cluster.dispatch()) == ["local@1", "tight@0", "warm@2"]
    cluster.core.note_warm(NodeId("node-2"), "model", is_warm=False)
    cluster.submit("cold", local=inputs, warm="model")
    assert cluster.dispatch() == ["cold@1"]


def test_most_bytes_win_and_few_do_not_count() -> None:
    cluster = Cluster(4, 4, 2)
    cluster.submit("much", local={"node-0": 10**5, "node-1": 10**6})
    cluster.submit("little", local={"node-1": 65535})
    assert cluster.dispatch() == ["much@1", "little@2"]


def test_a_full_local_or_warm_node_is_not_waited_for() -> None:
    cluster = Cluster(1, 1)
    cluster.core.note_warm(NodeId("node-0"), "model")
    cluster.submit("a", warm="model", local={"node-0": 10**6})
    cluster.submit("b", warm="model", local={"node-0": 10**6})
    assert cluster.dispatch() == ["a@0", "b@1"]


def test_cpu_tasks_avoid_gpu_nodes_but_use_them() -> None:
    cluster = Cluster()
    cluster.join("node-0", 2, gpus=1)
    cluster.join("node-1", 4)
    for name in "abc":
        cluster.submit(name, 2)
    assert cluster.dispatch() == ["a@1", "b@1", "c@0"]


def test_only_allowed_nodes_are_used() -> None:
    cluster = Cluster(4, 4)
    cluster.submit("a", 3, allowed=("node-1",))
    cluster.submit("b", 3, allowed=("node-1",))
    assert cluster.dispatch() == ["a@1"]
    cluster.submit("c", 3, allowed=("node-9",))
    assert cluster.dispatch() == []
    cluster.join("node-9")
    assert cluster.dispatch() == ["c@9"]


def test_a_paused_node_takes_nothing_until_it_resumes() -> None:
    cluster = Cluster(4)
    cluster.core.pause_node(NodeId("node-0"))
    cluster.submit("a")
    assert cluster.dispatch() == []
    cluster.core.resume_node(NodeId("node-0"))
    assert cluster.dispatch() == ["a@0"]


def test_a_task_is_not_started_where_too_little_time_is_left() -> None:
    cluster = Cluster()
    cluster.join("node-0", 2, ends_at=100.0)
    cluster.join("node-1", 4, ends_at=1000.0)
    cluster.submit("long", time_s=200)
    cluster.submit("short", time_s=100)
    cluster.submit("unknown")
    assert sorted(cluster.dispatch()) == ["long@1", "short@0", "unknown@0"]
    cluster.submit("late", 2)
    cluster.release("short", "unknown")
    assert cluster.dispatch(after_s=100) == ["late@1"], "node-0 is over"


def test_a_suspect_runs_alone() -> None:
    cluster = Cluster(4, 4)
    cluster.submit("a", 1)
    cluster.dispatch()
    cluster.submit("suspect", 1, alone=True)
    assert cluster.dispatch() == ["suspect@1"]
    cluster.submit("b", 2, allowed=("node-1",))
    cluster.submit("c", 1)
    assert cluster.dispatch() == ["c@0"]
    cluster.release("suspect")
    assert cluster.dispatch() == ["b@1"]


# -- submit, withdraw, leave ------------------------------------------------------------------


def test_what_can_never_run_is_refused() -> None:
    cluster = Cluster(4)
    with pytest.raises(ImpossibleRequest, match="5 cores"):
        cluster.submit("a", 5)
    with pytest.raises(ImpossibleRequest, match="1 GPU"):
        cluster.submit("a", 1, gpus=1)
    cluster.core.offers = [Offer(pool="big", shape=NodeShape.declare(cores=8))]
    cluster.submit("a", 5)
    assert cluster.core.waiting(TaskId("a"))


def test_with_no_nodes_at_all_a_task_waits() -> None:
    cluster = Cluster()
    cluster.submit("a", 500)
    assert cluster.dispatch() == []
    cluster.core.offers = [Offer(pool="big", shape=NodeShape.declare(cores=8))]
    with pytest.raises(ImpossibleRequest):
        cluster.submit("b", 500)


def test_a_task_waits_once() -> None:
    cluster = Cluster()
    cluster.submit("a")
    with pytest.raises(InvalidTransition):
        cluster.submit("a")


def test_withdrawing_is_idempotent_and_uncovers_the_next() -> None:
    cluster = Cluster(1)
    for name in "abc":
        cluster.submit(name)
    for _ in range(2):
        cluster.core.withdraw(TaskId("a"))
        cluster.core.check()
    cluster.core.withdraw(TaskId("c"))
    assert cluster.dispatch() == ["b@0"]
    assert not cluster.core.waiting(TaskId("b"))


def test_a_node_that_leaves_names_its_tasks_and_late_reports_are_dropped() -> None:
    cluster = Cluster(4, 4)
    for name in "abc":
        cluster.submit(name, 2)
    cluster.dispatch()
    cluster.lend("a")
    late = cluster.shares["a"].share_id
    assert cluster.core.remove_node(NodeId("node-0")) == ["a", "b"]
    assert cluster.core.remove_node(NodeId("node-0")) == []
    cluster.core.release(late)
    cluster.core.lend(late)
    cluster.core.reclaim(late, 1.0)
    assert cluster.dispatch() == []
    cluster.core.check()
    for event in (cluster.core.release, cluster.core.lend):
        with pytest.raises(InvalidTransition, match="never given"):
            event(ShareId(99))


def test_a_node_joins_once() -> None:
    cluster = Cluster(4)
    with pytest.raises(InvalidTransition):
        cluster.join("node-0")


# -- lending, charges -------------------------------------------------------------------------


def test_a_lent_share_lets_children_run_and_comes_back_before_any_placement() -> None:
    cluster = Cluster(2)
    cluster.submit("parent", 2, memory=900)
    cluster.dispatch()
    cluster.submit("child", 2)
    cluster.submit("other", 1)
    cluster.submit("greedy", 1, memory=200)
    assert cluster.dispatch() == []
    cluster.lend("parent")
    assert cluster.dispatch() == ["child@0"]
    cluster.reclaim("parent")
    assert cluster.dispatch() == []
    cluster.release("child")
    assert cluster.dispatch() == ["+parent@0"]
    cluster.release("parent")
    assert cluster.dispatch() == ["other@0", "greedy@0"]


def test_the_same_gpu_comes_back_and_nobody_slips_in() -> None:
    cluster = Cluster()
    cluster.join("node-0", 4, gpus=2)
    cluster.submit("parent", 1, gpus=1)
    cluster.dispatch()
    cluster.lend("parent")
    cluster.submit("borrower", 1, gpus=2)
    assert cluster.dispatch() == ["borrower@0"]
    cluster.reclaim("parent")
    cluster.submit("small", 1)
    assert cluster.dispatch() == [], "the node is kept for the parent"
    cluster.release("borrower")
    assert cluster.dispatch() == ["+parent@0", "small@0"]
    assert cluster.shares["parent"].gpus == (("0", 1000),)


def test_reclaims_are_answered_in_the_order_of_asking() -> None:
    cluster = Cluster(2)
    cluster.submit("a", 2)
    cluster.dispatch()
    cluster.lend("a")
    cluster.submit("b", 1)
    cluster.submit("c", 1, memory=1)
    cluster.dispatch()
    cluster.lend("b")
    cluster.reclaim("a")
    cluster.reclaim("b")
    assert cluster.dispatch() == [], "b would fit, but a asked first"
    cluster.release("c")
    assert cluster.dispatch() == ["+a@0"]
    cluster.lend("a")
    assert cluster.dispatch() == ["+b@0"]


def test_reclaiming_what_is_not_lent_confirms_it_and_lending_twice_is_once() -> None:
    cluster = Cluster(2)
    cluster.submit("a", 2)
    cluster.dispatch()
    cluster.reclaim("a")
    assert cluster.dispatch() == ["+a@0"]
    cluster.lend("a")
    cluster.lend("a")
    cluster.reclaim("a")
    cluster.reclaim("a")
    assert cluster.dispatch() == ["+a@0"]


def test_a_suspect_that_waits_for_others_lets_them_in() -> None:
    cluster = Cluster(4)
    cluster.submit("suspect", 1, alone=True)
    cluster.dispatch()
    cluster.lend("suspect")
    cluster.submit("child", 1)
    assert cluster.dispatch() == ["child@0"]
    cluster.reclaim("suspect")
    assert cluster.dispatch() == [], "it must be alone again"
    cluster.release("child")
    assert cluster.dispatch() == ["+suspect@0"]


def test_nobody_comes_back_beside_a_suspect() -> None:
    cluster = Cluster(4)
    cluster.submit("parent", 1)
    cluster.dispatch()
    cluster.lend("parent")
    cluster.submit("suspect", 1, alone=True)
    assert cluster.dispatch() == ["suspect@0"]
    cluster.reclaim("parent")
    assert cluster.dispatch() == []
    cluster.release("suspect")
    assert cluster.dispatch() == ["+parent@0"]


def test_charged_work_takes_room_and_is_paid_back() -> None:
    cluster = Cluster(2)
    cluster.submit("a", 2)
    cluster.dispatch()
    charge = cluster.core.charge(TaskId("dask"), NodeId("node-0"), Resources(cores=1))
    cluster.submit("b", 2)
    cluster.submit("c", 1)
    cluster.release("a")
    assert cluster.dispatch() == ["c@0"]
    cluster.core.release(charge)
    cluster.release("c")
    assert cluster.dispatch() == ["b@0"]
    gone = cluster.core.charge(TaskId("dask"), NodeId("left"), Resources(cores=1))
    cluster.core.release(gone)


def test_charged_work_larger_than_its_node_can_lend_and_come_back() -> None:
    cluster = Cluster(2)
    charge = cluster.core.charge(TaskId("dask"), NodeId("node-0"), Resources(cores=9))
    cluster.core.lend(charge)
    cluster.core.reclaim(charge, 0.0)
    assert cluster.dispatch() == ["+dask@0"]


# -- no starvation ----------------------------------------------------------------------------


def test_a_wide_task_starts_under_a_stream_of_narrow_ones() -> None:
    cluster = Cluster(4, 4)
    for index in range(8):
        cluster.submit(f"first{index}", 1, priority=1)
    cluster.dispatch()
    cluster.submit("wide", 4)
    for index in range(200):
        cluster.submit(f"s{index}", 1, priority=1)
        oldest = next(name for name in cluster.shares if name != "wide")
        cluster.release(oldest)
        cluster.dispatch(after_s=1.0)
        if "wide" in cluster.shares:
            break
    assert "wide" in cluster.shares
    assert cluster.now <= 10.0 + 2.0 + 8.0, "a node drains in at most eight releases"


def test_a_narrow_task_starts_under_a_stream_of_wide_ones() -> None:
    cluster = Cluster(4)
    cluster.submit("running", 4)
    cluster.dispatch()
    cluster.submit("narrow", 1)
    current = "running"
    for index in range(30):
        cluster.submit(f"wide{index}", 4)
        cluster.release(current)
        (placed,) = cluster.dispatch(after_s=1.0)
        current = placed.split("@")[0]
        if current == "narrow":
            break
    assert current == "narrow"
    assert cluster.now == pytest.approx(11.0)


def test_a_class_is_overtaken_by_older_tasks_that_rank_behind_it() -> None:
    cluster = Cluster(4)
    cluster.submit("a", 3)
    cluster.dispatch()
    cluster.submit("older", 1)
    cluster.submit("wide", 4)
    assert cluster.dispatch() == ["older@0"]
    assert cluster.core.next_deadline() == 10.0


@pytest.mark.parametrize("node_cores", [4, 1])
def test_a_class_is_overtaken_by_an_urgent_one_that_ranks_behind_it(node_cores: int) -> None:
    cluster = Cluster(node_cores)
    cluster.submit("a", node_cores)
    cluster.dispatch()
    cluster.submit("narrow", 1)
    cluster.submit("w0", node_cores, memory=1024, priority=1)
    cluster.release("a")
    assert cluster.dispatch() == ["w0@0"]
    cluster.submit("w1", node_cores, memory=1024, priority=1)
    cluster.release("w0")
    assert cluster.dispatch(after_s=10.0) == ["narrow@0"]
    assert cluster.core.next_deadline() == 20.0


def test_a_deadline_is_told_and_a_reservation_keeps_others_out() -> None:
    cluster = Cluster(4)
    cluster.submit("a", 2)
    assert cluster.core.next_deadline() is None
    cluster.dispatch()
    cluster.submit("wide", 4)
    assert cluster.dispatch() == []
    assert cluster.core.next_deadline() is None, "blocked, but nobody was placed over it"
    cluster.submit("b", 1)
    assert cluster.dispatch(after_s=1.0) == ["b@0"]
    assert cluster.core.next_deadline() == 11.0
    cluster.submit("c", 1)
    cluster.core.withdraw(TaskId("c"))
    assert cluster.dispatch(after_s=10.0) == []
    assert cluster.core.next_deadline() is None
    cluster.submit("d", 1)
    assert cluster.dispatch() == [], "node-0 is reserved"
    assert cluster.explain("wide") == "waiting: node-0 is reserved for it since 0.0 s"
    cluster.release("a", "b")
    assert cluster.dispatch() == ["wide@0"]
    cluster.release("wide")
    assert cluster.dispatch() == ["d@0"]


def _reserved(*, a_time_s: float | None, b_time_s: float | None) -> Cluster:
    """Two nodes of 4 cores with 2 free each, one of them reserved since t=10 for a wide task."""
    cluster = Cluster(4, 4)
    cluster.submit("a", 3, time_s=a_time_s, allowed=("node-0",))
    cluster.submit("b", 2, time_s=b_time_s, allowed=("node-1",))
    cluster.dispatch()
    cluster.submit("wide", 4)
    cluster.submit("over", 1, time_s=1)
    assert cluster.dispatch() == ["over@0"]
    assert cluster.dispatch(after_s=10.0) == []
    cluster.release("over")
    return cluster


@pytest.mark.parametrize(
    ("a_time_s", "b_time_s", "reserved"),
    [
        (50.0, 60.0, "node-0"),
        (60.0, 50.0, "node-1"),
        (60.0, None, "node-0"),
        (None, None, "node-1"),
    ],
)
def test_the_node_that_drains_soonest_is_reserved_or_that_with_most_free_cores(
    a_time_s: float | None, b_time_s: float | None, reserved: str
) -> None:
    cluster = _reserved(a_time_s=a_time_s, b_time_s=b_time_s)
    assert cluster.explain("wide") == f"waiting: {reserved} is reserved for it since 0.0 s"


def test_backfill_on_a_reserved_node_must_end_before_the_reservation() -> None:
    cluster = _reserved(a_time_s=50.0, b_time_s=None)  # node-0 drains at t=50, and it is t=10
    for name, time_s in (("long", 41.0), ("endless", None), ("short", 40.0)):
        cluster.submit(name, 1, time_s=time_s, allowed=("node-0",))
    assert cluster.dispatch() == ["short@0"]


def test_a_reservation_that_begins_later_than_believed_lets_more_backfill() -> None:
    cluster = Cluster(8)
    cluster.submit("a", 2, time_s=50.0)
    cluster.dispatch()
    cluster.submit("wide", 8)
    cluster.submit("over", 1, time_s=1.0)
    assert cluster.dispatch() == ["over@0"]
    assert cluster.dispatch(after_s=10.0) == []
    cluster.submit("longer", 1, time_s=60.0)
    assert cluster.dispatch() == [], "the reservation begins at t=50"
    request = Resources(time_s=90.0)
    cluster.core.charge(TaskId("dask"), NodeId("node-0"), request)
    assert cluster.dispatch() == ["longer@0"], "it begins at t=100"


def test_a_node_that_drains_too_late_for_its_end_is_not_reserved() -> None:
    cluster = Cluster()
    cluster.join("node-0", 4, ends_at=60.0)
    cluster.join("node-1", 4, ends_at=100.0)
    cluster.submit("a", 2, time_s=50.0, allowed=("node-0",))
    cluster.submit("b", 3, time_s=55.0, allowed=("node-1",))
    cluster.dispatch()
    cluster.submit("wide", 4, time_s=20.0)
    cluster.submit("over", 1)
    cluster.dispatch()
    cluster.dispatch(after_s=10.0)
    assert cluster.explain("wide") == "waiting: node-1 is reserved for it since 0.0 s"


def test_a_reservation_ends_when_lent_memory_gets_in_its_way() -> None:
    cluster = Cluster(4)
    cluster.submit("parent", 3, memory=600)
    cluster.dispatch()
    cluster.submit("greedy", 4, memory=700)
    cluster.submit("over", 1, priority=-1)
    assert cluster.dispatch() == ["over@0"]
    cluster.release("over")
    assert cluster.dispatch(after_s=10.0) == []
    cluster.submit("child", 1)
    assert cluster.dispatch() == []
    cluster.lend("parent")
    assert cluster.dispatch() == ["child@0"]


def test_without_known_ends_nothing_backfills_on_a_reserved_node() -> None:
    cluster = _reserved(a_time_s=None, b_time_s=None)
    cluster.submit("short", 1, time_s=1.0, allowed=("node-1",))
    assert cluster.dispatch() == []


@pytest.mark.parametrize("how", ["withdrawn", "left", "paused", "placed elsewhere"])
def test_a_reservation_ends(how: str) -> None:
    cluster = _reserved(a_time_s=None, b_time_s=None)  # node-1 is reserved
    cluster.submit("next", 1, allowed=("node-0", "node-1"))
    match how:
        case "withdrawn":
            cluster.core.withdraw(TaskId("wide"))
            assert cluster.dispatch() == ["next@0"]
            cluster.submit("here", 2, allowed=("node-1",))
            assert cluster.dispatch() == ["here@1"]
        case "left":
            cluster.core.remove_node(NodeId("node-1"))
            assert cluster.dispatch() == [], "node-0 is reserved instead"
        case "paused":
            cluster.core.pause_node(NodeId("node-1"))
            assert cluster.dispatch() == []
            assert "node-0 is reserved" in cluster.explain("wide")
        case _:
            cluster.release("a")
            assert cluster.dispatch() == ["wide@0", "next@1"]


def test_each_urgent_class_gets_a_node_of_its_own() -> None:
    cluster = Cluster(4, 4)
    for name in "ab":
        cluster.submit(name, 3)
    cluster.dispatch()
    cluster.submit("wide4", 4)
    cluster.submit("wide2", 2)
    cluster.submit("wide3", 3)
    cluster.submit("over", 1)
    assert cluster.dispatch() == ["over@0"]
    assert cluster.dispatch(after_s=10.0) == []
    reserved = [name for name in ("wide4", "wide3", "wide2") if "reserved" in cluster.explain(name)]
    assert len(reserved) == 2
    assert len({cluster.explain(name) for name in reserved}) == 2


def test_a_node_whose_lent_memory_is_in_the_way_is_not_reserved() -> None:
    cluster = Cluster(4)
    cluster.submit("parent", 4, memory=600)
    cluster.dispatch()
    cluster.submit("greedy", 4, memory=700)
    cluster.submit("over", 1, priority=-1)
    cluster.lend("parent")
    assert cluster.dispatch() == ["over@0"]
    cluster.submit("child", 1, priority=-1)
    assert cluster.dispatch(after_s=10.0) == ["child@0"], "the parent waits for its child"


def test_progress_ends_urgency() -> None:
    cluster = Cluster(4)
    cluster.submit("a", 4)
    cluster.dispatch()
    for name in ("n0", "n1"):
        cluster.submit(name, 1)
    cluster.submit("w0", 4)
    cluster.submit("w1", 4)
    cluster.release("a")
    assert cluster.dispatch() == ["w0@0"]
    cluster.release("w0")
    assert cluster.dispatch(after_s=10.0) == ["n0@0", "n1@0"]


# -- explain ----------------------------------------------------------------------------------


def test_explain_where_a_task_runs() -> None:
    cluster = Cluster()
    cluster.join("node-0", 8, gpus=2)
    cluster.submit("a", 4, gpus=1)
    cluster.submit("b", 1, gpus=0.25)
    cluster.dispatch()
    assert cluster.explain("a") == "running on node-0 with cores 0-3, GPU 0"
    assert cluster.explain("b") == "running on node-0 with core 4, GPU 1 (0.25)"
    assert cluster.explain("c") == "unknown to the scheduler"
    cluster.lend("a")
    assert cluster.explain("a").startswith("on node-0, waiting for other tasks")
    cluster.core.charge(TaskId("dask"), NodeId("node-0"), Resources(cores=7))
    assert cluster.explain("dask") == "running on node-0 with cores 0-3,5-7"
    cluster.reclaim("a")
    assert cluster.explain("a") == "on node-0, waiting until 4 cores are free again"
    cluster.core.charge(TaskId("more"), NodeId("node-0"), Resources(cores=2))
    assert cluster.explain("more") == "running on node-0 with 2 cores beyond what was free"


def test_explain_that_there_is_no_node() -> None:
    cluster = Cluster()
    cluster.submit("a", 8)
    cluster.submit("b", 1, allowed=("node-7",))
    assert cluster.explain("a") == "waiting: no node is connected"
    cluster.join("node-0", 4)
    assert cluster.explain("a") == (
        "waiting: asks for 8 cores, but the largest connected node has 4 cores, 1 KiB of memory"
    )
    assert cluster.explain("b") == "waiting: may only run on node-7, which is not connected"
    cluster.core.pause_node(NodeId("node-0"))
    assert cluster.explain("a") == "waiting: all nodes are paused"


def test_explain_what_is_short() -> None:
    cluster = Cluster()
    cluster.join("node-0", 4, gpus=4)
    cluster.submit("a", 1, gpus=3, memory=900)
    cluster.dispatch()
    cluster.submit("gpus", 1, gpus=2)
    cluster.submit("memory", 1, memory=200)
    cluster.submit("cores", 4)
    assert cluster.explain("gpus") == (
        "waiting: needs 2 GPUs; the nodes have at most 1 free of 4 (node-0)"
    )
    assert cluster.explain("memory") == (
        "waiting: needs 200 B of memory; the nodes have at most 124 B free of 1 KiB (node-0)"
    )
    assert cluster.explain("cores") == (
        "waiting: needs 4 cores; the nodes have at most 3 free of 4 (node-0)"
    )
    cluster.submit("more", 1, gpus=2)
    assert cluster.explain("more") == (
        "waiting: behind 1 task of higher priority that also need GPUs; "
        "needs 2 GPUs; the nodes have at most 1 free of 4 (node-0)"
    )


def test_explain_time_solitude_and_order() -> None:
    cluster = Cluster()
    cluster.join("node-0", 4, ends_at=60.0)
    cluster.core.offers = [Offer(pool="cpu", walltime_s=7200.0)]
    cluster.submit("long", 1, time_s=7200)
    cluster.submit("a", 1)
    cluster.dispatch()
    cluster.submit("suspect", 1, alone=True)
    cluster.submit("next", 1)
    assert cluster.explain("long") == "waiting: needs 2h; node-0 is there for another 1m"
    assert cluster.explain("suspect") == "waiting: must run alone, and no node is idle"
    assert cluster.explain("next").startswith("waiting: the next dispatch places it")


# -- cost -------------------------------------------------------------------------------------


def test_a_task_costs_microseconds_on_two_thousand_nodes() -> None:
    cluster = Placement()
    for index in range(2000):
        cluster.add_node(NodeId(f"node-{index}"), NodeShape.declare(cores=8))
    request, n_tasks = Resources(cores=1), 20_000
    began_s = time.process_time()
    for index in range(n_tasks):
        task = WaitingTask(task=TaskId(str(index)), request=request, priority=(0, index))
        cluster.submit(task, 0.0)
    running = [command.share.share_id for command in cluster.dispatch(0.0)]
    assert len(running) == 16_000
    while running:
        cluster.release(running.pop())
        running += [command.share.share_id for command in cluster.dispatch(0.0)]
    cost_s = (time.process_time() - began_s) / n_tasks
    assert cost_s < 200e-6, "a shared machine may be slow; about 20 microseconds otherwise"


# -- relay ------------------------------------------------------------------------------------


def relay(*names: str, priority: int = 0) -> tuple[Placement, Place]:
    """A node of one core where a bundle runs, and others wait."""
    cluster = Placement()
    cluster.add_node(NodeId("node-0"), NodeShape.declare(cores=1))
    for index, name in enumerate(("first", *names)):
        rank = (0 if index == 0 else priority, index)
        task = WaitingTask(
            task=TaskId(name), request=Resources(cores=1), priority=rank, is_bundle=True
        )
        cluster.submit(task, 0.0)
    (first,) = cluster.dispatch(0.0)
    assert isinstance(first, Place)
    return cluster, first


def test_the_next_bundle_goes_on_with_the_share_of_one_that_ends() -> None:
    cluster, first = relay("second", "third")
    heir = cluster.successor(first.share.share_id, 1.0)
    assert heir is not None
    assert heir.task == "second"
    assert cluster.n_waiting == 1
    assert not cluster.dispatch(1.0), "the share is still that of the first"
    share = cluster.pass_on(first.share.share_id, heir.task, 2.0)
    assert share is not None
    assert (share.share_id, share.task) == (first.share.share_id, "second")
    assert cluster.explain(TaskId("second"), 2.0).startswith("running on node-0")
    cluster.check()
    cluster.release(share.share_id)
    assert [one.task for one in cluster.dispatch(3.0) if isinstance(one, Place)] == ["third"]


def test_a_bundle_has_no_successor_where_others_have_a_right() -> None:
    cluster, first = relay("second")
    single = WaitingTask(task=TaskId("wide"), request=Resources(cores=1, time_s=5.0), priority=(0,))
    cluster.submit(single, 0.0)
    assert cluster.successor(first.share.share_id, 1.0) is None
    cluster.withdraw(single.task)
    cluster.pause_node(NodeId("node-0"))
    assert cluster.successor(first.share.share_id, 1.0) is None
    cluster.resume_node(NodeId("node-0"))
    assert cluster.successor(first.share.share_id, 1.0) is not None


def test_a_bundle_of_another_priority_is_no_successor() -> None:
    cluster, first = relay("second", priority=5)
    assert cluster.successor(first.share.share_id, 1.0) is None


def test_a_share_that_is_gone_or_lent_is_not_passed_on() -> None:
    cluster, first = relay("second", "third")
    heir = cluster.successor(first.share.share_id, 1.0)
    assert heir is not None
    cluster.lend(first.share.share_id)
    assert cluster.pass_on(first.share.share_id, heir.task, 1.0) is None
    cluster.release(first.share.share_id)
    assert cluster.pass_on(first.share.share_id, heir.task, 1.0) is None
    cluster.check()
