"""Random histories of a cluster: the books stay right, the order is kept, and nobody starves."""

from __future__ import annotations

import heapq

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exadask.core.ledger import NodeId, Share, ShareId, TaskId
from exadask.core.node import HeldState, Node
from exadask.core.placement import Offer, Place, Placement, Resume, WaitingTask, Yield
from exadask.core.queue import ClassKey
from exadask.errors import ImpossibleRequest
from exadask.resources import GPU_UNIT, NodeShape, Resources

RESERVE_AFTER_S = 3.0
NAMES = tuple(NodeId(f"node-{index}") for index in range(4))

requests = st.builds(
    Resources,
    cores=st.sampled_from([1, 1, 1, 2, 3, 4, 8]),
    gpu_units=st.sampled_from([0, 0, 0, 250, 600, 1000, 2000]),
    memory_bytes=st.sampled_from([None, None, 100, 600]),
    time_s=st.sampled_from([None, None, 1.0, 20.0]),
)
shapes = st.sampled_from(
    [
        NodeShape.declare(cores=4, memory=1000),
        NodeShape.declare(cores=8, gpus=2, memory=1000),
        NodeShape(
            core_ids=tuple(range(6)),
            memory_bytes=1000,
            numa=((0, 1, 2), (3, 4, 5)),
            gpu_ids=("A", "B"),
            gpu_vendor="amd",
            gpu_cores=((3, 4, 5), (0, 1, 2)),
        ),
    ]
)


def class_of(task: WaitingTask) -> ClassKey:
    return (task.request, task.warm_key, task.allowed, task.alone, task.pool)


