"""The books of one node: which task holds which cores, GPUs and bytes.

Ids are exact: no core and no thousandth of a GPU is ever given to two tasks. The free cores are one
integer with a bit per core, so that choosing, taking and giving back are a few operations on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NewType

from exadask.errors import InvalidTransition
from exadask.resources import GPU_UNIT, NodeShape, Resources

__all__ = ["Ledger", "NodeId", "Share", "ShareId", "TaskId"]

NodeId = NewType("NodeId", str)
TaskId = NewType("TaskId", str)
ShareId = NewType("ShareId", int)

_N_CACHED = 10_000
"""Of how many sets of cores a shape remembers the ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a task holds on a node.

    Parameters
    ----------
    share_id : ShareId
        The name of this share; it stays the same when a lent share comes back with other cores.
    node : NodeId
        The node.
    task : TaskId
        The task.
    cores : tuple of int
        Core ids, for this task alone.
    gpus : tuple of (str, int)
        GPU ids, and how much of each [1/1000 GPU].
    memory_bytes : int
        Memory booked for the task [bytes]; 0 where its request names none.
    """

    share_id: ShareId
    node: NodeId
    task: TaskId
    cores: tuple[int, ...]
    gpus: tuple[tuple[str, int], ...]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Debt:
    """What a task uses without holding it, because it was not free when the task began."""

    cores: int = 0
    gpu_units: int = 0
    memory_bytes: int = 0


class _Layout:
    """What all nodes of a shape have in common: which bit is which core, and what is near what."""

    __slots__ = ("_ids", "all_cores", "bit_of_core", "core_of_bit", "gpu_index", "groups", "near")

    def __init__(self, shape: NodeShape) -> None:
        self.core_of_bit = tuple(sorted(shape.core_ids))
        self.bit_of_core = {core: 1 << index for index, core in enumerate(self.core_of_bit)}
        self.all_cores = (1 << shape.cores) - 1
        self.groups = self._numa_masks(shape)
        self.near = tuple(self._mask(cores) for cores in shape.gpu_cores)
        self.gpu_index = {gpu: index for index, gpu in enumerate(shape.gpu_ids)}
        self._ids: dict[int, tuple[int, ...]] = {}

    def ids(self, mask: int) -> tuple[int, ...]:
        """Return the core ids of a mask, lowest first; the same few masks come again and again."""
        found = self._ids.get(mask)
        if found is None:
            if len(self._ids) >= _N_CACHED:
                self._ids.clear()
            found = self._ids[mask] = tuple(
                core for index, core in enumerate(self.core_of_bit) if mask >> index & 1
            )
        return found

    def _mask(self, cores: tuple[int, ...]) -> int:
        mask = 0
        for core in cores:
            mask |= self.bit_of_core.get(core, 0)
        return mask

    def _numa_masks(self, shape: NodeShape) -> tuple[int, ...]:
        """Disjoint masks that cover all cores, whatever the shape states."""
        masks, rest = [], self.all_cores
        for group in shape.numa:
            mask = self._mask(group) & rest
            rest &= ~mask
            masks.append(mask)
        return tuple(mask for mask in (*masks, rest) if mask)


@lru_cache(maxsize=256)
def _layout_of(shape: NodeShape) -> _Layout:
    return _Layout(shape)


class Ledger:
    """One node's books.

    Cores are chosen NUMA-compact: all from the NUMA group with the fewest free cores that has
    enough, otherwise from as few groups as possible; near the task's GPUs where the shape knows
    what is near; lowest ids otherwise. A share of a GPU goes to the already shared device where it
    leaves least, and to an untouched one only if it must; whole GPUs are untouched ones.

    Parameters
    ----------
    node : NodeId
        The node's name, for the shares.
    shape : NodeShape
        What the node has.

    Notes
    -----
    Not thread-safe. A lent share (`lend`) keeps its memory only. `overdraw` books work that runs
    whether there is room or not: what is missing is a debt, and while there is debt so much of
    what others give back is not free.

    Examples
    --------
    >>> ledger = Ledger(NodeId("node-0"), NodeShape.declare(cores=4, gpus=1))
    >>> share = ledger.allocate(TaskId("a"), Resources.parse(cores=3, gpus=0.5), ShareId(0))
    >>> share.cores, share.gpus, ledger.free_cores
    ((0, 1, 2), (('0', 500),), 1)
    >>> ledger.allocate(TaskId("b"), Resources.parse(cores=2), ShareId(1)) is None
    True
    """

    __slots__ = (
        "_debt_of",
        "_free_cores",
        "_free_mask",
        "_free_memory",
        "_free_units",
        "_held",
        "_layout",
        "_lent",
        "_mask_of",
        "_owed_cores",
        "_owed_memory",
        "_owed_units",
        "node",
        "shape",
    )

    def __init__(self, node: NodeId, shape: NodeShape) -> None:
        self.node, self.shape = node, shape
        self._layout = _layout_of(shape)
        self._free_mask = self._layout.all_cores
        self._free_cores = shape.cores
        self._free_units = [GPU_UNIT] * shape.gpus
        self._free_memory = shape.memory_bytes
        self._held: dict[ShareId, Share] = {}
        self._mask_of: dict[ShareId, int] = {}
        self._lent: dict[ShareId, Share] = {}  # as it was before, for the GPU ids
        self._debt_of: dict[ShareId, _Debt] = {}
        self._owed_cores = self._owed_units = self._owed_memory = 0

    @property
    def free_cores(self) -> int:
        """Cores that the next task may have [cores], >= 0."""
        return max(0, self._free_cores - self._owed_cores)

    @property
    def free_memory_bytes(self) -> int:
        """Memory that the next task may ask for [bytes], >= 0."""
        return max(0, self._free_memory - self._owed_memory)

    @property
    def free_gpu_units(self) -> tuple[int, ...]:
        """How much of each GPU is not held, in the shape's order [1/1000 GPU]."""
        return tuple(self._free_units)

    @property
    def net_cores(self) -> int:
        """Free cores less those that overdrawn work uses without holding them; may be negative."""
        return self._free_cores - self._owed_cores

    @property
    def is_idle(self) -> bool:
        """Whether no task holds, owes or has lent out anything."""
        return not self._held

    def can_fit(self, request: Resources) -> bool:
        """Whether a task with this request could start now."""
        return (
            request.cores <= self._free_cores - self._owed_cores
            and (not request.memory_bytes or request.memory_bytes <= self.free_memory_bytes)
            and (not request.gpu_units or self._can_fit_gpus(request.gpu_units))
        )

    def allocate(self, task: TaskId, request: Resources, share_id: ShareId) -> Share | None:
        """Give a task what it asks for.

        Returns
        -------
        Share or None
            The ids it may use; None if there is no room, and then nothing has changed.
        """
        if not self.can_fit(request):
            return None
        gpus = self._choose_gpus(request) if request.gpu_units else ()
        mask = self._choose_cores(request.cores, gpus)
        share = Share(
            share_id=share_id,
            node=self.node,
            task=task,
            cores=self._layout.ids(mask),
            gpus=gpus,
            memory_bytes=request.memory_bytes or 0,
        )
        return self._hold(share, mask)

    def overdraw(self, task: TaskId, request: Resources, share_id: ShareId) -> Share:
        """Book a task that runs here whether there is room or not.

        Returns
        -------
        Share
            What was free of what it asks for. The rest is a debt until the share is released.
        """
        n_cores = min(request.cores, self.free_cores)
        memory_bytes = min(request.memory_bytes or 0, self.free_memory_bytes)
        gpus = self._choose_gpus(request) if self._can_fit_gpus(request.gpu_units) else ()
        debt = _Debt(
            cores=request.cores - n_cores,
            gpu_units=0 if gpus else request.gpu_units,
            memory_bytes=(request.memory_bytes or 0) - memory_bytes,
        )
        self._set_debt(share_id, debt)
        mask = self._choose_cores(n_cores, gpus)
        share = Share(
            share_id=share_id,
            node=self.node,
            task=task,
            cores=self._layout.ids(mask),
            gpus=gpus,
            memory_bytes=memory_bytes,
        )
        return self._hold(share, mask)

    def release(self, share: Share) -> None:
        """Take back all that a task holds, lent or not.

        Raises
        ------
        InvalidTransition
            Nothing is held under this share id.
        """
        held = self._held.pop(share.share_id, None)
        if held is None:
            raise InvalidTransition(f"share {share.share_id}", "release", "not held here")
        self._lent.pop(share.share_id, None)
        self._give_back(held)
        self._free_memory += held.memory_bytes
        if share.share_id in self._debt_of:
            self._set_debt(share.share_id, _Debt())

    def pass_on(self, share_id: ShareId, task: TaskId) -> Share:
        """Give a share that is not lent to another task; returns it as it is now."""
        assert share_id not in self._lent, "it is lent"
        share = self._held[share_id] = replace(self._held[share_id], task=task)
        return share

    def lend(self, share_id: ShareId) -> None:
        """Take back the cores and GPUs of a task that waits, and leave it its memory.

        Raises
        ------
        InvalidTransition
            Nothing is held under this share id, or it is lent already.
        """
        held = self._held.get(share_id)
        if held is None or share_id in self._lent:
            history = "not held here" if held is None else "already lent"
            raise InvalidTransition(f"share {share_id}", "lend", history)
        self._lent[share_id] = held
        self._give_back(held)
        self._held[share_id] = replace(held, cores=(), gpus=())
        if share_id in self._debt_of:
            self._set_debt(share_id, _Debt(memory_bytes=self._debt_of[share_id].memory_bytes))

    def reclaim(self, share_id: ShareId, cores: int) -> Share | None:
        """Give a lent share its GPUs back, the same ones, and some cores.

        Parameters
        ----------
        share_id : ShareId
            A lent share.
        cores : int
            How many cores [cores]; any ids.

        Returns
        -------
        Share or None
            What it holds now; None if not all of it is free, and then nothing has changed.

        Raises
        ------
        InvalidTransition
            The share is not lent.
        """
        before = self._lent.get(share_id)
        if before is None:
            raise InvalidTransition(f"share {share_id}", "reclaim", "not lent")
        gpus_are_free = all(
            self._free_units[self._layout.gpu_index[gpu]] >= units for gpu, units in before.gpus
        )
        if cores > self.free_cores or not gpus_are_free:
            return None
        del self._lent[share_id]
        self._free_memory += before.memory_bytes
        mask = self._choose_cores(cores, before.gpus)
        return self._hold(replace(before, cores=self._layout.ids(mask)), mask)

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        held = [core for share in self._held.values() for core in share.cores]
        free = self._layout.ids(self._free_mask)
        assert len(held) == len(set(held)), f"{self.node}: a core was given twice: {held}"
        assert sorted([*held, *free]) == list(self._layout.core_of_bit), (
            f"{self.node}: cores leaked"
        )
        assert self._free_cores == len(free), f"{self.node}: free cores miscounted"
        units = [GPU_UNIT] * self.shape.gpus
        for share in self._held.values():
            for gpu, used in share.gpus:
                units[self._layout.gpu_index[gpu]] -= used
        assert units == self._free_units, f"{self.node}: GPUs leaked"
        assert all(0 <= free <= GPU_UNIT for free in units), f"{self.node}: a GPU was given twice"
        used_bytes = sum(share.memory_bytes for share in self._held.values())
        assert self._free_memory == self.shape.memory_bytes - used_bytes >= 0, self.node
        assert self._owed_cores == sum(debt.cores for debt in self._debt_of.values())
        assert self._owed_units == sum(debt.gpu_units for debt in self._debt_of.values())
        assert self._owed_memory == sum(debt.memory_bytes for debt in self._debt_of.values())
        masks = {share_id: self._layout.ids(mask) for share_id, mask in self._mask_of.items()}
        active = self._held.keys() - self._lent.keys()
        assert masks == {share_id: self._held[share_id].cores for share_id in active}, self.node
        assert self._lent.keys() | self._debt_of.keys() <= self._held.keys(), self.node

    def _hold(self, share: Share, mask: int) -> Share:
        self._held[share.share_id] = share
        self._mask_of[share.share_id] = mask
        self._free_mask ^= mask
        self._free_cores -= len(share.cores)
        for gpu, units in share.gpus:
            self._free_units[self._layout.gpu_index[gpu]] -= units
        self._free_memory -= share.memory_bytes
        return share

    def _give_back(self, share: Share) -> None:
        """Free the cores and GPUs of a share, not its memory."""
        self._free_mask |= self._mask_of.pop(share.share_id, 0)  # nothing if it is lent
        self._free_cores += len(share.cores)
        for gpu, units in share.gpus:
            self._free_units[self._layout.gpu_index[gpu]] += units

    def _set_debt(self, share_id: ShareId, debt: _Debt) -> None:
        before = self._debt_of.pop(share_id, _Debt())
        if debt != _Debt():
            self._debt_of[share_id] = debt
        self._owed_cores += debt.cores - before.cores
        self._owed_units += debt.gpu_units - before.gpu_units
        self._owed_memory += debt.memory_bytes - before.memory_bytes

    def _can_fit_gpus(self, units: int) -> bool:
        if units >= GPU_UNIT:
            return self._free_units.count(GPU_UNIT) * GPU_UNIT - self._owed_units >= units
        free = self._free_units
        return max(free, default=0) >= units and sum(free) - self._owed_units >= units

    def _choose_gpus(self, request: Resources) -> tuple[tuple[str, int], ...]:
        """Choose devices; the caller knows that they fit."""
        units, free = request.gpu_units, self._free_units
        if 0 < units < GPU_UNIT:
            # Untouched devices have most left, so that they come last.
            index = min(
                (index for index in range(len(free)) if free[index] >= units),
                key=lambda index: free[index],
            )
            return ((self.shape.gpu_ids[index], units),)
        untouched = [index for index in range(len(free)) if free[index] == GPU_UNIT]
        near = self._layout.near
        if near:
            untouched.sort(
                key=lambda index: -min(request.cores, (near[index] & self._free_mask).bit_count())
            )
        n_gpus = -(-units // GPU_UNIT)
        return tuple((self.shape.gpu_ids[index], GPU_UNIT) for index in sorted(untouched[:n_gpus]))

    def _choose_cores(self, n_cores: int, gpus: tuple[tuple[str, int], ...]) -> int:
        """Choose cores; the caller knows that there are enough."""
        free, near, layout = self._free_mask, 0, self._layout
        if n_cores == self._free_cores:
            return free
        if layout.near:
            for gpu, _ in gpus:
                near |= layout.near[layout.gpu_index[gpu]]
        near &= free
        n_near = near.bit_count()
        if n_near >= n_cores:
            return self._compact(near, n_cores)
        return near | self._compact(free & ~near, n_cores - n_near)

    def _compact(self, free: int, n_cores: int) -> int:
        """Choose `n_cores` bits of `free` from one NUMA group, or from as few as possible."""
        if n_cores == 0:
            return 0
        best, best_count, widest, widest_count = 0, 0, 0, 0
        for group in self._layout.groups:
            here = free & group
            count = here.bit_count()
            if count > widest_count:
                widest, widest_count = here, count
            if count >= n_cores and (best_count == 0 or count < best_count):
                best, best_count = here, count
        if best_count == n_cores:
            return best
        if best_count:
            return _lowest(best, n_cores)
        return widest | self._compact(free & ~widest, n_cores - widest_count)


def _lowest(mask: int, n_bits: int) -> int:
    """Keep the lowest bits of a mask that has at least so many."""
    taken = 0
    for _ in range(n_bits):
        low = mask & -mask
        taken |= low
        mask ^= low
    return taken
