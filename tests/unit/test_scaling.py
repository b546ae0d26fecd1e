"""When a fleet asks for allocations, and when it lets them go."""

from __future__ import annotations

from typing import Any

import pytest

from exadask.core.events import Demand, Offer
from exadask.core.ledger import NodeId
from exadask.core.scaling import Cancel, ClosePool, Command, Fleet, FleetLimits, GiveBack, Submit
from exadask.errors import InvalidRequest, InvalidTransition
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape, Resources

PENDING = JobStatus(state=JobState.PENDING, reason="Priority")
RUNNING = JobStatus(state=JobState.RUNNING)
UNKNOWN = JobStatus(state=JobState.UNKNOWN)


def need(count: int = 1, *, pool: str | None = None, bound: bool = False, **asked: Any) -> Demand:
    request = Resources.parse(**asked)
    return Demand(request=request, pool=pool, is_bound=bound, count=count)


def ended(cause: EndCause | None, reason: str = "") -> JobStatus:
    return JobStatus(state=JobState.ENDED, cause=cause, reason=reason)


def pool_of(name: str = "cpu", **facts: Any) -> Pool:
    return Pool.declare(name, **({"batch": "slurm", "cores": 4, "walltime": 3600} | facts))


class Site:
    """A fleet with short words for tests; it checks itself after each step."""

    def __init__(
        self,
        *pools: Pool,
        manual: bool = False,
        budget_node_s: float | None = None,
        **limits: float,
    ) -> None:
        self.fleet = Fleet(
            pools or (pool_of(),),
            mode="manual" if manual else "auto",
            budget_node_s=budget_node_s,
            limits=FleetLimits(**limits),  # type: ignore[arg-type]  # one of them is a whole number
        )
        self.now = 0.0
        self.n_jobs = 0
        self.idle: dict[NodeId, float] = {}
        self.texts: list[str] = []

    def decide(
        self, *demand: Demand, after_s: float = 0.0, outlasting: tuple[str, ...] = ()
    ) -> list[str]:
        """Decide, and write "cpu-0=2" for a submission of two nodes, "x cpu-0" for a cancel."""
        self.now += after_s
        nodes = [NodeId(node) for node in outlasting]
        planned = self.fleet.plan(self.now, demand, self.idle, nodes)
        commands = self.fleet.decide(self.now, demand, self.idle, nodes)
        assert commands == [step.command for step in planned if step.command is not None]
        self.texts = [step.text for step in planned if step.command is None]
        self.fleet.check()
        return [self._written(command) for command in commands]

    @staticmethod
    def _written(command: Command) -> str:
        match command:
            case Submit():
                return f"{command.allocation}={command.nodes}"
            case Cancel():
                return f"x {command.allocation}"
            case GiveBack():
                return f"< {command.allocation}"
            case ClosePool():
                return f"closed {command.pool}"

    def queue(self, *names: str) -> None:
        for name in names:
            self.n_jobs += 1
            self.fleet.submitted(name, f"job{self.n_jobs}", self.now)
            self.fleet.reported(name, PENDING, self.now)
            self.fleet.check()

    def report(self, name: str, news: JobStatus) -> None:
        self.fleet.reported(name, news, self.now)
        self.fleet.check()

    def join(self, name: str, nodes: int = 1, *, shape: NodeShape | None = None) -> None:
        for index in range(nodes):
            self.fleet.node_joined(name, NodeId(f"{name}-n{index}"), self.now, shape)
        self.fleet.check()

    def leave(self, name: str, nodes: int = 1) -> None:
        for index in range(nodes):
            self.idle.pop(NodeId(f"{name}-n{index}"), None)
            self.fleet.node_left(name, NodeId(f"{name}-n{index}"), self.now)
        self.fleet.check()

    def rest(self, *nodes: str) -> None:
        self.idle |= {NodeId(node): self.now for node in nodes}

    def start(self, *demand: Demand, nodes: int = 1) -> None:
        """Ask for the first allocation and let all its nodes join."""
        assert self.decide(*demand) == [f"cpu-0={nodes}"]
        self.queue("cpu-0")
        self.report("cpu-0", RUNNING)
        self.join("cpu-0", nodes)

    def fail(self, name: str, reason: str = "", *, permanent: bool | None = None) -> None:
        self.fleet.refused(name, reason, self.now, is_permanent=permanent)
        self.fleet.check()


