"""What the scheduler plugin knows about one task, and how it reads that from Dask's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import NoneType
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState

from exadask.core.events import NOWHERE
from exadask.core.ledger import NodeId, Share, ShareId
from exadask.resources import GPU_UNIT, Resources
from exadask.runtime.refusals import checked_index

logger = logging.getLogger(__name__)

REQUEST, SHARE = "exadask", "exadask_share"
"""Annotations: what a task asks for, written by the client; what it got, written by the plugin."""

_UNTAGGED: dict[str, Any] = {
    "cores": 1,
    "gpu_units": 0,
    "memory_bytes": None,
    "time_s": None,
    "parts": 1,
    "is_apart": False,
}


@dataclass(slots=True)
class TaskRecord:
    """One task in the plugin's books.

    Attributes
    ----------
    request : Resources
        What it asks for; plain Dask work counts as one core.
    name : str
        What to call it in messages.
    client : str or None
        The client that submitted it through exadask.
    warm_key : str or None
        What a node should be warm for.
    pool : str or None
        The pool that it is pinned to.
    allowed : frozenset of NodeId or None
        The only nodes where it may run.
    share : Share or None
        What it holds while it is placed.
    mates : tuple of Share
        What a gang holds on its other nodes.
    lost_mate : NodeId or None
        Which of these it has just lost.
    has_ended : bool
        Whether the node has said that the attempt is over.
    charge : ShareId or None
        What is booked for it where Dask placed it by itself.
    node : str or None
        Address of the node where it runs or last ran.
    attempts : int
        How many times it was placed.
    lost_on : list of NodeId
        Nodes that died in a row while it was there.
    order : int or None
        Its place among the tasks that were sent with it: Dask would order them by its own taste.
    is_bundle : bool
        Whether it is many calls, whose client knows them one by one.
    dropped : list of int
        Calls of the bundle that nobody wants any more.
    kept : int or None
        The call of the bundle whose result its task keeps; -1: none. None: it has not run to its
        end.
    """

    request: Resources
    name: str
    client: str | None
    warm_key: str | None
    pool: str | None
    allowed: frozenset[NodeId] | None
    share: Share | None = None
    mates: tuple[Share, ...] = ()
    lost_mate: NodeId | None = None
    has_ended: bool = False
    charge: ShareId | None = None
    node: str | None = None
    attempts: int = 0
    lost_on: list[NodeId] = field(default_factory=list)
    order: int | None = None
    is_bundle: bool = False
    dropped: list[int] = field(default_factory=list)
    kept: int | None = None

    def note_kept(self, index: int | None) -> None:
        """Note which call's result the task keeps; None says nothing.

        Raises
        ------
        ValueError
            That is no place of a call.
        """
        if index is not None:
            self.kept = checked_index(index)

    @classmethod
    def of(cls, ts: TaskState, allowed: frozenset[NodeId] | None) -> TaskRecord:
        """Read what the client wrote about a task; what makes no sense counts as not written."""
        wish = (ts.annotations or {}).get(REQUEST)
        try:
            request = request_of(_UNTAGGED if wish is None else _checked(wish))
        except Exception:  # the books must have a task all the same, and those that come after it
            logger.exception("task %s asks for what makes no sense: one core is booked", ts.key)
            wish, request = None, request_of(_UNTAGGED)
        return cls(
            request=request,
            name=wish["name"] if wish else str(ts.key),
            client=wish["client"] if wish else None,
            warm_key=wish["warm_key"] if wish else None,
            pool=wish["pool"] if wish else None,
            allowed=allowed,
            order=wish["order"] if wish else None,
            is_bundle=wish is not None and wish.get("is_bundle", False),
        )


def request_of(wish: Mapping[str, Any]) -> Resources:
    """Read a request that came in a message; tasks that ask for the same share it.

    Raises
    ------
    InvalidQuantity, KeyError, TypeError
        It is none.
    """
    return _request(*[wish[name] for name in _UNTAGGED])


@lru_cache(maxsize=4096)
def _request(
    cores: int,
    gpu_units: int,
    memory_bytes: int | None,
    time_s: float | None,
    parts: int,
    is_apart: bool,
) -> Resources:
    gpus = gpu_units / GPU_UNIT
    part = Resources.parse(cores=cores, gpus=gpus, memory=memory_bytes, time=time_s)
    if type(parts) is not int or not 1 <= parts < 2**31 or type(is_apart) is not bool:
        raise TypeError(f"{parts!r} parts, apart: {is_apart!r}, is no request")
    return replace(part, parts=parts, is_apart=is_apart)


def _checked(wish: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check what is not a number: the queue sorts and counts by it."""
    is_sound = (
        isinstance(wish["name"], str)
        and isinstance(wish["order"], (int, NoneType))
        and all(isinstance(wish[key], (str, NoneType)) for key in ("client", "warm_key", "pool"))
    )
    if not is_sound:
        raise TypeError(f"{wish!r} is no request")
    return wish


def rank_of(ts: TaskState, record: TaskRecord) -> tuple[int, ...]:
    """Say where a task stands: by the user's priority, then as they came."""
    priority = tuple(ts.priority)
    return priority if record.order is None else (*priority[:2], record.order)


def allowed_nodes(
    ts: TaskState, scheduler: Scheduler, nodes: Mapping[str, NodeId]
) -> frozenset[NodeId] | None:
    """Respect what a Dask user has written in ``workers=``."""
    if ts.loose_restrictions or not (ts.worker_restrictions or ts.host_restrictions):
        return None
    addresses = set(ts.worker_restrictions or ())
    for host in ts.host_restrictions or ():
        addresses |= scheduler.host_info.get(host, {}).get("addresses", set())
    return frozenset(nodes[one] for one in addresses if one in nodes)


def local_bytes(ts: TaskState, nodes: Mapping[str, NodeId]) -> Mapping[NodeId, int]:
    """Count the bytes of a task's inputs on each node [bytes]."""
    if not ts.dependencies:
        return NOWHERE
    found: dict[NodeId, int] = {}
    for dependency in ts.dependencies:
        for worker in dependency.who_has or ():
            node = nodes.get(worker.address)
            if node is not None:
                found[node] = found.get(node, 0) + dependency.get_nbytes()
    return found


def share_on_wire(share: Share) -> dict[str, Any]:
    """Write a share as plain data, for a message to its node."""
    return {
        "share": int(share.share_id),
        "cores": list(share.cores),
        "gpus": [list(pair) for pair in share.gpus],
        "memory": share.memory_bytes,
    }
