"""Why a task waits, or where it runs, in one sentence for its user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from exadask.core.books import Books
from exadask.core.ledger import TaskId
from exadask.core.node import Held, HeldState, Node
from exadask.core.nodes import NodeIndex
from exadask.core.prospects import nearest
from exadask.core.queue import TaskClass, WaitingQueue
from exadask.cpulist import render_cpulist
from exadask.resources import GPU_UNIT, Resources
from exadask.units import render_bytes, render_seconds

__all__ = ["explain_task"]


class _Resource(NamedTuple):
    """How to look at one resource, and how to speak of it."""

    plural: str
    asked: Callable[[Resources], int]
    free: Callable[[Node], int]
    total: Callable[[Node], int]
    render: Callable[[int], str]


def explain_task(books: Books, task_id: TaskId, now: float) -> str:
    """Say where a task runs, or what it waits for; O(waiting and running)."""
    if task_id in books.queue:
        return _explain_waiting(books.nodes, books.queue, task_id, now)
    shares = [held for held in books.held.values() if held.share.task == task_id]
    if not shares:
        return "unknown to the scheduler"
    if len(shares) > 1 and shares[0].share.node != shares[-1].share.node:
        parts = [_explain_held(held).removeprefix("running on ") for held in shares[:3]]
        more = f"; and {_nodes(len(shares) - 3)} more" if len(shares) > 3 else ""
        return f"running on {'; '.join(parts)}{more}"
    return _explain_held(shares[-1])


def _explain_held(held: Held) -> str:
    share, node = held.share, held.node.name
    gpus = [
        gpu if units == GPU_UNIT else f"{gpu} ({units / GPU_UNIT:g})" for gpu, units in share.gpus
    ]
    parts = []
    if share.cores:
        parts.append(
            f"{'core' if len(share.cores) == 1 else 'cores'} {render_cpulist(share.cores)}"
        )
    if gpus:
        parts.append(f"{'GPU' if len(gpus) == 1 else 'GPUs'} {', '.join(gpus)}")
    match held.state:
        case HeldState.LENT:
            return f"on {node}, waiting for other tasks; its cores and GPUs are lent to them"
        case HeldState.WANTED:
            return f"on {node}, waiting until {_cores(held.request.cores)} are free again"
    overdrawn = held.request.cores - len(share.cores)
    if overdrawn > 0:
        parts.append(f"{_cores(overdrawn)} beyond what was free")
    return f"running on {node} with {', '.join(parts)}"


def _explain_waiting(nodes: NodeIndex, queue: WaitingQueue, task_id: TaskId, now: float) -> str:
    """Say what a waiting task waits for."""
    cls = queue.class_of(task_id)
    reason = _no_node(nodes, cls, now) or _reservation(queue, cls, task_id, now)
    if reason is None:
        candidates = [node for node in nodes.by_id.values() if node.bit & nodes.runnable(cls)]
        candidates = [node for node in candidates if not node.is_paused]
        reason = _bottleneck(queue, cls, task_id, candidates)
        reason = reason or _too_few(nodes, cls, now) or _closed(cls, candidates, now)
    return f"waiting: {reason}"


def _no_node(nodes: NodeIndex, cls: TaskClass, now: float) -> str | None:
    """Explain that there is no node to wait for."""
    if not nodes.by_id:
        return "no node is connected"
    if all(node.is_paused for node in nodes.by_id.values()):
        return "all nodes are paused"
    of_pool = "" if cls.pool is None else f" of pool {cls.pool!r}"
    shapes = nodes.shapes(cls.pool)
    if not shapes:
        return f"no node{of_pool} is connected"
    if not nodes.fitting(cls.request, cls.pool):
        has = nearest(shapes, cls.request)
        return f"asks for {cls.request}, but the largest connected node{of_pool} has {has}"
    if not nodes.runnable(cls) and nodes.spares_gpus(cls):
        return "needs no GPU, and a node without GPUs is about to join"
    if not nodes.runnable(cls):
        names = ", ".join(sorted(cls.allowed or ())) or "no node"
        named = [nodes.by_id[name] for name in cls.allowed or () if name in nodes.by_id]
        if named and any(node.shape.fits(cls.request) for node in named):
            return f"may only run on {names}, which is not{of_pool}"
        if named:
            return f"may only run on {names}, which is too small for {cls.request}"
        return f"may only run on {names}, which is not connected"
    whenever = replace(cls.asked, time_s=None)
    if cls.parts > 1 and not nodes.able(whenever, nodes.runnable(cls), now):
        most = max((nodes.runnable(cls) & one).bit_count() for one in nodes.allocations)
        return f"asks for {cls.asked}; so far {_nodes(most)} of that kind joined in one allocation"
    runnable = [node for node in nodes.by_id.values() if node.bit & nodes.runnable(cls)]
    if all(node.is_paused for node in runnable):
        return f"the nodes that could run it are paused ({_names(runnable)})"
    return None


def _reservation(queue: WaitingQueue, cls: TaskClass, task_id: TaskId, now: float) -> str | None:
    if not cls.reserved:
        return None
    names = ", ".join(cls.reserved[:3])
    more = len(cls.reserved) - 3
    are = f"{names} and {more} more are" if more > 0 else f"{names} are"
    are = f"{names} is" if len(cls.reserved) == 1 else are
    if cls.head.task == task_id:
        return f"{are} reserved for it since {now - cls.reserved_since:.1f} s"
    n_before = sum(other is cls for _, other in queue.tasks_before(task_id))
    return f"behind {_tasks(n_before)} of its kind, for the first of which {are} reserved"


def _too_few(nodes: NodeIndex, cls: TaskClass, now: float) -> str | None:
    """Explain that a gang has room on some nodes, and not on enough of one allocation."""
    if cls.parts == 1:
        return None
    roomy = nodes.runnable(cls) & nodes.with_room(cls, now) & nodes.with_cores(cls.request.cores)
    most = max((roomy & one).bit_count() for one in nodes.allocations)
    return f"asks for {cls.asked}; at most {_nodes(most)} of one allocation have room now"


def _bottleneck(
    queue: WaitingQueue, cls: TaskClass, task_id: TaskId, nodes: Sequence[Node]
) -> str | None:
    """Explain which resource no node has enough of."""
    for resource in _RESOURCES:
        asked = resource.asked(cls.request)
        best = max(nodes, key=resource.free)
        if asked <= resource.free(best):
            continue
        free, total = resource.render(resource.free(best)), resource.render(resource.total(best))
        needs = f"needs {_amount(resource, asked)}"
        have = f"the nodes have at most {free} free of {total} ({best.name})"
        before = [task for task, _ in queue.tasks_before(task_id) if resource.asked(task.request)]
        if not before:
            return f"{needs}; {have}"
        return (
            f"behind {_tasks(len(before))} of higher priority that also need {resource.plural}; "
            f"{needs}; {have}"
        )
    return None


def _closed(cls: TaskClass, nodes: Sequence[Node], now: float) -> str:
    """Explain why no node takes the task although none lacks one resource alone."""
    request = cls.request
    if request.time_s is not None and not any(node.has_time(request, now) for node in nodes):
        longest = max(nodes, key=lambda node: node.ends_at)
        left = render_seconds(max(0.0, longest.ends_at - now))
        return f"needs {render_seconds(request.time_s)}; {longest.name} is there for another {left}"
    if cls.alone and all(node.n_active for node in nodes):
        return "must run alone, and no node is idle"
    roomy = [node for node in nodes if node.ledger.can_fit(request) and node.has_time(request, now)]
    if not roomy:
        return f"no node has all of it free at once: {request}"
    reserved = [node for node in roomy if node.reserved_for is not None]
    if len(reserved) == len(roomy):
        return f"the nodes with room are reserved for tasks that waited longer ({_names(reserved)})"
    wanted = [node for node in roomy if node.wanted or node.alone is not None]
    if len(wanted) + len(reserved) == len(roomy):
        return f"the nodes with room are kept for tasks that run there ({_names(wanted)})"
    return f"the next dispatch places it, or one that goes before it ({_names(roomy)} has room)"


def _amount(resource: _Resource, asked: int) -> str:
    rendered = resource.render(asked)
    if resource.plural == "memory":
        return f"{rendered} of memory"
    return f"{rendered} {resource.plural if float(rendered) > 1 else resource.plural[:-1]}"


def _free_gpu_units(node: Node) -> int:
    """Count what a request could get: whole devices, or else the largest rest of one."""
    units = node.ledger.free_gpu_units
    return units.count(GPU_UNIT) * GPU_UNIT or max(units, default=0)


def _cores(number: int) -> str:
    return "1 core" if number == 1 else f"{number} cores"


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _names(nodes: Sequence[Node]) -> str:
    names = [str(node.name) for node in nodes[:3]]
    return ", ".join(names) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


# The scarcest kind first: a user with a GPU task wants to hear of GPUs.
_RESOURCES = (
    _Resource(
        "GPUs",
        lambda request: request.gpu_units,
        _free_gpu_units,
        lambda node: node.shape.gpus * GPU_UNIT,
        lambda units: f"{units / GPU_UNIT:g}",
    ),
    _Resource(
        "cores",
        lambda request: request.cores,
        lambda node: node.ledger.free_cores,
        lambda node: node.shape.cores,
        str,
    ),
    _Resource(
        "memory",
        lambda request: request.memory_bytes or 0,
        lambda node: node.ledger.free_memory_bytes,
        lambda node: node.shape.memory_bytes,
        render_bytes,
    ),
)