# -- growing ----------------------------------------------------------------------------------


def test_nothing_is_asked_for_without_need() -> None:
    site = Site()
    assert site.decide() == []
    assert site.texts == []


def test_what_nothing_can_run_is_asked_for_at_once_and_once() -> None:
    site = Site(pool_of(nodes=[1, 8]))
    assert site.decide(need(10)) == ["cpu-0=3"]
    assert site.decide(need(10), after_s=100.0) == []
    site.queue("cpu-0")
    assert site.decide(need(10), after_s=100.0) == []


def test_a_submission_says_all_about_it() -> None:
    fleet = Fleet([pool_of(nodes=[1, 8])])
    assert fleet.decide(0.0, [need(2, cores=3)], {}) == [
        Submit(
            allocation="cpu-0",
            pool="cpu",
            nodes=2,
            walltime_s=3600.0,
            reason="2 tasks of 3 cores wait; 2 nodes of 4 cores would run them at once",
        )
    ]


def test_a_large_need_is_cut_into_allocations() -> None:
    site = Site(pool_of(nodes=[2, 4], max_allocations=5))
    assert site.decide(need(36)) == ["cpu-0=4", "cpu-1=4", "cpu-2=2"]
    site = Site(pool_of(nodes=[2, 4], max_allocations=2))
    assert site.decide(need(36)) == ["cpu-0=4", "cpu-1=4"]
    assert site.texts == [
        "1 more node of pool cpu would help, but pool cpu has its 2 allocations already "
        "(max_allocations=2)"
    ]


def test_short_bursts_beside_live_nodes_ask_for_nothing() -> None:
    site = Site(pool_of(max_allocations=4))
    site.start(need(1))
    for _ in range(10):
        assert site.decide(need(100), after_s=1.9) == []
        assert site.decide(after_s=0.1) == []
    assert site.decide(need(9)) == []
    assert site.decide(need(5), after_s=1.9) == []
    assert site.decide(need(9), after_s=0.1) == ["cpu-1=1", "cpu-2=1", "cpu-3=1"]


def test_what_live_nodes_can_never_run_is_asked_for_at_once() -> None:
    site = Site(pool_of(), pool_of("big", cores=64))
    site.start(need(1))
    assert site.decide(need(1, cores=8), need(100)) == ["big-0=1"]


def test_a_node_with_too_little_time_left_serves_nothing_long() -> None:
    site = Site(pool_of(max_allocations=2))
    site.start(need(1))
    assert site.decide(need(1, time=1800), after_s=1800.0) == []
    assert site.decide(need(1, time=1800), after_s=1.0) == ["cpu-1=1"]


def test_bound_tasks_ask_for_nothing() -> None:
    assert Site().decide(need(3, bound=True)) == []


def test_pools_are_used_in_their_order() -> None:
    site = Site(pool_of(), pool_of("debug"))
    assert site.decide(need(4), need(1, pool="debug")) == ["cpu-0=1", "debug-0=1"]


def test_a_declared_shape_is_refined_by_nobody_but_an_unknown_one_is_learnt() -> None:
    unknown = Pool.declare("cpu", batch="slurm", max_allocations=9, walltime="1h")
    site = Site(unknown)
    assert site.fleet.offers(0.0) == [Offer(pool="cpu", shape=None, walltime_s=3600.0)]
    assert site.decide(need(100)) == ["cpu-0=1"]
    assert site.decide(need(100), after_s=60.0) == []
    site.queue("cpu-0")
    site.join("cpu-0", shape=NodeShape.declare(cores=50))
    assert site.decide(need(100)) == ["cpu-1=1", "cpu-2=1"]
    site.fleet.learn_shape("cpu", NodeShape.declare(cores=1))
    assert site.fleet.offers(0.0)[0].shape == NodeShape.declare(cores=50)


# -- limits -----------------------------------------------------------------------------------


def test_the_site_limits_what_waits() -> None:
    site = Site(pool_of(max_allocations=9, max_queued=2))
    assert site.decide(need(40)) == ["cpu-0=1", "cpu-1=1"]
    assert "the site lets 2 jobs of pool cpu wait at the same time" in site.texts[0]
    site.queue("cpu-0", "cpu-1")
    assert site.decide(need(40), after_s=9.0) == []
    site.join("cpu-0")
    assert site.decide(need(40)) == ["cpu-2=1"]


