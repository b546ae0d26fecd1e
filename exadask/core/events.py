"""What goes into the scheduling core and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from exadask.core.ledger import NodeId, Share, TaskId
from exadask.resources import Resources

__all__ = ["Place", "Resume", "WaitingTask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTask:
    """A task whose inputs are ready, and which needs room on one node.

    Parameters
    ----------
    task : TaskId
        The task.
    request : Resources
        What it asks for.
    priority : tuple of int
        Smaller goes first. The first element is minus the user's priority, and counts strictly;
        the others order tasks that the user holds equal.
    locality : mapping of NodeId to int
        How many bytes of its inputs each node already has [bytes].
    warm_key : str, optional
        Nodes that are warm for this key start it faster.
    allowed : frozenset of NodeId, optional
        The only nodes where it may run. None: any.
    alone : bool
        Whether it must be the only task on its node, because it is suspected of killing nodes.
    """

    task: TaskId
    request: Resources
    priority: tuple[int, ...]
    locality: Mapping[NodeId, int] = field(default_factory=dict)
    warm_key: str | None = None
    allowed: frozenset[NodeId] | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Start a task with this share of a node."""

    share: Share
    task: TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A task that wanted its lent share back has it, with new core ids, and goes on."""

    share: Share
