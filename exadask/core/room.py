"""Sets of nodes by how much GPU, memory and time they have, so that a search skips the others.

Each set is an integer with a bit per node (`exadask.core.nodes`). The sets are coarse: they never
lack a node with room, but may name some without, so that a node must still be asked.
"""

from __future__ import annotations

import math

from exadask.core.node import Node
from exadask.resources import GPU_UNIT, Resources

__all__ = ["RoomIndex"]

_N_PARTS = 8
"""Into how many steps the rest of a shared GPU is divided."""

_STEP_S = 60.0
_N_CACHED = 1_000


class _Stairs:
    """Sets of nodes by a level that each has."""

    def __init__(self) -> None:
        self._at_least: list[int] = []  # from level 1 on; all nodes have level 0

    def move(self, bit: int, before: int, after: int) -> None:
        """Note that a node is on another level."""
        self._at_least.extend([0] * (after - len(self._at_least)))
        for index in range(min(before, after), max(before, after)):
            self._at_least[index] ^= bit

    def at_least(self, level: int) -> int:
        """Return the nodes on this level or a higher one; -1, which is all, for level 0."""
        if level <= 0:
            return -1
        return self._at_least[level - 1] if level <= len(self._at_least) else 0

    def level_of(self, bit: int) -> int:
        """Return the level of a node, by looking for it; for tests."""
        return sum(bool(mask & bit) for mask in self._at_least)


class RoomIndex:
    """All nodes by GPUs and memory that are free, and by when they end."""

    def __init__(self) -> None:
        self._gpus, self._memory = _Stairs(), _Stairs()
        self._endless = 0
        self._ending: dict[int, int] = {}
        self._lasting: dict[int, int] = {}

    def add(self, node: Node) -> None:
        """Let a node join, with nothing free."""
        if node.ends_at == math.inf:
            self._endless |= node.bit
        else:
            step = _step_of(node.ends_at)
            self._ending[step] = self._ending.get(step, 0) | node.bit
        self._lasting.clear()

    def remove(self, node: Node) -> None:
        """Let a node leave."""
        self._move(node, 0, 0)
        self._forget_end(node)

    def set_end(self, node: Node, ends_at: float) -> None:
        """Let a node end at another time [s]."""
        self._forget_end(node)
        node.ends_at = ends_at
        self.add(node)

    def update(self, node: Node) -> None:
        """Take note of what is free on a node."""
        ledger = node.ledger
        gpus = _gpu_level(ledger.free_gpu_units) if ledger.shape.gpu_ids else 0
        self._move(node, gpus, ledger.free_memory_bytes.bit_length())

    def with_room(self, request: Resources) -> int:
        """Return the nodes, and perhaps some more, with enough GPUs and memory for a request."""
        mask = -1
        if request.gpu_units:
            mask = self._gpus.at_least(_gpu_level_for(request.gpu_units))
        if request.memory_bytes:
            mask &= self._memory.at_least(request.memory_bytes.bit_length())
        return mask

    def lasting(self, request: Resources, now: float) -> int:
        """Return the nodes, and perhaps some more, with enough time for a task that starts now."""
        if request.time_s is None or not self._ending:
            return -1
        until = _step_of(now + request.time_s)
        found = self._lasting.get(until)
        if found is None:
            found = self._endless
            for step, mask in self._ending.items():
                if step >= until:
                    found |= mask
            if len(self._lasting) >= _N_CACHED:
                self._lasting.clear()
            self._lasting[until] = found
        return found

    def check(self, nodes: list[Node]) -> None:
        """Assert that the index is right; for tests."""
        for node in nodes:
            ledger = node.ledger
            gpus = _gpu_level(ledger.free_gpu_units) if ledger.shape.gpu_ids else 0
            assert node.gpu_level == gpus == self._gpus.level_of(node.bit), node.name
            memory = ledger.free_memory_bytes.bit_length()
            assert node.memory_level == memory == self._memory.level_of(node.bit), node.name
            ending = {step for step, mask in self._ending.items() if mask & node.bit}
            is_endless = node.ends_at == math.inf
            assert ending == (set() if is_endless else {_step_of(node.ends_at)}), node.name
            assert bool(self._endless & node.bit) == is_endless, node.name
        known = sum(node.bit for node in nodes)
        named = self._endless | sum(self._ending.values())
        assert named == known, "a node that left has an end"

    def _move(self, node: Node, gpus: int, memory: int) -> None:
        if gpus != node.gpu_level:
            self._gpus.move(node.bit, node.gpu_level, gpus)
            node.gpu_level = gpus
        if memory != node.memory_level:
            self._memory.move(node.bit, node.memory_level, memory)
            node.memory_level = memory

    def _forget_end(self, node: Node) -> None:
        self._lasting.clear()
        if node.ends_at == math.inf:
            self._endless ^= node.bit
            return
        step = _step_of(node.ends_at)
        self._ending[step] ^= node.bit
        if not self._ending[step]:
            del self._ending[step]


def _step_of(time_s: float) -> int:
    return math.floor(time_s / _STEP_S)


def _gpu_level(units: tuple[int, ...]) -> int:
    """Count untouched GPUs, from `_N_PARTS` on; without one, the parts of the largest rest."""
    untouched = units.count(GPU_UNIT)
    if untouched:
        return _N_PARTS - 1 + untouched
    return max(units) * _N_PARTS // GPU_UNIT


def _gpu_level_for(asked: int) -> int:
    if asked >= GPU_UNIT:
        return _N_PARTS - 1 + -(-asked // GPU_UNIT)
    return asked * _N_PARTS // GPU_UNIT