def test_the_site_limits_what_runs() -> None:
    site = Site(pool_of(max_allocations=9, max_running=2))
    assert site.decide(need(40)) == ["cpu-0=1", "cpu-1=1"]
    assert "the site runs 2 jobs of pool cpu at the same time" in site.texts[0]


BINS = [{"nodes": [1, 2], "walltime": 3600}, {"nodes": [4, 8], "walltime": 7200}]


def test_the_site_decides_how_long_which_size_may_last() -> None:
    site = Site(pool_of(nodes=[1, 8], walltime=7200, bins=BINS))
    (command,) = site.fleet.decide(0.0, [need(4)], {})
    assert isinstance(command, Submit)
    assert (command.nodes, command.walltime_s) == (1, 3600.0)
    site = Site(pool_of(nodes=[1, 8], walltime=7200, bins=BINS))
    (command,) = site.fleet.decide(0.0, [need(1, time=3601)], {})
    assert isinstance(command, Submit)
    assert (command.nodes, command.walltime_s) == (4, 7200.0)
    assert Site(pool_of(nodes=[1, 8], bins=BINS)).decide(need(12)) == ["cpu-0=4"], "3 is no size"


def test_the_budget_is_booked_in_full_and_refunded() -> None:
    site = Site(pool_of(nodes=[1, 8], max_allocations=9), budget_node_s=3 * 3600.0)
    assert site.decide(need(16)) == ["cpu-0=3"]
    assert "the budget has 0 node-hours left" in site.texts[0]
    site.queue("cpu-0")
    assert site.decide(need(16), after_s=1000.0) == []
    site.report("cpu-0", RUNNING)
    site.now += 600.0
    site.report("cpu-0", ended(EndCause.FAILED, "bad node"))
    summary = site.fleet.summary(site.now)
    assert (summary.spent_node_s, summary.booked_node_s) == (1800.0, 0.0)
    assert site.decide(need(16), after_s=2.0) == ["cpu-1=2"]


def test_waiting_costs_nothing_and_an_end_between_two_polls_something() -> None:
    site = Site(pool_of(nodes=1, max_allocations=3), budget_node_s=9 * 3600.0)
    site.decide(need(12))
    site.queue("cpu-0", "cpu-1", "cpu-2")
    site.now = 5000.0
    site.report("cpu-0", ended(EndCause.CANCELLED))
    assert site.fleet.summary(site.now).spent_node_s == 0.0
    site.report("cpu-1", PENDING)
    site.now = 5030.0
    site.report("cpu-1", ended(EndCause.FAILED))
    assert site.fleet.summary(site.now).spent_node_s == 30.0
    site.report("cpu-2", JobStatus(state=JobState.RUNNING, left_s=3500.0))
    site.report("cpu-2", ended(EndCause.TIMEOUT))
    assert site.fleet.summary(site.now).spent_node_s == 130.0


def test_a_node_is_not_believed_what_cannot_be_of_the_end_of_its_allocation() -> None:
    """Its clock may be wrong: of the batch system's times only some are known."""
    site = Site()
    site.decide(need())
    site.queue("cpu-0")
    assert site.fleet.believable_end("cpu-0", 4000.0) == 4000.0, "it has not been seen running"
    site.now = 100.0
    site.report("cpu-0", PENDING)
    site.now = 130.0
    site.report("cpu-0", RUNNING)
    believed = {told: site.fleet.believable_end("cpu-0", told) for told in (-9.0, 3710.0, 9e9)}
    assert believed == {-9.0: 3700.0, 3710.0: 3710.0, 9e9: 3730.0}
    site.report("cpu-0", JobStatus(state=JobState.RUNNING, left_s=500.0))
    assert site.fleet.believable_end("cpu-0", 3710.0) == 630.0, "the batch system knows best"


def test_a_spent_budget_offers_nothing() -> None:
    site = Site(pool_of(nodes=1, max_allocations=9), budget_node_s=5000.0)
    site.start(need(4))
    assert [offer.pool for offer in site.fleet.offers(0.0)] == ["cpu"], "it may come back"
    site.now = 1401.0
    site.report("cpu-0", ended(EndCause.CANCELLED))
    assert site.fleet.offers(site.now) == []
    assert site.decide(need(4), after_s=9.0) == []
    assert site.texts == [
        "4 tasks of 1 core: no pool has nodes that could run them; the budget has 0.9997 "
        "node-hours left, and the smallest allocation of pool cpu may cost more"
    ]