class PlacementMachine(RuleBasedStateMachine):
    """A cluster whose every command is compared with a simple model of what tasks hold."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Placement(reserve_after_s=RESERVE_AFTER_S)
        self.now = 0.0
        self.n_tasks = 0
        self.waiting: dict[TaskId, WaitingTask] = {}  # in the order of arrival
        self.tasks: dict[ShareId, WaitingTask] = {}
        self.running: dict[ShareId, Share] = {}  # what is active
        self.lent: dict[ShareId, Share] = {}
        self.charged: dict[ShareId, NodeId] = {}
        self.asked: set[ShareId] = set()  # to yield, ever
        self.ends_at: dict[NodeId, float] = {}
        self.pools: dict[NodeId, str | None] = {}

    @initialize(shape=shapes)
    def begin(self, shape: NodeShape) -> None:
        self.core.add_node(NAMES[0], shape)

    # -- nodes ------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(NAMES),
        shape=shapes,
        lasts_s=st.sampled_from([None, None, 15.0, 60.0]),
        pool=st.sampled_from([None, "p", "q"]),
    )
    def join(self, name: NodeId, shape: NodeShape, lasts_s: float | None, pool: str | None) -> None:
        if name not in self.core.nodes:
            ends_at = None if lasts_s is None else self.now + lasts_s
            self.core.add_node(name, shape, ends_at=ends_at, pool=pool)
            self.ends_at[name] = float("inf") if ends_at is None else ends_at
            self.pools[name] = pool

    @rule(name=st.sampled_from(NAMES), lasts_s=st.sampled_from([None, 1.0, 15.0, 60.0]))
    def change_end(self, name: NodeId, lasts_s: float | None) -> None:
        ends_at = None if lasts_s is None else self.now + lasts_s
        self.core.set_end(name, ends_at)
        if name in self.core.nodes:
            self.ends_at[name] = float("inf") if ends_at is None else ends_at

    @rule(
        shape=st.one_of(st.none(), shapes),
        pool=st.sampled_from(["p", "q"]),
        walltime_s=st.sampled_from([10.0, 60.0]),
        n_offers=st.integers(0, 1),
        is_near=st.booleans(),
    )
    def offer(
        self,
        shape: NodeShape | None,
        pool: str,
        walltime_s: float,
        n_offers: int,
        is_near: bool,
    ) -> None:
        offer = Offer(pool=pool, shape=shape, walltime_s=walltime_s, is_near=is_near)
        self.core.offers = [offer] * n_offers

    @rule(name=st.sampled_from(NAMES), is_late=st.booleans())
    def leave(self, name: NodeId, is_late: bool) -> None:
        shares = (*self.running.values(), *self.lent.values())
        there = [share for share in shares if share.node == name]
        gone = self.core.remove_node(name)
        placed = {share.task for share in there}
        assert placed == {task for task in gone if not task.startswith("charge")}
        for share in there:
            self.running.pop(share.share_id, None)
            self.lent.pop(share.share_id, None)
            if is_late:
                self.core.release(share.share_id)
        self.charged = {share: node for share, node in self.charged.items() if node != name}
        self.ends_at.pop(name, None)

    @rule(name=st.sampled_from(NAMES), pause=st.booleans())
    def pause_or_resume(self, name: NodeId, pause: bool) -> None:
        (self.core.pause_node if pause else self.core.resume_node)(name)

    @rule(name=st.sampled_from(NAMES), key=st.sampled_from("wx"), warm=st.booleans())
    def warm(self, name: NodeId, key: str, warm: bool) -> None:
        self.core.note_warm(name, key, is_warm=warm)

    # -- tasks ------------------------------------------------------------------------------

    @rule(
        request=requests,
        priority=st.tuples(st.sampled_from([0, 0, 0, -1, 1]), st.integers(0, 2)),
        allowed=st.one_of(st.none(), st.none(), st.frozensets(st.sampled_from(NAMES))),
        warm_key=st.sampled_from([None, None, "w"]),
        alone=st.sampled_from([False] * 7 + [True]),
        local=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([10, 10**5, 10**6])),
        copies=st.integers(1, 4),
        pool=st.sampled_from([None, None, None, "p", "q"]),
        is_bundle=st.booleans(),
    )
    def submit(
        self,
        request: Resources,
        priority: tuple[int, int],
        allowed: frozenset[NodeId] | None,
        warm_key: str | None,
        alone: bool,
        local: dict[NodeId, int],
        copies: int,
        pool: str | None,
        is_bundle: bool,
    ) -> None:
        for _ in range(copies):
            self.n_tasks += 1
            task = WaitingTask(
                task=TaskId(f"t{self.n_tasks}"),
                request=request,
                priority=priority,
                locality=local,
                warm_key=warm_key,
                allowed=allowed,
                alone=alone,
                pool=pool,
                is_bundle=is_bundle,
            )
            try:
                self.core.submit(task, self.now)
            except ImpossibleRequest:
                assert self.core.nodes or self.core.offers
                assert not self._could_run(task)
            else:
                is_known = self.core.nodes or self.core.offers
                assert not is_known or self._could_run(task, is_late_too=True)
                self.waiting[task.task] = task

    @rule(
        request=st.builds(
            Resources,
            cores=st.sampled_from([1, 1, 1, 2, 3]),
            gpu_units=st.sampled_from([0, 0, 0, 250, 1000]),
            memory_bytes=st.sampled_from([None, None, 100]),
            time_s=st.sampled_from([None, None, 20.0]),
        ),
        priority=st.tuples(st.sampled_from([0, 1]), st.just(0)),
        copies=st.sampled_from([4, 10]),
    )
    def crowd(self, request: Resources, priority: tuple[int, int], copies: int) -> None:
        """Fill the nodes with bundles."""
        self._submit_all(request, priority, copies, is_bundle=True)

    @rule(request=requests, copies=st.integers(1, 3), after_s=st.sampled_from([0.0, 0.5]))
    def press(self, request: Resources, copies: int, after_s: float) -> None:
        """Submit what goes before all that runs."""
        self._submit_all(request, (-2, 0), copies, is_bundle=False)
        self.dispatch(after_s)

    def _submit_all(
        self, request: Resources, priority: tuple[int, int], copies: int, *, is_bundle: bool
    ) -> None:
        self.submit(
            request=request,
            priority=priority,
            allowed=None,
            warm_key=None,
            alone=False,
            local={},
            copies=copies,
            pool=None,
            is_bundle=is_bundle,
        )
        self.dispatch(0.0)

    def _could_run(self, task: WaitingTask, *, is_late_too: bool = False) -> bool:
        """Whether a node or an offer could ever run a task, wherever it is allowed."""
        return any(offer.fits(task.request, task.pool) for offer in self.core.offers) or any(
            node.shape.fits(task.request)
            and task.pool in (None, self.pools.get(node.name))
            and (node.has_time(task.request, self.now) or (is_late_too and not task.request.time_s))
            for node in self.core.nodes.values()
        )

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[task_id]
        self.core.withdraw(task_id)
        self.core.withdraw(task_id)

    # -- shares -----------------------------------------------------------------------------

    @precondition(lambda self: self.running or self.lent)
    @rule(data=st.data(), n_shares=st.integers(1, 5))
    def release(self, data: st.DataObject, n_shares: int) -> None:
        for _ in range(n_shares):
            if self.running or self.lent:
                share_id = data.draw(st.sampled_from(sorted([*self.running, *self.lent])))
                self.running.pop(share_id, None)
                self.lent.pop(share_id, None)
                self.core.release(share_id)

    @precondition(lambda self: self.asked & self.running.keys())
    @rule(data=st.data(), n_shares=st.integers(1, 3), then_dispatch=st.booleans())
    def end_early(self, data: st.DataObject, n_shares: int, then_dispatch: bool) -> None:
        """Let bundles do what they were asked."""
        for _ in range(n_shares):
            left = sorted(self.asked & self.running.keys())
            if left:
                share_id = data.draw(st.sampled_from(left))
                del self.running[share_id]
                self.core.release(share_id)
        if then_dispatch:
            self.dispatch(0.0)

    @precondition(lambda self: self.running and self.waiting)
    @rule(data=st.data(), is_late=st.booleans())
    def relay(self, data: st.DataObject, is_late: bool) -> None:
        """Let another bundle go on with the share of one that ends."""
        share_id = data.draw(st.sampled_from(sorted(self.running)))
        before = self.tasks[share_id]
        heir = self.core.successor(share_id, self.now)
        if heir is None:
            return
        assert heir.is_bundle
        assert before.is_bundle
        assert heir.request == before.request
        assert heir.priority[0] == before.priority[0]
        assert len({class_of(one) for one in self.waiting.values()}) == 1, "another has a right"
        self._check_first_of_its_class(heir.task)
        if is_late:
            self.release(data, n_shares=1)
            self.dispatch(0.5)
        share = self.core.pass_on(share_id, heir.task, self.now)
        if share is None:  # it is gone, or promised to another
            return
        assert share_id in self.running
        assert (share.cores, share.gpus) == (
            self.running[share_id].cores,
            self.running[share_id].gpus,
        )
        self.asked.discard(share_id)
        self.tasks[share_id], self.running[share_id] = heir, share

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        share_id = data.draw(st.sampled_from(sorted(self.running)))
        self.lent[share_id] = self.running.pop(share_id)
        self.core.lend(share_id)

    @precondition(lambda self: self.lent)
    @rule(data=st.data(), then_lend=st.sampled_from([False, False, True]))
    def reclaim(self, data: st.DataObject, then_lend: bool) -> None:
        share_id = data.draw(st.sampled_from(sorted(self.lent)))
        self.core.reclaim(share_id, self.now)
        if then_lend:
            self.core.lend(share_id)

    @rule(name=st.sampled_from(NAMES), request=requests)
    def charge(self, name: NodeId, request: Resources) -> None:
        self.n_tasks += 1
        share_id = self.core.charge(TaskId(f"charge{self.n_tasks}"), name, request)
        if name in self.core.nodes:
            self.charged[share_id] = name

    @precondition(lambda self: self.charged)
    @rule(data=st.data())
    def release_charge(self, data: st.DataObject) -> None:
        share_id = data.draw(st.sampled_from(sorted(self.charged)))
        del self.charged[share_id]
        self.core.release(share_id)

    # -- dispatch ---------------------------------------------------------------------------

    @rule(after_s=st.sampled_from([0.0, 0.5, 1.0, RESERVE_AFTER_S]))
    def dispatch(self, after_s: float) -> None:
        self.now += after_s
        queue, nodes = self.core._queue, self.core.nodes
        urgent = {cls.key for cls in queue.urgent}
        urgent |= {
            cls.key for cls, since in queue.overtaken.items() if since + RESERVE_AFTER_S <= self.now
        }
        was_reserved = {name for name, node in nodes.items() if node.reserved_for is not None}
        placed: list[tuple[WaitingTask, Share]] = []
        yields: dict[TaskId, list[Share]] = {}
        for command in self.core.dispatch(self.now):
            share = command.share
            if isinstance(command, Yield):
                yields.setdefault(command.for_task, []).append(share)
                continue
            self._check_share(share)
            if isinstance(command, Place):
                task = self._check_first_of_its_class(command.task)
                self.tasks[share.share_id] = task
                self._check_place(task, share)
                placed.append((task, share))
            elif isinstance(command, Resume):
                before = self.lent.pop(share.share_id)
                assert before.gpus == share.gpus
                assert len(before.cores) == len(share.cores)
            self.running[share.share_id] = share
        for task, share in placed:
            if share.node not in was_reserved and class_of(task) not in urgent:
                self._check_no_better_one_waits(task, share, nodes[share.node])
        for task_id, shares in yields.items():
            self._check_yields(self.waiting[task_id], shares)
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now

    def _check_yields(self, task: WaitingTask, shares: list[Share]) -> None:
        """Bundles of lower priority are asked, once, and so many that the task will fit."""
        (name,) = {share.node for share in shares}
        node, request = self.core.nodes[name], task.request
        assert not task.alone
        assert node.has_time(request, self.now)
        assert task.allowed is None or name in task.allowed
        for share in shares:
            bundle = self.tasks[share.share_id]
            assert bundle.is_bundle
            assert bundle.priority[0] > task.priority[0]
            assert self.running[share.share_id] == share
            assert share.share_id not in self.asked, "asked twice"
            self.asked.add(share.share_id)
        assert not node.ledger.can_fit(request), "asked for what is there"
        coming = [
            share
            for share_id, share in self.running.items()
            if share_id in self.asked and share.node == name
        ]
        cores = node.ledger.net_cores + sum(len(share.cores) for share in coming)
        memory = node.ledger.free_memory_bytes + sum(share.memory_bytes for share in coming)
        assert cores >= request.cores
        assert memory >= (request.memory_bytes or 0)

    def _check_share(self, share: Share) -> None:
        """Nothing in a share is another's."""
        others = [other for other in self.running.values() if other.node == share.node]
        there = self.core.nodes[share.node].shares
        others += [there[one].share for one, node in self.charged.items() if node == share.node]
        used = {core for other in others for core in other.cores}
        assert used.isdisjoint(share.cores), "a core was given twice"
        assert len(set(share.cores)) == len(share.cores)
        for gpu, units in share.gpus:
            used_units = sum(dict(other.gpus).get(gpu, 0) for other in others)
            assert used_units + units <= GPU_UNIT, "a GPU was given twice"

    def _check_place(self, task: WaitingTask, share: Share) -> None:
        """A share is what was asked for, on a node where the task may run."""
        request, node = task.request, self.core.nodes[share.node]
        assert len(share.cores) == request.cores
        assert sum(units for _, units in share.gpus) == request.gpu_units
        assert request.gpu_units >= GPU_UNIT or len(share.gpus) <= 1
        assert share.memory_bytes == (request.memory_bytes or 0)
        assert not node.is_paused
        assert task.allowed is None or share.node in task.allowed
        assert task.pool in (None, self.pools.get(share.node))
        assert not self._is_spared(task, node)
        ends_at = self.ends_at.get(share.node, float("inf"))
        assert self.now + (request.time_s or 0.0) <= ends_at
        neighbours = [one for one in self.running.values() if one.node == share.node]
        assert not any(self.tasks[one.share_id].alone for one in neighbours)
        assert not (task.alone and neighbours)

    def _check_first_of_its_class(self, task_id: TaskId) -> WaitingTask:
        task = self.waiting.pop(task_id)
        for other in self.waiting.values():
            if class_of(other) == class_of(task):
                # `waiting` is in the order of arrival, so that only numbers need comparing.
                assert (task.priority, int(task.task[1:])) < (other.priority, int(other.task[1:]))
        return task

    def _check_no_better_one_waits(self, placed: WaitingTask, share: Share, node: Node) -> None:
        """No task of higher user priority would fit where this one went, had it not."""
        if node.reserved_for is not None or share.share_id not in node.shares:
            return
        ledger = node.ledger
        units = list(ledger.free_gpu_units)
        for gpu, used in share.gpus:
            units[node.shape.gpu_ids.index(gpu)] += used
        if ledger._owed_units or ledger._owed_memory:
            return
        for other in self.waiting.values():
            request = other.request
            if other.priority[0] >= placed.priority[0] or other.alone:
                continue
            if other.allowed is not None and share.node not in other.allowed:
                continue
            if other.pool not in (None, self.pools.get(share.node)):
                continue
            if self._is_spared(other, node):
                continue
            fits_gpus = (
                units.count(GPU_UNIT) * GPU_UNIT >= request.gpu_units
                if request.gpu_units >= GPU_UNIT
                else max(units, default=0) >= request.gpu_units
            )
            assert not (
                ledger.net_cores + len(share.cores) >= request.cores
                and ledger.free_memory_bytes + share.memory_bytes >= (request.memory_bytes or 0)
                and fits_gpus
                and node.has_time(request, self.now)
            ), f"{other.task} waits, though {placed.task} was placed"

    # -- always -----------------------------------------------------------------------------

    @invariant()
    def books_are_right(self) -> None:
        self.core.check()
        assert self.core.n_waiting == len(self.waiting)
        for task_id in self.waiting:
            assert self.core.explain(task_id, self.now).startswith("waiting: ")
        states = {
            share_id: held.state is HeldState.HELD
            for node in self.core.nodes.values()
            for share_id, held in node.shares.items()
            if share_id not in self.charged
        }
        assert states == {**dict.fromkeys(self.running, True), **dict.fromkeys(self.lent, False)}
        assert sum(one.count for one in self.core.demand()) == len(self.waiting)
        hopeless = set(self.core.hopeless(self.now))
        for task in self.waiting.values():
            is_offered = any(offer.fits(task.request, task.pool) for offer in self.core.offers)
            can_run = any(self._can_run(task, node) for node in self.core.nodes.values())
            has_hope = can_run or (is_offered and task.allowed is None)
            assert (task.task in hopeless) == (not has_hope), task
        idle = self.core.idle_nodes()
        for name, node in self.core.nodes.items():
            assert (name in idle) == (node.reserved_for is None and not node.shares)

    def teardown(self) -> None:
        """Let everything end: what can run runs, and nothing is left behind."""
        for name in list(self.core.nodes):
            self.core.resume_node(name)
        for charge in self.charged:
            self.core.release(charge)
        self.charged.clear()
        for _ in range(3 * len(self.waiting) + 3 * len(self.lent) + 3):
            for share_id in list(self.lent):
                self.core.reclaim(share_id, self.now)
            for share_id in list(self.running):
                del self.running[share_id]
                self.core.release(share_id)
            self.dispatch(RESERVE_AFTER_S / 100)
        self.core.check()
        assert not self.lent
        for task in self.waiting.values():
            able = [node for node in self.core.nodes.values() if self._can_run(task, node)]
            assert all(self._is_spared(task, node) for node in able), task
        for share_id in self.running:
            self.core.release(share_id)
        assert all(node.ledger.is_idle for node in self.core.nodes.values()), "leaked"

    def _is_spared(self, task: WaitingTask, node: Node) -> bool:
        """Whether a node with GPUs is left to others: nodes without are offered, and near."""
        if task.request.gpu_units or task.pool is not None or task.allowed is not None:
            return False
        offers = [one for one in self.core.offers if one.shape is not None and not one.shape.gpus]
        offers = [one for one in offers if one.fits(task.request, None)]
        plain = [one.shape for one in self.core.nodes.values() if not one.shape.gpus]
        is_near = any(shape.fits(task.request) for shape in plain)
        is_near = is_near or any(one.is_near for one in offers)
        return bool(node.shape.gpus) and bool(offers) and is_near

    def _can_run(self, task: WaitingTask, node: Node) -> bool:
        is_allowed = task.allowed is None or node.name in task.allowed
        is_allowed = is_allowed and task.pool in (None, self.pools.get(node.name))
        return (
            is_allowed and node.shape.fits(task.request) and node.has_time(task.request, self.now)
        )


PlacementMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPlacement = PlacementMachine.TestCase


@settings(max_examples=40, deadline=None)
@given(
    n_nodes=st.integers(1, 3),
    victim=st.integers(1, 4),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=30),
    durations_s=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=30),
    priorities=st.lists(st.integers(-2, 1), min_size=1, max_size=30),
)
def test_no_class_starves_under_an_endless_stream(
    n_nodes: int,
    victim: int,
    widths: list[int],
    durations_s: list[float],
    priorities: list[int],
) -> None:
    """Whatever is submitted, a task starts after the stated time and some drains."""
    core = Placement(reserve_after_s=RESERVE_AFTER_S)
    for index in range(n_nodes):
        core.add_node(NAMES[index], NodeShape.declare(cores=4, memory=1000))
    # Of its own class, as it alone asks for memory.
    request = Resources(cores=victim, memory_bytes=1)
    the_victim = WaitingTask(task=TaskId("victim"), request=request, priority=(0,))
    n_submitted, now, is_submitted = 0, 0.0, False
    ends: list[tuple[float, ShareId]] = []
    while not is_submitted or core.waiting(the_victim.task):
        while core.n_waiting < 4:
            task = WaitingTask(
                task=TaskId(str(n_submitted)),
                request=Resources(cores=widths[n_submitted % len(widths)]),
                priority=(priorities[n_submitted % len(priorities)],),
            )
            core.submit(task, now)
            n_submitted += 1
        for command in core.dispatch(now):
            duration_s = durations_s[int(command.share.share_id) % len(durations_s)]
            heapq.heappush(ends, (now + duration_s, command.share.share_id))
        if not is_submitted:
            core.submit(the_victim, now)  # behind a full cluster
            is_submitted = True
        # Four tasks came before it. Then, with itself, there are five classes; each may have become
        # urgent before it, and drain a node. No drain takes longer than one task, 2 s.
        assert now <= 4 * 2.0 + RESERVE_AFTER_S + 5 * 2.0
        now, share_id = heapq.heappop(ends)
        core.release(share_id)
