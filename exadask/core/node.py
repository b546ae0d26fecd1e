"""One node: its ledger, the shares that tasks hold there, and whether it takes more."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import NamedTuple

from exadask.core.ledger import Ledger, NodeId, Share, ShareId, TaskId
from exadask.core.queue import TaskClass
from exadask.errors import InvalidTransition
from exadask.resources import GPU_UNIT, NodeShape, Resources

__all__ = ["Held", "HeldState", "Node", "Seat", "units_fit"]


class HeldState(Enum):
    """What became of a share."""

    HELD = "held"
    LENT = "lent"
    WANTED = "wanted back"


# What may become of a share; its release ends it from any state, and so does the end of its node.
_NEXT_STATES = {
    HeldState.HELD: {HeldState.LENT},
    HeldState.LENT: {HeldState.WANTED},
    HeldState.WANTED: {HeldState.HELD, HeldState.LENT},
}


class Held:
    """A share, and what the node knows about the task that holds it.

    Attributes
    ----------
    is_bundle : bool
        Whether it may be asked to yield.
    priority : int
        Its user priority; smaller goes first.
    is_asked : bool
        Whether it was asked to yield.
    promised_to : TaskId or None
        The waiting task for which it was.
    """

    __slots__ = (
        "alone",
        "ends_at",
        "is_asked",
        "is_bundle",
        "is_charged",
        "node",
        "priority",
        "promised_to",
        "request",
        "share",
        "state",
    )

    def __init__(
        self,
        share: Share,
        request: Resources,
        node: Node,
        *,
        now: float,
        alone: bool = False,
        is_bundle: bool = False,
        priority: int = 0,
    ) -> None:
        self.share, self.request, self.node, self.alone = share, request, node, alone
        self.is_bundle, self.priority = is_bundle, priority
        self.promised_to: TaskId | None = None
        self.state = HeldState.HELD
        self.is_charged = False
        self.begin(now)

    def begin(self, now: float) -> None:
        """Note that the task which holds it begins now [s]."""
        self.is_asked = False
        time_s = self.request.time_s
        self.ends_at = math.inf if time_s is None else now + time_s


class Node:
    """One node: its ledger, and whether it takes tasks.

    Attributes
    ----------
    n_active : int
        Shares that are not lent; a lent one waits for others, so that it does not count here.
    lent_memory_bytes : int
        What lent shares keep [bytes]: it returns when others have run, not by waiting.
    alone : ShareId or None
        The task that must be the only one here.
    allocation : str or None
        The allocation that it belongs to: gangs stay within one.
    reserved_for : TaskClass or None
        The class for whose head this node is kept free.
    reserved_seat : Resources
        What that head shall have here.
    seat_start : float
        When it can have that, as far as is known; inf if it is not [s].
    wanted : deque of ShareId
        Lent shares that are wanted back, in the order of asking.
    pool : str or None
        The pool that it belongs to.
    """

    __slots__ = (
        "allocation",
        "alone",
        "bit",
        "bucket",
        "ends_at",
        "gpu_level",
        "is_paused",
        "ledger",
        "lent_memory_bytes",
        "memory_level",
        "n_active",
        "name",
        "pool",
        "reserved_for",
        "reserved_seat",
        "seat_start",
        "shares",
        "slot",
        "wanted",
    )

    def __init__(
        self,
        name: NodeId,
        shape: NodeShape,
        slot: int,
        *,
        ends_at: float = math.inf,
        pool: str | None = None,
        allocation: str | None = None,
    ) -> None:
        self.name, self.ledger, self.ends_at = name, Ledger(name, shape), ends_at
        self.pool, self.allocation = pool, allocation
        self.slot, self.bit = slot, 1 << slot
        self.bucket = self.gpu_level = self.memory_level = 0
        self.is_paused = False
        self.shares: dict[ShareId, Held] = {}
        self.n_active = self.lent_memory_bytes = 0
        self.alone: ShareId | None = None
        self.reserved_for: TaskClass | None = None
        self.reserved_seat = Resources()
        self.seat_start = math.inf
        self.wanted: deque[ShareId] = deque()

    @property
    def shape(self) -> NodeShape:
        """What the node has."""
        return self.ledger.shape

    @property
    def is_open(self) -> bool:
        """Whether tasks may be placed here: those of the reservation, if there is one."""
        return not (self.is_paused or self.alone is not None or self.wanted)

    @property
    def is_unused(self) -> bool:
        """Whether nothing is held, lent or reserved here."""
        return not self.shares and self.reserved_for is None

    @property
    def has_outlasting(self) -> bool:
        """Whether a task here may, by its time limit, run beyond the end of the node."""
        return any(
            self.ends_at < held.ends_at < math.inf
            for held in self.shares.values()
            if held.state is HeldState.HELD
        )

    def add(self, held: Held) -> None:
        """Count a new share."""
        self.shares[held.share.share_id] = held
        self._count(held)

    def remove(self, held: Held) -> None:
        """Forget a share."""
        del self.shares[held.share.share_id]
        self._uncount(held)

    def enter(self, held: Held, state: HeldState) -> None:
        """Move a share to another state, and the counts with it."""
        if state not in _NEXT_STATES[held.state]:
            raise InvalidTransition(f"share {held.share.share_id}", state.value, held.state.value)
        self._uncount(held)
        held.state = state
        self._count(held)

    def room_for(self, request: Resources) -> int:
        """Say how many parts like this find room here now, in one share [parts]."""
        ledger = self.ledger
        limits = [ledger.net_cores // request.cores]
        if request.memory_bytes:
            limits.append(ledger.free_memory_bytes // request.memory_bytes)
        if request.gpu_units:
            units = ledger.free_gpu_units
            on_one = max(units, default=0) // request.gpu_units
            n_whole = units.count(GPU_UNIT)
            if request.gpu_units < GPU_UNIT:
                limits.append(max(on_one, n_whole * (GPU_UNIT // request.gpu_units)))
            else:
                limits.append(n_whole * GPU_UNIT // request.gpu_units)
        parts = max(0, min(limits))
        while parts and not ledger.can_fit(request.times(parts)):
            parts -= 1
        return parts

    def earliest_start(self, request: Resources, now: float, *, alone: bool) -> float:
        """Say when a request can be met here if nobody else starts; inf if not known [s].

        Tasks are believed to end when their time limit does, lent shares not at all.
        """
        ledger, start = self.ledger, now
        cores, memory = ledger.net_cores, ledger.free_memory_bytes
        units = dict(zip(ledger.shape.gpu_ids, ledger.free_gpu_units, strict=True))
        active = [held for held in self.shares.values() if held.state is HeldState.HELD]
        active.sort(key=lambda held: held.ends_at)
        for n_ended in range(len(active) + 1):
            if n_ended:
                held = active[n_ended - 1]
                start = max(start, held.ends_at)
                cores += held.request.cores
                memory += held.share.memory_bytes
                for gpu, used in held.share.gpus:
                    units[gpu] += used
            if alone and n_ended < len(active):
                continue
            if (
                cores >= request.cores
                and memory >= (request.memory_bytes or 0)
                and units_fit(list(units.values()), request.gpu_units)
            ):
                return start
        return math.inf

    def could_ever_start(self, request: Resources, now: float) -> bool:
        """Whether a request fits once all that runs here has ended."""
        needed = (request.memory_bytes or 0) + self.lent_memory_bytes
        return needed <= self.shape.memory_bytes and self.has_time(request, now)

    def ends_in_time(self, request: Resources, now: float) -> bool:
        """Whether a task that starts now surely ends before the reservation of this node begins."""
        start = math.inf if self.reserved_for is None else self.reserved_for.reserved_start
        is_known = request.time_s is not None and start < math.inf
        return is_known and now + (request.time_s or 0.0) <= start

    def has_time(self, request: Resources, now: float) -> bool:
        """Whether the node stays long enough for a task that starts now."""
        return now + (request.time_s or 0.0) <= self.ends_at and now < self.ends_at

    def _count(self, held: Held) -> None:
        if held.state is HeldState.HELD:
            self.n_active += 1
            if held.alone:
                self.alone = held.share.share_id
        else:
            self.lent_memory_bytes += held.share.memory_bytes
        if held.state is HeldState.WANTED:
            self.wanted.append(held.share.share_id)

    def _uncount(self, held: Held) -> None:
        if held.state is HeldState.HELD:
            self.n_active -= 1
            if held.alone:
                self.alone = None
        else:
            self.lent_memory_bytes -= held.share.memory_bytes
        if held.state is HeldState.WANTED:
            self.wanted.remove(held.share.share_id)


class Seat(NamedTuple):
    """A node, and what a task has or shall have there."""

    node: Node
    request: Resources


def units_fit(units: list[int], asked: int) -> bool:
    """Whether so much of each GPU is enough for a request [1/1000 GPU]."""
    if asked >= GPU_UNIT:
        return units.count(GPU_UNIT) * GPU_UNIT >= asked
    return asked == 0 or max(units, default=0) >= asked