# -- shrinking --------------------------------------------------------------------------------


def test_an_allocation_goes_back_whole_when_all_its_nodes_have_idled() -> None:
    site = Site(pool_of(nodes=2, idle=100))
    site.start(need(8), nodes=2)
    site.rest("cpu-0-n0")
    assert site.decide(after_s=500.0) == []
    site.rest("cpu-0-n1")
    assert site.decide(after_s=99.0) == []
    assert site.decide(after_s=1.0) == ["< cpu-0"]
    assert site.decide(after_s=1.0) == []
    site.leave("cpu-0", 2)
    site.report("cpu-0", ended(EndCause.CANCELLED))
    assert site.fleet.summary(site.now).pools[0].n_failures == 0


def test_idle_nodes_are_kept_a_while_if_tasks_wait_that_fit() -> None:
    site = Site(pool_of(idle=100))
    site.start(need(4))
    site.rest("cpu-0-n0")
    assert site.decide(need(1), after_s=150.0) == []
    assert site.decide(need(1, cores=9), need(1, bound=True), after_s=0.0) == ["< cpu-0"]
    site = Site(pool_of(idle=100))
    site.start(need(4))
    site.rest("cpu-0-n0")
    assert site.decide(need(1), after_s=199.0) == []
    assert site.decide(need(1), after_s=1.0) == ["< cpu-0"], "something is wrong with it"


def test_needless_queued_allocations_are_cancelled_newest_first() -> None:
    site = Site(pool_of(max_allocations=3))
    assert site.decide(need(12)) == ["cpu-0=1", "cpu-1=1", "cpu-2=1"]
    site.queue("cpu-0", "cpu-1", "cpu-2")
    assert site.decide(need(3), after_s=10.0) == []
    assert site.decide(need(12), after_s=25.0) == [], "needed again"
    assert site.decide(need(3), after_s=10.0) == []
    assert site.decide(need(3), after_s=30.0) == ["x cpu-2", "x cpu-1"]
    site.report("cpu-1", PENDING)
    site.report("cpu-2", ended(EndCause.CANCELLED))
    assert site.decide(after_s=1.0) == []
    assert site.decide(after_s=30.0) == ["x cpu-0"]


def test_what_is_on_the_way_into_the_queue_is_not_cancelled_before_it_is_there() -> None:
    site = Site()
    site.decide(need(1))
    assert site.decide(after_s=100.0) == []
    site.queue("cpu-0")
    assert site.decide() == []
    assert site.decide(after_s=30.0) == ["x cpu-0"]


# -- successors -------------------------------------------------------------------------------


def test_a_successor_is_asked_for_in_time_if_tasks_wait() -> None:
    site = Site(pool_of(walltime=3600))
    site.start(need(4))
    assert site.decide(need(1), after_s=2990.0) == []
    assert site.decide(need(1), after_s=10.0) == ["cpu-1=1"]
    assert site.decide(need(1), after_s=100.0) == []


def test_no_successor_without_work() -> None:
    site = Site(pool_of(walltime=3600))
    site.start(need(4))
    assert site.decide(after_s=3300.0) == []


def test_a_successor_is_asked_for_tasks_that_outlast_the_end_and_kept_for_them() -> None:
    site = Site(pool_of(walltime=3600, idle=60))
    site.start(need(4))
    site.now = 3100.0
    assert site.fleet.ending_nodes(site.now) == ["cpu-0-n0"]
    assert site.decide(outlasting=("cpu-0-n0",)) == ["cpu-1=1"]
    site.queue("cpu-1")
    assert site.decide(after_s=50.0, outlasting=("cpu-0-n0",)) == []
    site.join("cpu-1")
    site.rest("cpu-1-n0")
    assert site.decide(after_s=61.0, outlasting=("cpu-0-n0",)) == []
    assert site.decide(after_s=1.0) == ["< cpu-1"]


def test_short_allocations_have_a_short_lead() -> None:
    site = Site(pool_of(walltime=400))
    site.start(need(4))
    assert site.decide(need(1), after_s=299.0) == []
    assert site.decide(need(1), after_s=1.0) == ["cpu-1=1"]


