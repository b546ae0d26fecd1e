"""What a decision costs does not grow with the nodes that cannot help."""

from __future__ import annotations

import time

import pytest

from exadask.core.ledger import NodeId, TaskId
from exadask.core.placement import Offer, Place, Placement, WaitingTask
from exadask.resources import NodeShape, Resources

N_NODES = 2_000
N_TASKS = 200
LIMIT_S = 0.15  # of 10 ms on an idle machine; it was 0.6 s while full nodes were looked at
SHAPE = NodeShape.declare(cores=8, gpus=4, memory=1000)


def cluster(ends_at: float | None = None, fill: Resources | None = None) -> Placement:
    """Many nodes, of which all but the last are full of something, or end soon."""
    placement = Placement()
    for index in range(N_NODES - 1):
        placement.add_node(NodeId(f"node-{index}"), SHAPE, ends_at=ends_at)
        if fill is not None:
            submit(placement, f"full-{index}", fill)
    if fill is not None:
        assert len(placement.dispatch(0.0)) == N_NODES - 1
    placement.add_node(NodeId("roomy"), SHAPE)
    return placement


def submit(placement: Placement, name: str, request: Resources) -> None:
    placement.submit(WaitingTask(task=TaskId(name), request=request, priority=(0,)), 1.0)


@pytest.mark.parametrize(
    ("fill", "ends_at", "request_"),
    [
        (Resources(gpu_units=4000), None, Resources(gpu_units=1000)),
        (Resources(gpu_units=4000), None, Resources(gpu_units=300)),
        (Resources(memory_bytes=900), None, Resources(memory_bytes=200)),
        (None, 100.0, Resources(time_s=200.0)),
    ],
    ids=["GPUs", "shares of GPUs", "memory", "time"],
)
def test_a_task_finds_the_one_node_with_room(
    fill: Resources | None, ends_at: float | None, request_: Resources
) -> None:
    placement = cluster(ends_at, fill)
    start = time.process_time()
    for index in range(N_TASKS):
        submit(placement, str(index), request_)
        (command,) = placement.dispatch(1.0)
        assert isinstance(command, Place)
        assert command.share.node == "roomy"
        placement.release(command.share.share_id)
    assert time.process_time() - start < LIMIT_S
    placement.check()


def test_an_urgent_task_that_no_node_lasts_for_is_not_looked_for_everywhere() -> None:
    placement = cluster(ends_at=1000.0)
    placement.remove_node(NodeId("roomy"))
    placement.offers = [Offer(shape=SHAPE, walltime_s=1e6)]
    submit(placement, "long", Resources(time_s=5000.0))
    submit(placement, "first", Resources())
    placement.dispatch(1.0)
    start = time.process_time()
    for index in range(N_TASKS):
        submit(placement, str(index), Resources())
        assert len(placement.dispatch(100.0 + index)) == 1
    assert time.process_time() - start < LIMIT_S
    placement.check()
