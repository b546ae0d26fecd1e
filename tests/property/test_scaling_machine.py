"""Random histories of pools: nothing is asked for beyond the rules; at last all work is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exadask.core.ledger import NodeId, Share, TaskId
from exadask.core.placement import Placement, WaitingTask
from exadask.core.scaling import Cancel, ClosePool, Command, Fleet, FleetLimits, GiveBack, Submit
from exadask.errors import ImpossibleRequest
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape, Resources

CPU, GPU = NodeShape.declare(cores=4), NodeShape.declare(cores=4, gpus=2)

limits = st.sampled_from([{}, {}, {"max_queued": 1}, {"max_running": 2}, {"max_queued": 2}])
requests = st.builds(
    Resources,
    cores=st.sampled_from([1, 1, 3, 4]),
    gpu_units=st.sampled_from([0, 0, 500, 1000, 2000]),
    time_s=st.sampled_from([None, None, 50.0, 300.0]),
)


def pools_called(name: str) -> st.SearchStrategy[Pool]:
    return st.builds(
        lambda **facts: Pool.declare(name, batch="slurm", **facts),
        walltime=st.sampled_from([60.0, 600.0]),
        idle=st.sampled_from([5.0, 100.0]),
        nodes=st.sampled_from([[1, 1], [1, 3], [2, 2], [2, 4]]),
        max_allocations=st.integers(1, 3),
        cores=st.just(4),
    )


class Job:
    """What the batch system knows of an allocation."""

    def __init__(self, command: Submit) -> None:
        self.command = command
        self.is_taken = self.is_running = self.is_cancelled = False
        self.started_at = 0.0
        self.joined: set[NodeId] = set()
        self.n_joined = 0


class ScalingMachine(RuleBasedStateMachine):
    """Pools, a batch system with moods, and tasks that are really placed on what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs: dict[str, Job] = {}
        self.closed: set[str] = set()
        self.tasks: dict[TaskId, WaitingTask] = {}
        self.running: dict[TaskId, Share] = {}
        self.idle: dict[NodeId, float] = {}
        self.n_tasks = 0
        self.spent_node_s = 0.0

    @initialize(data=st.data(), budget=st.sampled_from([None, None, 1000.0, 20_000.0]))
    def begin(self, data: st.DataObject, budget: float | None) -> None:
        self.budget = budget
        facts: list[dict[str, Any]] = [{}, {}, {"gpus": 2}]
        self.pools = {}
        for name, extra in zip(("cpu", "more", "gpu"), facts, strict=True):
            pool = data.draw(pools_called(name))
            self.pools[name] = pool.updated(**extra, **data.draw(limits))
        self.fleet = Fleet(
            list(self.pools.values()),
            budget_node_s=budget,
            limits=FleetLimits(start_timeout_s=40.0, cancel_after_s=10.0),
        )
        self.core = Placement()
        self.core.offers = self.fleet.offers(0.0)

    # -- work -------------------------------------------------------------------------------

    @rule(
        request=requests,
        pool=st.sampled_from([None, None, "cpu", "gpu"]),
        n_tasks=st.integers(1, 12),
    )
    def submit(self, request: Resources, pool: str | None, n_tasks: int) -> None:
        for _ in range(n_tasks):
            self.n_tasks += 1
            task = WaitingTask(
                task=TaskId(f"t{self.n_tasks}"), request=request, priority=(0,), pool=pool
            )
            self._wait(task)

    def _wait(self, task: WaitingTask) -> None:
        try:
            self.core.submit(task, self.now)
        except ImpossibleRequest:
            self.tasks.pop(task.task, None)
        else:
            self.tasks[task.task] = task

    @precondition(lambda self: self.running)
    @rule(share=st.floats(0.1, 1.0))
    def finish(self, share: float) -> None:
        for task in list(self.running)[: max(1, int(share * len(self.running)))]:
            self.core.release(self.running.pop(task).share_id)
            del self.tasks[task]

    @rule(share=st.floats(0.1, 1.0))
    def lose_interest(self, share: float) -> None:
        waiting = [task for task in self.tasks if task not in self.running]
        for task in waiting[: int(share * len(waiting))]:
            self.core.withdraw(task)
            del self.tasks[task]

    # -- decisions --------------------------------------------------------------------------

    @rule(after_s=st.sampled_from([0.0, 0.5, 2.0, 10.0, 50.0]))
    def decide(self, after_s: float) -> None:
        self._decide(after_s)

    def _decide(self, after_s: float) -> None:
        self.now += after_s
        for placed in self.core.dispatch(self.now):
            self.running[placed.share.task] = placed.share
        idle = set(self.core.idle_nodes())
        self.idle = {node: self.idle.get(node, self.now) for node in idle}
        outlasting = self.core.outlasting(self.fleet.ending_nodes(self.now))
        demand = self.core.demand()
        commands = self.fleet.decide(self.now, demand, self.idle, outlasting)
        self._check_commands(commands, len(outlasting))
        for command in commands:
            self._perform(command)
        again = self.fleet.decide(self.now, demand, self.idle, outlasting)
        assert again == [], "the same need is asked for twice, or given up and asked for in turns"
        self.core.offers = self.fleet.offers(self.now)

    def _check_commands(self, commands: list[Command], n_outlasting: int) -> None:
        asked = Counter(one.pool for one in commands if isinstance(one, Submit))
        let_go = {
            self.jobs[one.allocation].command.pool for one in commands if isinstance(one, Cancel)
        }
        n_waiting = self.core.n_waiting
        assert sum(asked.values()) <= n_waiting + n_outlasting, "a node for each task is enough"
        assert not let_go & asked.keys() or self.closed, "asked for and cancelled at once"
        for name in asked:
            assert name not in self.closed, "a closed pool stays closed"

    def _perform(self, command: Command) -> None:
        match command:
            case Submit():
                self._check_submission(command)
                self.jobs[command.allocation] = Job(command)
            case Cancel() | GiveBack():
                job = self.jobs[command.allocation]
                assert job.is_taken, "cancelled before it was taken"
                assert not job.is_cancelled, "cancelled twice"
                assert isinstance(command, GiveBack) == bool(job.n_joined)
                job.is_cancelled = True
            case ClosePool():
                assert command.pool not in self.closed, "closed twice"
                assert command.reason.endswith(".")
                self.closed.add(command.pool)

    def _check_submission(self, command: Submit) -> None:
        pool = self.pools[command.pool]
        assert pool.min_nodes <= command.nodes <= pool.max_nodes
        assert command.walltime_s == pool.walltime_s
        lead_s = pool.walltime_s / 4
        there = [
            job
            for job in self.jobs.values()
            if job.command.pool == pool.name
            and not (job.is_running and self.now >= job.started_at + 3 * lead_s)
        ]
        assert len(there) < pool.max_allocations
        if pool.limits.running is not None:
            assert len(there) < pool.limits.running
        if pool.limits.queued is not None:
            assert sum(not job.is_running for job in there) < pool.limits.queued
        if self.budget is not None:
            booked = sum(job.command.nodes * job.command.walltime_s for job in self.jobs.values())
            cost = command.nodes * command.walltime_s
            assert self.spent_node_s + booked + cost <= self.budget * (1 + 1e-9)

    # -- the batch system -------------------------------------------------------------------

    def _some(self, data: st.DataObject, which: str) -> tuple[str, Job] | None:
        tests: dict[str, Callable[[Job], bool]] = {
            "asked": lambda job: not job.is_taken,
            "queued": lambda job: job.is_taken and not job.is_running,
            "running": lambda job: job.is_running,
            "any": lambda job: job.is_taken,
        }
        names = [name for name, job in self.jobs.items() if tests[which](job)]
        if not names:
            return None
        name = data.draw(st.sampled_from(names))
        return name, self.jobs[name]

    @rule(data=st.data(), mood=st.sampled_from(["take"] * 8 + ["refuse"] * 2 + ["never"]))
    def answer(self, data: st.DataObject, mood: str) -> None:
        found = self._some(data, "asked")
        if found is None:
            return
        name, job = found
        if mood == "take":
            job.is_taken = True
            self.fleet.submitted(name, f"j-{name}", self.now)
        else:
            del self.jobs[name]
            self.fleet.refused(name, "no", self.now, is_permanent=mood == "never")

    @rule(data=st.data(), is_told=st.booleans(), is_hopeless=st.sampled_from([False] * 9 + [True]))
    def run(self, data: st.DataObject, is_told: bool, is_hopeless: bool) -> None:
        found = self._some(data, "queued")
        if found is None:
            return
        name, job = found
        if is_hopeless and not job.is_cancelled:
            news = JobStatus(state=JobState.PENDING, is_hopeless=True, reason="too large")
            self.fleet.reported(name, news, self.now)
            return
        job.is_running, job.started_at = True, self.now
        if is_told:
            self._tell_running(name)

    def _tell_running(self, name: str) -> None:
        job = self.jobs[name]
        left_s = job.started_at + job.command.walltime_s - self.now
        self.fleet.reported(name, JobStatus(state=JobState.RUNNING, left_s=left_s), self.now)
        for node in job.joined:
            self.core.set_end(node, self.fleet.end_of(name))

    @rule(data=st.data(), n_nodes=st.integers(1, 4))
    def join(self, data: st.DataObject, n_nodes: int) -> None:
        found = self._some(data, "running")
        if found is not None:
            for _ in range(n_nodes):
                self._join(*found)

    def _join(self, name: str, job: Job) -> None:
        if job.n_joined == job.command.nodes or job.is_cancelled:
            return
        node = NodeId(f"{name}-{job.n_joined}")
        job.n_joined += 1
        job.joined.add(node)
        if job.n_joined == 1:
            self._tell_running(name)
        self.fleet.node_joined(name, node, self.now)
        pool = job.command.pool
        shape = GPU if pool == "gpu" else CPU
        self.core.add_node(node, shape, ends_at=self.fleet.end_of(name), pool=pool)

    @rule(data=st.data())
    def lose_node(self, data: st.DataObject) -> None:
        found = self._some(data, "running")
        if found is not None and found[1].joined:
            self._lose(found[0], min(found[1].joined))

    def _lose(self, name: str, node: NodeId) -> None:
        self.jobs[name].joined.discard(node)
        self.fleet.node_left(name, node, self.now)
        for task in self.core.remove_node(node):
            del self.running[task]
            self._wait(self.tasks[task])

    @rule(data=st.data(), cause=st.sampled_from(list(EndCause)))
    def end(self, data: st.DataObject, cause: EndCause) -> None:
        found = self._some(data, "any")
        if found is not None:
            self._end(found[0], cause)

    def _end(self, name: str, cause: EndCause) -> None:
        job = self.jobs[name]
        for node in sorted(job.joined):
            self._lose(name, node)
        if job.is_running:
            self._tell_running(name)
            spent_s = min(self.now - job.started_at, job.command.walltime_s)
            self.spent_node_s += job.command.nodes * spent_s
        else:
            cause = EndCause.CANCELLED
        del self.jobs[name]
        self.fleet.reported(name, JobStatus(state=JobState.ENDED, cause=cause), self.now)
        self.fleet.reported(name, JobStatus(state=JobState.RUNNING), self.now)

    @rule(data=st.data(), n_polls=st.integers(1, 2))
    def say_nothing(self, data: st.DataObject, n_polls: int) -> None:
        found = self._some(data, "any")
        for _ in range(n_polls if found is not None else 0):
            self.fleet.query_failed()
            assert found is not None
            self.fleet.reported(found[0], JobStatus(state=JobState.UNKNOWN), self.now)
        if found is not None:
            name, job = found
            phase = JobState.RUNNING if job.is_running else JobState.PENDING
            self.fleet.reported(name, JobStatus(state=phase), self.now)

    @rule(name=st.sampled_from(["cpu", "more", "gpu", None, None, None, None, None, None]))
    def close(self, name: str | None) -> None:
        if name is not None:
            self.fleet.close_pool(name, "enough")

    # -- always -----------------------------------------------------------------------------

    @invariant()
    def books_are_right(self) -> None:
        self.fleet.check()
        self.core.check()
        summary = self.fleet.summary(self.now)
        names = {one.name for pool in summary.pools for one in pool.allocations}
        assert names == self.jobs.keys()
        for pool in summary.pools:
            assert pool.closed_reason is not None or pool.name not in self.closed
        for one in self.core.demand():
            assert self.fleet.explain(one, self.now)

    def teardown(self) -> None:
        """From now on the batch system does what it is told: all work that can be done is done."""
        if not hasattr(self, "fleet"):
            return
        for _ in range(200):
            if all(task in set(self._hopeless()) for task in self.tasks):
                break
            self._cooperate()
        left = self.tasks.keys() - set(self._hopeless())
        assert not left, f"{left} are never done"
        for task in list(self.tasks):
            self.core.withdraw(task)
        self.tasks.clear()
        for _ in range(60):
            self._cooperate()
        assert not self.jobs, "what nobody needs is given back"

    def _hopeless(self) -> list[TaskId]:
        self.core.offers = self.fleet.offers(self.now)
        return self.core.hopeless(self.now)

    def _cooperate(self) -> None:
        for name, job in list(self.jobs.items()):
            if not job.is_taken:
                job.is_taken = True
                self.fleet.submitted(name, f"j-{name}", self.now)
            if job.is_cancelled:
                self._end(name, EndCause.CANCELLED)
                continue
            if not job.is_running:
                job.is_running, job.started_at = True, self.now
            if self.now >= job.started_at + job.command.walltime_s:
                self._end(name, EndCause.TIMEOUT)
                continue
            for _ in range(job.command.nodes):
                self._join(name, job)
        self._decide(10.0)
        for task in list(self.running):
            self.core.release(self.running.pop(task).share_id)
            del self.tasks[task]
        self.books_are_right()


ScalingMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestScaling = ScalingMachine.TestCase