def test_the_batch_system_may_change_the_end() -> None:
    site = Site(pool_of(walltime=3600))
    site.start(need(4))
    assert site.fleet.end_of("cpu-0") == 3600.0
    site.report("cpu-0", JobStatus(state=JobState.RUNNING, left_s=500.0))
    assert site.fleet.end_of("cpu-0") == 500.0
    assert site.decide(need(1)) == []
    assert site.decide(need(1), after_s=2.0) == ["cpu-1=1"]
    assert site.fleet.end_of("cpu-9") is None


# -- failures ---------------------------------------------------------------------------------


def test_a_pool_is_patient_with_what_passes() -> None:
    site = Site(pool_of())
    for number in range(11):
        assert site.decide(need(1), after_s=300.0) == [f"cpu-{number}=1"]
        site.fail(f"cpu-{number}", "controller restarts", permanent=False)
    assert site.decide(need(1), after_s=300.0) == ["cpu-11=1"]
    site.fail("cpu-11", "controller restarts", permanent=False)
    (close,) = site.fleet.decide(site.now, [need(1)], {})
    assert isinstance(close, ClosePool)


def test_a_failure_makes_the_pool_pause_longer_each_time_and_then_close() -> None:
    site = Site(pool_of(max_allocations=2))
    assert site.decide(need(8)) == ["cpu-0=1", "cpu-1=1"]
    site.fail("cpu-0", "Socket timed out")
    site.queue("cpu-1")
    site.report("cpu-1", ended(EndCause.FAILED, "exit code 1"))
    assert site.decide(need(8), after_s=3.9) == []
    assert "would help, but pool cpu waits another 0.1s after 2 failures" in site.texts[0]
    assert site.decide(need(8), after_s=0.1) == ["cpu-2=1"], "one at a time"
    assert "tries one allocation at a time until a node joins" in site.texts[0]
    site.fail("cpu-2", "Socket timed out")
    commands = site.fleet.decide(site.now, [need(8)], {})
    reason = (
        "3 allocations in a row brought no node; the last, cpu-2, was refused: Socket timed out."
    )
    assert commands == [ClosePool(pool="cpu", reason=reason, log_of="cpu-2")]
    assert site.decide(need(8), after_s=1000.0) == []
    assert site.fleet.offers(site.now) == []


def test_a_node_that_joins_ends_the_pause() -> None:
    site = Site(pool_of(max_allocations=3))
    site.decide(need(12))
    site.fail("cpu-0")
    site.fail("cpu-1")
    site.join("cpu-2")
    assert site.decide(need(8), after_s=1.0) == [], "the waiting is short"
    assert site.decide(need(8), after_s=1.0) == ["cpu-3=1", "cpu-4=1"]


def test_a_pool_that_has_nodes_is_not_closed_by_passing_failures() -> None:
    site = Site(pool_of(max_allocations=2))
    site.start(need(4))
    site.decide(need(8))
    for index in range(1, 6):
        assert site.decide(need(8), after_s=300.0) == [f"cpu-{index}=1"]
        site.fail(f"cpu-{index}", "busy")
        assert site.decide(need(8)) == []


@pytest.mark.parametrize("how", ["refused", "hopeless"])
def test_what_can_never_succeed_closes_the_pool_at_once(how: str) -> None:
    site = Site()
    site.decide(need(1))
    if how == "refused":
        site.fail("cpu-0", "invalid account", permanent=True)
        assert site.decide(need(1)) == ["closed cpu"]
    else:
        site.queue("cpu-0")
        reason = "PartitionNodeLimit"
        news = JobStatus(state=JobState.PENDING, is_hopeless=True, reason=reason)
        site.report("cpu-0", news)
        site.report("cpu-0", news)
        assert site.decide(need(1)) == ["closed cpu", "x cpu-0"]
    assert site.decide(need(1), after_s=999.0) == []


def test_a_pool_that_is_closed_cancels_what_waits_and_keeps_what_lives() -> None:
    site = Site(pool_of(max_allocations=3))
    site.decide(need(12))
    site.queue("cpu-0", "cpu-1")
    site.join("cpu-0")
    site.fleet.close_pool("cpu", "you said so")
    assert site.decide(need(12)) == ["closed cpu", "x cpu-1"]
    assert site.decide(need(12)) == []
    site.queue("cpu-2")
    assert site.decide(need(12)) == ["x cpu-2"]
    assert site.fleet.summary(site.now).pools[0].closed_reason == "you said so."


