"""What goes into the scheduling core and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from exadask.core.ledger import NodeId, Share, TaskId
from exadask.resources import NodeShape, Resources

__all__ = [
    "NOWHERE",
    "Cancel",
    "ClosePool",
    "Command",
    "Demand",
    "GiveBack",
    "Offer",
    "Place",
    "Resume",
    "Step",
    "Submit",
    "WaitingTask",
    "Yield",
]


NOWHERE: Mapping[NodeId, int] = MappingProxyType({})
"""The `WaitingTask.locality` of a task without inputs; one object for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTask:
    """A task whose inputs are ready, and which needs room on one node, or a gang on several.

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
    pool : str, optional
        The only pool whose nodes may run it. None: any.
    is_bundle : bool
        Whether it makes many short calls, so that it can be asked to end before the next one.
    """

    task: TaskId
    request: Resources
    priority: tuple[int, ...]
    locality: Mapping[NodeId, int] = field(default_factory=lambda: NOWHERE)
    warm_key: str | None = None
    allowed: frozenset[NodeId] | None = None
    alone: bool = False
    pool: str | None = None
    is_bundle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Nodes that may still join.

    Parameters
    ----------
    pool : str, optional
        Their pool. None: they belong to none.
    shape : NodeShape, optional
        What each of them has. None: not known yet, so that anything might fit.
    walltime_s : float
        How long they may stay at most [s]; inf: for ever.
    is_near : bool
        Whether they are expected within a minute: they start, or were asked for a moment ago.
    nodes : int
        How many of them one allocation may have [nodes].
    """

    pool: str | None = None
    shape: NodeShape | None = None
    walltime_s: float = math.inf
    is_near: bool = False
    nodes: int = 1

    def fits(self, request: Resources, pool: str | None) -> bool:
        """Whether such a node, or an allocation of them, empty and new, could run a task."""
        return (
            pool in (None, self.pool)
            and (request.time_s or 0.0) <= self.walltime_s
            and self.has_room(request)
        )

    def has_room(self, request: Resources) -> bool:
        """Whether they could run a task if time were no matter."""
        if self.shape is None:
            return request.parts <= self.nodes or not request.is_apart
        return request.is_held_by([self.shape.holds(request)] * min(self.nodes, request.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Tasks that wait, and which any new node treats alike.

    Parameters
    ----------
    request : Resources
        What each of them asks for.
    pool : str, optional
        The only pool whose nodes may run them. None: any.
    is_bound : bool
        Whether they may only run on certain nodes that have joined already, so that no new node
        helps.
    alone : bool
        Whether each must be the only task on its node.
    count : int
        How many there are [tasks].
    """

    request: Resources
    pool: str | None = None
    is_bound: bool = False
    alone: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Start a task with this share of a node; a gang also with those of its other nodes."""

    share: Share
    task: TaskId
    mates: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A task that wanted its lent share back has it, with new core ids, and goes on."""

    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """Ask a bundle to end before its next call, and so to make room for a task that waits."""

    share: Share
    for_task: TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Ask the batch system for an allocation."""

    allocation: str
    pool: str
    nodes: int
    walltime_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End an allocation that has no nodes."""

    allocation: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """Move the results away from the nodes of an allocation, and end it."""

    allocation: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosePool:
    """Tell the user that a pool is closed, with the log of an allocation if one is named."""

    pool: str
    reason: str
    log_of: str | None = None


Command: TypeAlias = "Submit | Cancel | GiveBack | ClosePool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done or, without a command, what is not done; and why.

    Parameters
    ----------
    pool : str
        The pool.
    text : str
        What and why, in words.
    command : Command, optional
        What is done.
    """

    pool: str
    text: str
    command: Command | None = None

    def __str__(self) -> str:
        return self.text
