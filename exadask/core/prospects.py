"""What could ever run a task: the nodes that are there, and those that may still join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from exadask.core.events import Offer, WaitingTask
from exadask.core.ledger import TaskId
from exadask.core.nodes import NodeIndex
from exadask.core.queue import TaskClass, WaitingQueue
from exadask.errors import ImpossibleRequest
from exadask.resources import GPU_UNIT, NodeShape, Resources
from exadask.units import render_seconds

__all__ = ["check_possible", "hopeless", "impossible", "nearest"]


def impossible(
    task: str, request: Resources, pool: str | None, offers: Sequence[Offer]
) -> ImpossibleRequest | None:
    """Say why no offer can ever run a task.

    Parameters
    ----------
    task : str
        How to call the task.
    request : Resources
        What it asks for.
    pool : str, optional
        The only pool whose nodes may run it. None: any.
    offers : sequence of Offer
        The nodes that there are and that may still join.

    Returns
    -------
    ImpossibleRequest or None
        An error that names what is in the way; None if an offer fits, or if nothing is offered at
        all, since then nothing is known.
    """
    if not offers or any(offer.fits(request, pool) for offer in offers):
        return None
    asked = str(request) if pool is None else f"{request} in pool {pool!r}"
    among = [offer for offer in offers if pool in (None, offer.pool)]
    if not among:
        pools = dict.fromkeys(offer.pool for offer in offers if offer.pool is not None)
        there_are = f"open are: {', '.join(pools)}" if pools else "there are no pools here"
        return ImpossibleRequest(task, asked, there_are, "pool")
    roomy = [one.walltime_s for one in among if one.has_room(request)]
    if roomy:
        return ImpossibleRequest(task, asked, render_seconds(max(roomy)), "time")
    shapes = [offer.shape for offer in among if offer.shape is not None]
    has = str(nearest(shapes, request.part)) if shapes else "nodes that are not known yet"
    if request.parts == 1:
        return ImpossibleRequest(task, asked, has, "node")
    n_nodes = max(one.nodes for one in among)
    has = f"1 node with {has}" if n_nodes == 1 else f"{n_nodes} nodes with {has} each"
    return ImpossibleRequest(task, asked, has, "allocation")


def check_possible(
    nodes: NodeIndex, offers: Sequence[Offer], task: WaitingTask, now: float
) -> None:
    """Raise `ImpossibleRequest` if neither a connected node nor an offer can ever run a task.

    With neither nodes nor offers nothing is known, so that nothing is impossible.
    """
    request, pool = task.request, task.pool
    if nodes.able(request, nodes.of_pool(pool), now) or any(
        offer.fits(request, pool) for offer in offers
    ):
        return
    counts = Counter(
        (node.allocation, node.pool, node.shape, max(0.0, node.ends_at - now))
        for node in nodes.by_id.values()
    )
    connected = [
        Offer(pool=of, shape=shape, walltime_s=left_s, nodes=count)
        for (_, of, shape, left_s), count in counts.items()
    ]
    error = impossible(task.task, request, pool, [*offers, *connected])
    if error is not None:
        raise error


def hopeless(
    nodes: NodeIndex, queue: WaitingQueue, offers: Sequence[Offer], now: float
) -> list[TaskId]:
    """Name the waiting tasks that neither a connected node nor an offer can ever run."""
    return [
        task
        for _, cls in queue.order
        if not _has_hope(nodes, offers, cls, now)
        for task in queue.tasks_of(cls)
    ]


def nearest(shapes: Sequence[NodeShape], request: Resources) -> NodeShape:
    """Choose the shape that has most of what a request asks for; then the largest.

    Raises
    ------
    ValueError
        There are no shapes.
    """

    def rank(shape: NodeShape) -> tuple[float, int, int, int]:
        has = [shape.cores / request.cores]
        if request.gpu_units:
            has.append(shape.gpus * GPU_UNIT / request.gpu_units)
        if request.memory_bytes:
            has.append(shape.memory_bytes / request.memory_bytes)
        met = sum(min(1.0, part) for part in has)
        return (met, shape.cores, shape.gpus, shape.memory_bytes)

    return max(shapes, key=rank)


def _has_hope(nodes: NodeIndex, offers: Sequence[Offer], cls: TaskClass, now: float) -> bool:
    # Nodes that are still to come have new names, so that they cannot be among the allowed ones.
    if cls.allowed is None and any(offer.fits(cls.asked, cls.pool) for offer in offers):
        return True
    return nodes.able(cls.asked, nodes.runnable(cls), now)