def test_running_without_a_node_is_a_failure_after_a_while() -> None:
    site = Site(pool_of(nodes=2))
    site.decide(need(8))
    site.queue("cpu-0")
    site.report("cpu-0", RUNNING)
    assert site.decide(need(8), after_s=299.0) == []
    assert site.decide(need(8), after_s=1.0) == ["x cpu-0"]
    site.report("cpu-0", ended(EndCause.CANCELLED))
    assert site.fleet.summary(site.now).pools[0].n_failures == 1, "counted once"
    assert site.decide(need(8), after_s=2.0) == ["cpu-1=2"]


def test_nodes_that_do_not_come_are_not_waited_for() -> None:
    site = Site(pool_of(nodes=2, max_allocations=2))
    site.decide(need(8))
    site.queue("cpu-0")
    site.join("cpu-0", 1)
    assert site.decide(need(4), after_s=10.0) == [], "the other one is coming"
    assert site.decide(need(4), after_s=300.0) == ["cpu-1=2"]


def test_an_allocation_whose_nodes_have_all_gone_is_given_up() -> None:
    site = Site()
    site.start(need(4))
    site.now = 50.0
    site.leave("cpu-0")
    assert site.decide(after_s=299.0) == []
    assert site.decide(after_s=1.0) == ["< cpu-0"]
    site.report("cpu-0", ended(EndCause.COMPLETED))
    assert site.fleet.summary(site.now).pools[0].n_failures == 0


def test_silence_is_no_end_until_it_lasts() -> None:
    site = Site()
    site.start(need(4))
    for _ in range(5):
        site.report("cpu-0", UNKNOWN)
        site.now += 30.0
    assert site.decide(need(1)) == []
    assert site.fleet.summary(site.now).pools[0].nodes == 1, "its node is there"
    site.fleet.query_failed()
    site.leave("cpu-0")
    site.report("cpu-0", UNKNOWN)
    assert site.fleet.summary(site.now).pools[0].allocations == ()
    assert site.fleet.summary(site.now).pools[0].n_failures == 0


def test_a_job_that_vanishes_before_a_node_came_is_a_failure() -> None:
    site = Site()
    site.decide(need(1))
    site.queue("cpu-0")
    for _ in range(2):
        site.report("cpu-0", UNKNOWN)
        site.now += 40.0
    assert site.fleet.summary(site.now).pools[0].n_failures == 0
    site.report("cpu-0", UNKNOWN)
    (pool,) = site.fleet.summary(site.now).pools
    assert pool.n_failures == 1
    assert pool.last_failure == "vanished: the batch system does not know it any more"
    site.report("cpu-0", RUNNING)


@pytest.mark.parametrize(("is_live", "n_failures"), [(False, 1), (True, 0)])
def test_cancelled_by_somebody(is_live: bool, n_failures: int) -> None:
    site = Site()
    site.decide(need(1))
    site.queue("cpu-0")
    if is_live:
        site.join("cpu-0")
    site.report("cpu-0", ended(EndCause.CANCELLED, "CANCELLED by 0"))
    (pool,) = site.fleet.summary(site.now).pools
    assert pool.n_failures == n_failures
    if not is_live:
        assert pool.last_failure == "was cancelled by somebody: CANCELLED by 0"
    assert site.decide(need(1), after_s=2.0) == ["cpu-1=1"]


def test_a_held_job_is_told_and_no_failure() -> None:
    site = Site()
    site.decide(need(1))
    site.queue("cpu-0")
    site.report("cpu-0", JobStatus(state=JobState.PENDING, is_held=True, reason="JobHeldUser"))
    (one,) = site.fleet.summary(site.now).pools[0].allocations
    assert one.is_held
    assert site.decide(need(1), after_s=9999.0) == []
    assert site.fleet.explain(need(1), site.now) == (
        "1 allocation of pool cpu (1 node) waits in the queue as job job1: JobHeldUser "
        "(it is held: somebody must release it)"
    )


# -- late and wrong reports -------------------------------------------------------------------


