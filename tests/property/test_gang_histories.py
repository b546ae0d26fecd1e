"""Random histories with gangs: all of it or nothing, in one allocation, and nothing leaks."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings

from exadask.core.events import Offer
from exadask.core.ledger import NodeId, ShareId, TaskId
from exadask.core.placement import Place, Placement, Resume, WaitingTask
from exadask.errors import ImpossibleRequest
from exadask.resources import NodeShape, Resources

NODES = tuple(NodeId(f"n{index}") for index in range(6))
requests = st.builds(
    Resources,
    cores=st.sampled_from([1, 1, 2, 4]),
    gpu_units=st.sampled_from([0, 0, 250, 1000]),
    memory_bytes=st.sampled_from([None, 200]),
    time_s=st.sampled_from([None, 1.0, 20.0]),
    parts=st.sampled_from([1, 1, 2, 3, 9]),
    is_apart=st.booleans(),
)
shapes = st.sampled_from([(4, 0), (4, 2), (8, 4)])
steps = st.one_of(
    st.tuples(st.just("join"), st.sampled_from(NODES), shapes, st.sampled_from([None, 15.0])),
    st.tuples(st.just("leave"), st.sampled_from(NODES)),
    st.tuples(st.just("pause"), st.sampled_from(NODES), st.booleans()),
    st.tuples(st.just("offer"), shapes, st.integers(0, 3)),
    st.tuples(st.just("submit"), requests, st.integers(-1, 1), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("withdraw"), st.integers(0, 50)),
    st.tuples(st.just("release"), st.integers(0, 50)),
    st.tuples(st.just("dispatch"), st.sampled_from([0.0, 0.5, 3.0])),
)


class History:
    """A placement, and a simple model of what gangs hold."""

    def __init__(self) -> None:
        self.core, self.now, self.n_tasks = Placement(reserve_after_s=3.0), 0.0, 0
        self.asked: dict[TaskId, Resources] = {}
        self.shares: dict[TaskId, list[ShareId]] = {}

    def join(self, name: NodeId, shape: tuple[int, int], lasts_s: float | None) -> None:
        if name not in self.core.nodes:
            ends_at = None if lasts_s is None else self.now + lasts_s
            declared = NodeShape.declare(cores=shape[0], gpus=shape[1], memory=1000)
            allocation = f"a{NODES.index(name) // 3}"
            self.core.add_node(name, declared, ends_at=ends_at, allocation=allocation)

    def leave(self, name: NodeId) -> None:
        for task in self.core.remove_node(name):
            self._release(task)  # of a gang that loses a node all other nodes are released

    def pause(self, name: NodeId, is_paused: bool) -> None:
        (self.core.pause_node if is_paused else self.core.resume_node)(name)

    def offer(self, shape: tuple[int, int], nodes: int) -> None:
        declared = NodeShape.declare(cores=shape[0], gpus=shape[1], memory=1000)
        self.core.offers = [Offer(shape=declared, nodes=nodes)] if nodes else []

    def submit(self, request: Resources, priority: int, copies: int, is_bundle: bool) -> None:
        if request.parts == 1:
            request = replace(request, is_apart=False)
        for _ in range(copies):
            self.n_tasks += 1
            task = WaitingTask(
                task=TaskId(f"t{self.n_tasks}"),
                request=request,
                priority=(priority,),
                is_bundle=is_bundle and request.parts == 1,
            )
            try:
                self.core.submit(task, self.now)
            except ImpossibleRequest:
                return
            self.asked[task.task] = request

    def withdraw(self, index: int) -> None:
        waiting = [task for task in self.asked if self.core.waiting(task)]
        if waiting:
            self.core.withdraw(waiting[index % len(waiting)])

    def release(self, index: int) -> None:
        if self.shares:
            self._release(list(self.shares)[index % len(self.shares)])

    def _release(self, task: TaskId) -> None:
        for share in self.shares.pop(task):
            self.core.release(share)

    def dispatch(self, after_s: float) -> None:
        self.now += after_s
        for command in self.core.dispatch(self.now):
            if isinstance(command, Place):
                self._check(command)
            else:
                assert not isinstance(command, Resume)

    def _check(self, place: Place) -> None:
        request, shares = self.asked[place.task], (place.share, *place.mates)
        nodes = [self.core.nodes[share.node] for share in shares]
        assert len({node.name for node in nodes}) == len(nodes)
        assert len({node.allocation for node in nodes}) == 1
        assert sum(len(share.cores) for share in shares) == request.parts * request.cores
        if request.is_apart:
            assert len(nodes) == request.parts
        whole = request.times(request.parts)
        if not request.is_apart and len(nodes) > 1:
            assert not any(node.shape.fits(whole) for node in self.core.nodes.values())
        for share, node in zip(shares, nodes, strict=True):
            here = request.times(len(share.cores) // request.cores)
            assert sum(units for _, units in share.gpus) == here.gpu_units
            assert share.memory_bytes == (here.memory_bytes or 0)
            assert self.now + (request.time_s or 0.0) <= node.ends_at
            assert not node.is_paused
        self.shares[place.task] = [share.share_id for share in shares]


@settings(max_examples=150, deadline=None)
@given(history=st.lists(steps, min_size=5, max_size=60))
def test_random_histories_with_gangs(history: list[tuple[object, ...]]) -> None:
    """Whatever happens, the books are right, and all that can run runs in the end."""
    model = History()
    model.join(NODES[0], (4, 2), None)
    for name, *arguments in history:
        getattr(model, str(name))(*arguments)
        model.core.check()
        for task in model.asked:
            assert model.core.explain(task, model.now)
    for node in list(model.core.nodes):
        model.core.resume_node(node)
    model.core.offers = []
    for task in model.core.hopeless(model.now):
        model.core.withdraw(task)
    for _ in range(3 * model.core.n_waiting + 3):
        for task in list(model.shares):
            model._release(task)
        model.dispatch(0.001)
        model.core.check()
    assert model.core.n_waiting == len(model.core.hopeless(model.now))
    for task in list(model.shares):
        model._release(task)
    assert all(node.ledger.is_idle for node in model.core.nodes.values())
