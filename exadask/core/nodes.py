"""The nodes, indexed so that a search for room does not look at full ones.

Each node is one bit. A set of nodes is an integer, and "open nodes with four free cores where this
task may run" is a few operations on integers, whether there are ten nodes or ten thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from exadask.core.events import Offer, WaitingTask
from exadask.core.ledger import NodeId
from exadask.core.node import HeldState, Node
from exadask.core.queue import Scale, TaskClass
from exadask.core.room import RoomIndex
from exadask.errors import InvalidTransition
from exadask.resources import GPU_UNIT, NodeShape, Resources

__all__ = ["LOCAL_BYTES", "NodeIndex"]

LOCAL_BYTES = 64 * 1024
"""Inputs smaller than this are moved rather than followed [bytes]."""

_N_RESERVABLE = 64
"""How many nodes are looked at for a reservation, those with most free cores."""


_N_CACHED = 10_000
"""How many requests it is remembered for which nodes they fit."""

_Kind: TypeAlias = tuple[int, int, int]


class NodeIndex:
    """All nodes, as sets of bits.

    Attributes
    ----------
    by_id : dict of NodeId to Node
        The nodes, in the order in which they joined.
    open : int
        Nodes that take any task: not paused, not reserved, nobody alone there or wanting back.
    fresh : int
        Nodes that gained room, or opened, since the last dispatch.
    buckets : list of int
        Nodes by their number of free cores.
    version : int
        Changes when a node joins or leaves.
    scale : Scale
        The largest node in each resource.
    gpu : int
        Nodes with GPUs.
    room : RoomIndex
        The nodes by what else they have free, and by when they end.
    """

    def __init__(self) -> None:
        self.by_id: dict[NodeId, Node] = {}
        self.open = self.fresh = self.version = 0
        self.buckets: list[int] = [0]
        self.scale = Scale()
        self.room = RoomIndex()
        self._idle = self.gpu = self._reserved = 0
        self._allocations: dict[str | None, int] = {}
        self._pools: dict[str, int] = {}
        self._by_slot: list[Node | None] = []
        self._free_slots: list[int] = []
        self._warm: dict[str, int] = {}
        self._fitting: dict[Resources, int] = {}
        self._offers: tuple[Offer, ...] = ()
        self._kinds: dict[_Kind, int] = {}
        self._shape_of_kind: dict[_Kind, NodeShape] = {}

    def add(
        self,
        name: NodeId,
        shape: NodeShape,
        *,
        ends_at: float = math.inf,
        pool: str | None = None,
        allocation: str | None = None,
    ) -> Node:
        """Let a node join; it takes the place of one that left, if any did."""
        if name in self.by_id:
            raise InvalidTransition(f"node {name}", "join", "connected")
        largest = self.scale
        self.scale = Scale(
            cores=max(largest.cores, shape.cores),
            gpu_units=max(largest.gpu_units, shape.gpus * GPU_UNIT),
            memory_bytes=max(largest.memory_bytes, shape.memory_bytes),
        )
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = len(self._by_slot)
            self._by_slot.append(None)
        node = Node(name, shape, slot, ends_at=ends_at, pool=pool, allocation=allocation)
        self.by_id[name] = self._by_slot[slot] = node
        kind = _kind(shape)
        self._kinds[kind] = self._kinds.get(kind, 0) | node.bit
        self._allocations[allocation] = self._allocations.get(allocation, 0) | node.bit
        if pool is not None:
            self._pools[pool] = self._pools.get(pool, 0) | node.bit
        self._shape_of_kind[kind] = shape
        self.buckets.extend([0] * (shape.cores + 1 - len(self.buckets)))
        if shape.gpu_ids:
            self.gpu |= node.bit
        self.buckets[0] |= node.bit
        self.room.add(node)
        self.version += 1
        self._fitting.clear()
        self.update(node, has_gained=True)
        return node

    def remove(self, node: Node) -> None:
        """Let a node leave."""
        keep = ~node.bit
        del self.by_id[node.name]
        self._by_slot[node.slot] = None
        self._free_slots.append(node.slot)
        kind = _kind(node.shape)
        self._kinds[kind] &= keep
        if not self._kinds[kind]:
            del self._kinds[kind], self._shape_of_kind[kind]
            self.scale = Scale(
                cores=max((kind[0] for kind in self._kinds), default=0) or 1,
                gpu_units=max((kind[1] for kind in self._kinds), default=0) * GPU_UNIT or 1,
                memory_bytes=max((kind[2] for kind in self._kinds), default=0) or 1,
            )
        if node.pool is not None:
            self._pools[node.pool] &= keep
            if not self._pools[node.pool]:
                del self._pools[node.pool]
        self._allocations[node.allocation] &= keep
        if not self._allocations[node.allocation]:
            del self._allocations[node.allocation]
        self.buckets[node.bucket] &= keep
        self.room.remove(node)
        self.open &= keep
        self.fresh &= keep
        self._idle &= keep
        self.gpu &= keep
        self._reserved &= keep
        self._warm = {key: mask & keep for key, mask in self._warm.items() if mask & keep}
        self.version += 1
        self._fitting.clear()

    def update(self, node: Node, *, has_gained: bool) -> None:
        """Bring the sets up to date with a node that changed."""
        bit, free = node.bit, node.ledger.free_cores
        if free != node.bucket:
            self.buckets[node.bucket] ^= bit
            self.buckets[free] |= bit
            node.bucket = free
        self.room.update(node)
        is_open = node.is_open
        is_reserved = node.reserved_for is not None
        if bool(self.open & bit) != (is_open and not is_reserved):
            self.open ^= bit
        if bool(self._reserved & bit) != (is_open and is_reserved):
            self._reserved ^= bit
        if bool(self._idle & bit) != (node.n_active == 0):
            self._idle ^= bit
        if has_gained:
            self.fresh |= bit

    def take_fresh(self) -> int:
        """Return the fresh nodes and forget that they are."""
        fresh, self.fresh = self.fresh, 0
        return fresh

    @property
    def pools(self) -> list[str]:
        """The pools that have nodes."""
        return list(self._pools)

    @property
    def takeable(self) -> int:
        """The nodes that take any task, and those that take tasks of a reservation."""
        return self.open | self._reserved

    @property
    def allocations(self) -> list[int]:
        """The nodes of each allocation; those of none are together."""
        return list(self._allocations.values())

    def shapes(self, pool: str | None = None) -> list[NodeShape]:
        """Return one shape of each kind that is connected, in a pool or in all."""
        among = self.of_pool(pool)
        return [self._shape_of_kind[kind] for kind, mask in self._kinds.items() if mask & among]

    def fitting(self, request: Resources, pool: str | None = None) -> int:
        """Return the nodes, of a pool or all, that could run a request, were they empty."""
        if pool is not None:
            return self.fitting(request) & self.of_pool(pool)
        found = self._fitting.get(request)
        if found is None:
            found = 0
            for kind, mask in self._kinds.items():
                if self._shape_of_kind[kind].fits(request):
                    found |= mask
            if len(self._fitting) >= _N_CACHED:
                self._fitting.clear()
            self._fitting[request] = found
        return found

    def runnable(self, cls: TaskClass) -> int:
        """Return the nodes, full or not, that could run a class by shape, pool and permission."""
        if cls.runnable_version != self.version:
            cls.runnable_version = self.version
            cls.runnable = self.fitting(cls.request, cls.pool)
            if cls.allowed is not None:
                named = (self.by_id[name] for name in cls.allowed if name in self.by_id)
                cls.runnable &= sum(node.bit for node in named)
            if self.spares_gpus(cls):
                cls.runnable &= ~self.gpu
        return cls.runnable

    def spares_gpus(self, cls: TaskClass) -> bool:
        """Whether a class leaves nodes with GPUs to others: others are there, or come soon."""
        if cls.request.gpu_units or cls.pool is not None or cls.allowed is not None:
            return False
        others = [one for one in self._offers if one.shape is not None and not one.shape.gpus]
        fitting = [one for one in others if one.fits(cls.request, None)]
        if not fitting:  # what is there may end too soon, and nothing would follow it
            return False
        return any(one.is_near for one in fitting) or bool(self.fitting(cls.request) & ~self.gpu)

    def expect(self, offers: Sequence[Offer]) -> None:
        """Note which nodes may still join."""
        before, self._offers = self._offers, tuple(offers)
        if [(one.shape, one.walltime_s, one.is_near) for one in before] != [
            (one.shape, one.walltime_s, one.is_near) for one in self._offers
        ]:
            self.version += 1
            self.fresh |= self.gpu  # they may be open to more tasks now

    def members(self, mask: int) -> Iterator[Node]:
        """Yield the nodes of a set."""
        while mask:
            node = self._lowest(mask)
            mask ^= node.bit
            yield node

    def usable(self, cls: TaskClass) -> int:
        """Return the nodes where a class may be placed, if they have room."""
        usable = self.open
        usable |= cls.reserved_mask & self._reserved
        if cls.request.time_s is not None:
            usable |= self._reserved  # `can_take` looks at the times
        return usable & self._idle if cls.alone else usable

    def capacity(self, request: Resources, pool: str | None) -> int:
        """Say how many tasks like this the nodes could run at once, were they empty."""
        among = self.of_pool(pool)
        return sum(
            self._shape_of_kind[kind].holds(request) * (mask & among).bit_count()
            for kind, mask in self._kinds.items()
        )

    def with_room(self, cls: TaskClass, now: float) -> int:
        """Return usable nodes, among them all that have GPUs, memory and time for a class."""
        usable, request = self.usable(cls), cls.request
        if request.time_s is not None:
            usable &= self.room.lasting(request, now)
        if request.gpu_units or request.memory_bytes:
            usable &= self.room.with_room(request)
        return usable

    def with_cores(self, cores: int) -> int:
        """Return the nodes that have so many cores free, or more."""
        found = 0
        for bucket in self.buckets[cores:]:
            found |= bucket
        return found

    def able(self, request: Resources, among: int, now: float) -> bool:
        """Whether some of these nodes could run a request, were they empty, in the time left.

        Parameters
        ----------
        request : Resources
            What a task asks for.
        among : int
            The nodes that come into question.
        now : float
            The time [s].
        """
        among &= self.fitting(request.part) & self.room.lasting(request, now)
        if request.parts == 1:
            return any(node.has_time(request, now) for node in self.members(among))
        return any(
            request.is_held_by(
                node.shape.holds(request)
                for node in self.members(among & allocation)
                if node.has_time(request, now)
            )
            for allocation in self.allocations
        )

    def of_pool(self, pool: str | None) -> int:
        """Return the nodes of a pool; -1, which is all, for None."""
        return -1 if pool is None else self._pools.get(pool, 0)

    def most_free(self, among: int, at_most: int) -> int:
        """Return the most free cores that any open node, or one with a reservation, has [cores]."""
        mask = self.takeable & among
        top = min(at_most, len(self.buckets) - 1)
        while top > 0 and not self.buckets[top] & mask:
            top -= 1
        return top

    def choose(self, cls: TaskClass, task: WaitingTask, now: float) -> Node | None:
        """Choose a node with room for a task, among those that its class may hope for.

        Nodes without room are struck from `cls.hope`.
        """
        warm = self._warm.get(cls.warm_key, 0) if cls.warm_key is not None else 0
        for part in (warm, -1) if warm else (-1,):
            mask = cls.hope & self.with_room(cls, now) & part
            if not mask:
                continue
            node = self._most_local(cls, task, mask, now) if task.locality else None
            node = node or self._best_fit(cls, mask, now)
            if node is not None:
                return node
        return None

    def node_to_reserve(self, cls: TaskClass, now: float) -> Node | None:
        """Choose the open node where a class can start soonest; then that with most free cores."""
        best, best_start, n_looked_at = None, math.inf, 0
        mask = self.runnable(cls) & self.open & self.room.lasting(cls.request, now)
        for free in range(len(self.buckets) - 1, -1, -1):
            bucket = self.buckets[free] & mask
            while bucket and n_looked_at < _N_RESERVABLE:
                node = self._lowest(bucket)
                bucket ^= node.bit
                if node.could_ever_start(cls.request, now):
                    n_looked_at += 1
                    start = node.earliest_start(cls.request, now, alone=cls.alone)
                    is_in_time = start == math.inf or node.has_time(cls.request, start)
                    if is_in_time and (best is None or start < best_start):
                        best, best_start = node, start
        return best

    def note_warm(self, node: Node, key: str, *, is_warm: bool) -> None:
        """Remember that a node is warm for a key, or no more."""
        before = self._warm.get(key, 0)
        self._warm[key] = before | node.bit if is_warm else before & ~node.bit
        if not self._warm[key]:
            del self._warm[key]

    def check(self) -> None:
        """Assert that the index is right; for tests."""
        for name, node in self.by_id.items():
            assert node.name == name
            assert self._by_slot[node.slot] is node
            node.ledger.check()
            held = list(node.shares.values())
            active = [one for one in held if one.state is HeldState.HELD]
            assert node.n_active == len(active), f"{name}: active shares miscounted"
            lent = [one for one in held if one.state is not HeldState.HELD]
            assert node.lent_memory_bytes == sum(one.share.memory_bytes for one in lent), name
            wanted = {one.share.share_id for one in held if one.state is HeldState.WANTED}
            assert set(node.wanted) == wanted, f"{name}: wanted shares"
            is_reserved = node.reserved_for is not None
            assert bool(self.open & node.bit) == (node.is_open and not is_reserved), name
            assert bool(self._reserved & node.bit) == (node.is_open and is_reserved), name
            assert bool(self._idle & node.bit) == (not active), f"{name}: idle"
            places = [free for free, bucket in enumerate(self.buckets) if bucket & node.bit]
            assert places == [node.bucket] == [node.ledger.free_cores], f"{name}: bucket"
            if node.alone is not None:
                placed = [one for one in active if not one.is_charged]
                assert [one.share.share_id for one in placed] == [node.alone], f"{name}: not alone"
        for allocation in {node.allocation for node in self.by_id.values()} | {*self._allocations}:
            mask = sum(node.bit for node in self.by_id.values() if node.allocation == allocation)
            assert self._allocations.get(allocation) == mask, f"nodes of allocation {allocation}"
        for pool in {node.pool for node in self.by_id.values()} | self._pools.keys():
            mask = sum(node.bit for node in self.by_id.values() if node.pool == pool)
            assert pool is None or self._pools.get(pool) == mask, f"nodes of pool {pool}"
        self.room.check(list(self.by_id.values()))
        known = sum(node.bit for node in self.by_id.values())
        assert not (self.open | self.fresh | self._idle | self.gpu | self._reserved) & ~known

    def _lowest(self, mask: int) -> Node:
        node = self._by_slot[(mask & -mask).bit_length() - 1]
        assert node is not None, "a set names a node that left"
        return node

    def can_take(self, node: Node, cls: TaskClass, now: float) -> bool:
        """Whether a task of a class, or a part of a gang, may start on a node now."""
        if not node.has_time(cls.request, now):
            return False
        is_for_another = node.reserved_for is not None and node.reserved_for is not cls
        if is_for_another and not node.ends_in_time(cls.request, now):
            return False
        return node.ledger.can_fit(cls.request)

    def _most_local(self, cls: TaskClass, task: WaitingTask, mask: int, now: float) -> Node | None:
        """Choose the node with most of a task's inputs, if any has enough to matter."""
        best, best_key = None, (-LOCAL_BYTES + 1, False, 0, 0)
        for name, n_bytes in task.locality.items():
            node = self.by_id.get(name)
            if n_bytes < LOCAL_BYTES or node is None or not node.bit & mask:
                continue
            is_wasted = bool(node.shape.gpu_ids) and not cls.request.gpu_units
            key = (-n_bytes, is_wasted, node.bucket, node.slot)
            if key < best_key and self.can_take(node, cls, now):
                best, best_key = node, key
        return best

    def _best_fit(self, cls: TaskClass, mask: int, now: float) -> Node | None:
        """Choose the node where fewest cores stay free; one without GPUs for who needs none."""
        if cls.request.gpu_units:
            parts: tuple[int, ...] = (mask & self.gpu,)
        else:
            parts = (mask & ~self.gpu, mask & self.gpu)
        for part in parts:
            if not part:
                continue
            for free in range(cls.request.cores, len(self.buckets)):
                bucket = self.buckets[free] & part
                while bucket:
                    node = self._lowest(bucket)
                    if self.can_take(node, cls, now):
                        return node
                    bucket ^= node.bit
                    cls.hope &= ~node.bit
        return None


def _kind(shape: NodeShape) -> _Kind:
    return (shape.cores, shape.gpus, shape.memory_bytes)