def test_late_reports_are_dropped() -> None:
    site = Site()
    site.start(need(4))
    site.report("cpu-0", PENDING)
    (one,) = site.fleet.summary(site.now).pools[0].allocations
    assert one.state == "live"
    site.report("cpu-0", ended(EndCause.TIMEOUT))
    for news in (PENDING, RUNNING, UNKNOWN, ended(EndCause.FAILED)):
        site.report("cpu-0", news)
    site.join("cpu-0")
    site.leave("cpu-0")
    site.fleet.submitted("cpu-0", "job1", site.now)
    site.fail("cpu-0")
    (pool,) = site.fleet.summary(site.now).pools
    assert (pool.allocations, pool.n_failures) == ((), 0)
    assert [one.reason for one in pool.ended] == ["reached its walltime"]


def test_a_node_may_be_faster_than_the_batch_system() -> None:
    site = Site()
    site.decide(need(1))
    site.join("cpu-0")
    site.fleet.submitted("cpu-0", "job1", site.now)
    site.report("cpu-0", PENDING)
    (one,) = site.fleet.summary(site.now).pools[0].allocations
    assert (one.state, one.job_id) == ("live", "job1")


def test_what_cannot_have_happened_is_refused() -> None:
    site = Site()
    for name in ("cpu-0", "gpu-0", "nonsense"):
        with pytest.raises(InvalidTransition, match="never asked for"):
            site.report(name, RUNNING)
    site.decide(need(1))
    site.queue("cpu-0")
    with pytest.raises(InvalidTransition):
        site.fleet.submitted("cpu-0", "job2", 0.0)
    with pytest.raises(InvalidTransition):
        site.fleet.refused("cpu-0", "", 0.0, is_permanent=False)
    site.join("cpu-0")
    with pytest.raises(InvalidTransition, match="joined"):
        site.join("cpu-0")


# -- by hand ----------------------------------------------------------------------------------


def test_by_hand_only_the_target_counts() -> None:
    site = Site(pool_of(nodes=[2, 4], max_allocations=3, idle=10), manual=True)
    assert site.decide(need(100)) == []
    assert site.fleet.explain(need(1), 0.0) == (
        "pools grow only as they are told to (scale is manual)"
    )
    site.fleet.scale("cpu", 5)
    assert site.decide() == ["cpu-0=4", "cpu-1=2"]
    assert site.decide() == []
    site.queue("cpu-0", "cpu-1")
    site.join("cpu-0", 4)
    site.rest("cpu-0-n0", "cpu-0-n1", "cpu-0-n2", "cpu-0-n3")
    assert site.decide(after_s=999.0) == [], "idling is not given back"
    site.fleet.scale("cpu", 99)
    assert site.decide() == ["cpu-2=4"]
    assert "89 more nodes of pool cpu would help" in site.texts[0]


def test_by_hand_the_queued_go_first_then_those_that_idle() -> None:
    site = Site(pool_of(max_allocations=4), manual=True)
    site.fleet.scale("cpu", 4)
    assert site.decide() == ["cpu-0=1", "cpu-1=1", "cpu-2=1", "cpu-3=1"]
    site.queue("cpu-0", "cpu-1", "cpu-2", "cpu-3")
    for name in ("cpu-0", "cpu-1", "cpu-2"):
        site.join(name)
    site.rest("cpu-1-n0")
    site.fleet.scale("cpu", 2)
    assert site.decide() == ["x cpu-3", "< cpu-1"]
    assert site.decide() == []
    site.fleet.scale("cpu", 0)
    assert site.decide() == ["< cpu-0", "< cpu-2"]


def test_by_hand_successors_keep_the_target() -> None:
    site = Site(manual=True)
    site.fleet.scale("cpu", 1)
    site.start()
    assert site.decide(after_s=2999.0) == []
    assert site.decide(after_s=1.0) == ["cpu-1=1"]
    assert site.decide(after_s=1.0) == []
    site.fleet.scale("cpu", 0)
    assert site.decide() == ["< cpu-0"]
    site.queue("cpu-1")
    assert site.decide() == ["x cpu-1"]


def test_scaling_by_hand_needs_a_pool_and_the_mode() -> None:
    with pytest.raises(InvalidRequest, match="there is no pool 'gpu'"):
        Site(manual=True).fleet.scale("gpu", 1)
    with pytest.raises(InvalidRequest, match='scale="manual"'):
        Site().fleet.scale("cpu", 1)


# -- words ------------------------------------------------------------------------------------


def test_explain_why_no_node_comes() -> None:
    site = Site(pool_of(nodes=[1, 2]), pool_of("gpu", gpus=4, cores=8))
    explain = site.fleet.explain
    assert explain(need(1, bound=True), 0.0).startswith("they may only run on certain nodes")
    assert explain(need(1, cores=99), 0.0) == "no pool has nodes that could run them"
    assert explain(need(1, time=7200, pool="cpu"), 0.0) == (
        "no open pool called 'cpu' has nodes that could run them; an allocation of pool cpu lasts "
        "at most 1h, and they need 2h"
    )
    assert explain(need(1, pool="xpu"), 0.0) == (
        "no open pool called 'xpu' has nodes that could run them"
    )
    assert explain(need(8), 0.0) == (
        "nodes of pool cpu will be asked for if they still wait in a moment"
    )
    site.decide(need(8))
    site.queue("cpu-0")
    assert explain(need(8), 0.0) == (
        "1 allocation of pool cpu (2 nodes) waits in the queue as job job1: Priority"
    )
    site.report("cpu-0", RUNNING)
    assert explain(need(8), 0.0) == "1 allocation of pool cpu (2 nodes) starts as job job1"
    site.join("cpu-0", 2)
    assert explain(need(8), 0.0) == ("pool cpu has its 1 allocation already (max_allocations=1)")
    site.fleet.close_pool("gpu", "no account")
    assert explain(need(1, gpus=1), 0.0) == (
        "no pool has nodes that could run them; pool gpu is closed: no account."
    )


def test_the_summary_counts() -> None:
    site = Site(pool_of(nodes=2, max_allocations=2), budget_node_s=4 * 3600.0)
    site.decide(need(16))
    site.queue("cpu-0", "cpu-1")
    site.now = 100.0
    site.join("cpu-0", 1)
    site.now = 160.0
    summary = site.fleet.summary(site.now)
    (pool,) = summary.pools
    assert (pool.nodes, pool.coming) == (1, 2)
    first, second = pool.allocations
    assert (first.state, first.joined, first.nodes) == ("live", 1, 2)
    assert (first.since_s, first.left_s) == (60.0, 3540.0)
    assert (second.state, second.since_s, second.reason) == ("queued", 160.0, "Priority")
    assert (summary.budget_node_s, summary.booked_node_s) == (14400.0, 14400.0)


def test_an_allocation_that_has_lost_nodes_makes_way_for_a_gang() -> None:
    site = Site(pool_of(nodes=2))
    gang = Demand(request=Resources(cores=4, parts=2, is_apart=True))
    assert site.decide(gang) == ["cpu-0=2"]
    site.queue("cpu-0")
    site.join("cpu-0", 2)
    lost = next(iter(site.fleet._state.allocations["cpu-0"].joined))
    site.fleet.node_left("cpu-0", lost, site.now)
    (left,) = site.fleet._state.allocations["cpu-0"].joined
    single = Demand(request=Resources(cores=4))
    for demand, expected in (([gang, single], []), ([gang], ["back cpu-0"]), ([gang], [])):
        commands = site.fleet.decide(site.now, demand, {left: site.now})
        assert [
            f"back {one.allocation}" for one in commands if isinstance(one, GiveBack)
        ] == expected


def test_offers_follow_what_may_still_come() -> None:
    site = Site(pool_of(nodes=2))
    open_offer = Offer(pool="cpu", shape=NodeShape.declare(cores=4), walltime_s=3600.0, nodes=2)
    assert site.fleet.offers(0.0) == [open_offer]
    site.decide(need(8))
    site.queue("cpu-0")
    site.join("cpu-0", 1)
    site.fleet.close_pool("cpu", "enough")
    site.decide(after_s=100.0)
    four = NodeShape.declare(cores=4)
    rest = Offer(pool="cpu", shape=four, walltime_s=3500.0, is_near=True, nodes=2)
    assert site.fleet.offers(site.now) == [rest]
    assert site.fleet.offers(400.0) == [], "the other node is not waited for any more"


@pytest.mark.parametrize("demand", [[], [need(5)], [need(40), need(3, cores=4, time=3000)]])
def test_with_constant_demand_nothing_changes_any_more(demand: list[Demand]) -> None:
    site = Site(pool_of(nodes=[2, 3], max_allocations=3), pool_of("debug", walltime=600))
    asked = site.decide(*demand)
    site.queue(*(one.split("=")[0] for one in asked))
    for _ in range(100):
        assert site.decide(*demand, after_s=10.0) == []
