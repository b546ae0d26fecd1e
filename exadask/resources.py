"""What a task asks for (`Resources`) and what a node has (`NodeShape`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from exadask.cpulist import END_OF_IDS
from exadask.errors import InvalidQuantity
from exadask.units import number_of, parse_bytes, parse_seconds, render_bytes, render_seconds

GPU_UNIT = 1000
"""Shares of one GPU that the books can tell apart: ``gpus=0.25`` is 250 of them."""

_MAX_COUNT = 2**31
_ASSUMED_MEMORY = 2**40
_NOT_STATED = "not stated"

GpuVendor = Literal["none", "nvidia", "amd", "intel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one task asks for: of one node, or the same several times.

    Use `Resources.parse` to give memory and time as text.

    Parameters
    ----------
    cores : int
        Cores for this task alone [cores], >= 1.
    gpu_units : int
        GPUs for this task [1/1000 GPU]: a multiple of 1000, or less than 1000 for a share of one.
    memory_bytes : int, optional
        Memory that the task may use, all its processes together [bytes]. None: not limited, and
        not booked.
    time_s : float, optional
        How long the task may run [s]. None: not limited.
    parts : int
        How many times it asks for these cores, GPUs and bytes, all at once and on nodes of one
        allocation [parts], >= 1. With more than one it is a *gang*.
    is_apart : bool
        Whether each part is on a node of its own. Otherwise they are on as few nodes as can be: on
        one, if there is a node that has room for all.

    Examples
    --------
    >>> Resources.parse(cores=4, gpus=0.5, memory="2GiB", time="1h")
    Resources(cores=4, gpus=0.5, memory='2 GiB', time='1h')
    """

    cores: int = 1
    gpu_units: int = 0
    memory_bytes: int | None = None
    time_s: float | None = None
    parts: int = 1
    is_apart: bool = False

    @classmethod
    def parse(
        cls,
        *,
        cores: int = 1,
        gpus: float = 0,
        memory: int | float | str | None = None,
        time: int | float | str | None = None,
    ) -> Resources:
        """Build a request from what a user writes.

        Parameters
        ----------
        cores : int
            Whole cores [cores], >= 1.
        gpus : float
            Whole GPUs, or a share of one between 0.001 and 1 [GPUs].
        memory : int, float or str, optional
            Memory [bytes], or text such as ``"8GiB"``.
        time : int, float or str, optional
            Time limit [s], or text such as ``"2h"``.

        Returns
        -------
        Resources
            The request.

        Raises
        ------
        InvalidQuantity
            A value is not understood, not positive, or a fraction where whole numbers are needed.
        """
        return cls(
            cores=_whole(cores, "cores", least=1),
            gpu_units=_gpu_units(gpus),
            memory_bytes=None if memory is None else parse_bytes(memory),
            time_s=None if time is None else parse_seconds(time),
        )

    @property
    def gpus(self) -> float:
        """GPUs asked for [GPUs]; less than one is a share of a device."""
        return self.gpu_units / GPU_UNIT

    @property
    def part(self) -> Resources:
        """What one part asks for."""
        return self if self.parts == 1 else replace(self, parts=1, is_apart=False)

    def times(self, parts: int) -> Resources:
        """Return what so many parts ask for on one node.

        Shares of GPUs that do not fit on one device take whole ones, as many parts on each as fit.

        Examples
        --------
        >>> Resources.parse(cores=2, gpus=0.4, memory="1GiB").times(3)
        Resources(cores=6, gpus=2, memory='3 GiB')
        """
        units = self.gpu_units * parts
        if 0 < self.gpu_units < GPU_UNIT < units:
            units = -(-parts // (GPU_UNIT // self.gpu_units)) * GPU_UNIT
        memory = self.memory_bytes
        return Resources(
            cores=self.cores * parts,
            gpu_units=units,
            memory_bytes=None if memory is None else memory * parts,
            time_s=self.time_s,
        )

    def is_held_by(self, n_parts: Iterable[int]) -> bool:
        """Whether nodes that have room for so many parts each have room for all [parts]."""
        left = self.parts
        for parts in n_parts:
            left -= min(parts, 1) if self.is_apart else parts
            if left <= 0:
                return True
        return False

    def __str__(self) -> str:
        parts = [_count(self.cores, "core")]
        if self.gpu_units:
            parts.append(_count(self.gpus, "GPU"))
        if self.memory_bytes is not None:
            parts.append(f"{render_bytes(self.memory_bytes)} of memory")
        if self.parts > 1:
            each = ", ".join(parts)
            parts = [f"{self.parts} {'nodes' if self.is_apart else 'ranks'} with {each} each"]
        if self.time_s is not None:
            parts.append(render_seconds(self.time_s))
        return ", ".join(parts)

    def __repr__(self) -> str:
        parts = [f"cores={self.cores}"]
        if self.gpu_units:
            parts.append(f"gpus={self.gpus:g}")
        if self.memory_bytes is not None:
            parts.append(f"memory={render_bytes(self.memory_bytes)!r}")
        if self.time_s is not None:
            parts.append(f"time={render_seconds(self.time_s)!r}")
        if self.parts > 1:
            parts.append(f"{'nodes' if self.is_apart else 'ranks'}={self.parts}")
        return f"Resources({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return f"<code>{self}</code>"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """What one node offers to tasks.

    Use `NodeShape.declare` for a shape of your own; the shape of this machine is detected.

    Parameters
    ----------
    core_ids : tuple of int
        The cores that tasks may use, as the operating system numbers them.
    numa : tuple of tuple of int
        Groups of core ids that share memory; together they are `core_ids`.
    gpu_ids : tuple of str
        The GPUs that tasks may use, as the vendor's environment variable names them.
    gpu_vendor : {"none", "nvidia", "amd", "intel"}
        Whose variable makes a GPU visible.
    gpu_cores : tuple of tuple of int
        For each GPU the core ids near it; empty where this is not known.
    memory_bytes : int
        Memory that all tasks together may ask for [bytes]; see `is_memory_stated`.
    is_real : bool
        Whether the ids are this machine's, so that tasks are bound to them. A declared shape is
        counted but not bound.
    origin : dict of str to str
        How each fact was found, for ``exadask info``.
    """

    core_ids: tuple[int, ...]
    memory_bytes: int
    numa: tuple[tuple[int, ...], ...] = ()
    gpu_ids: tuple[str, ...] = ()
    gpu_vendor: GpuVendor = "none"
    gpu_cores: tuple[tuple[int, ...], ...] = ()
    is_real: bool = False
    origin: dict[str, str] = field(default_factory=dict, compare=False, hash=False)

    @classmethod
    def declare(
        cls, *, cores: int, gpus: int = 0, memory: int | float | str | None = "1TiB"
    ) -> NodeShape:
        """Describe an imagined node: counted exactly, bound to nothing.

        Parameters
        ----------
        cores : int
            Cores [cores], >= 1.
        gpus : int
            Whole GPUs [GPUs], >= 0.
        memory : int, float or str, optional
            Memory [bytes], or text such as ``"64GiB"``. None: nobody has said it; then tasks are
            placed as if there were 1 TiB, until a node itself says what it has.

        Returns
        -------
        NodeShape
            A shape whose ids count from zero.

        Raises
        ------
        InvalidQuantity
            A value is not understood, or not positive.

        Examples
        --------
        >>> print(NodeShape.declare(cores=4, gpus=1, memory="8GiB"))
        4 cores, 1 GPU, 8 GiB of memory
        >>> print(NodeShape.declare(cores=4, memory=None))
        4 cores, memory not stated
        """
        core_ids = tuple(range(_whole(cores, "cores", least=1, end=END_OF_IDS)))
        origin = {"shape": "declared"}
        if memory is None:
            memory, origin["memory"] = _ASSUMED_MEMORY, _NOT_STATED
        return cls(
            core_ids=core_ids,
            numa=(core_ids,),
            gpu_ids=tuple(
                str(index) for index in range(_whole(gpus, "gpus", least=0, end=END_OF_IDS))
            ),
            memory_bytes=parse_bytes(memory),
            origin=origin,
        )

    @property
    def cores(self) -> int:
        """Number of cores [cores]."""
        return len(self.core_ids)

    @property
    def gpus(self) -> int:
        """Number of GPUs [GPUs]."""
        return len(self.gpu_ids)

    @property
    def is_memory_stated(self) -> bool:
        """Whether `memory_bytes` is known; otherwise it is assumed, and no promise."""
        return self.origin.get("memory") != _NOT_STATED

    def fits(self, request: Resources) -> bool:
        """Whether this node, were it empty, could run a task with this request, or a part of it."""
        return (
            request.cores <= self.cores
            and request.gpu_units <= self.gpus * GPU_UNIT
            and (request.memory_bytes or 0) <= self.memory_bytes
        )

    def holds(self, request: Resources) -> int:
        """Say how many parts like this fit on this node, were it empty [parts]."""
        if not self.fits(request):
            return 0
        limits = [self.cores // request.cores]
        if request.memory_bytes:
            limits.append(self.memory_bytes // request.memory_bytes)
        if request.gpu_units >= GPU_UNIT:
            limits.append(self.gpus * GPU_UNIT // request.gpu_units)
        elif request.gpu_units:
            limits.append(self.gpus * (GPU_UNIT // request.gpu_units))
        return min(limits)

    def __str__(self) -> str:
        parts = [_count(self.cores, "core")]
        if self.gpu_ids:
            parts.append(_count(self.gpus, "GPU"))
        memory = f"{render_bytes(self.memory_bytes)} of memory"
        parts.append(memory if self.is_memory_stated else "memory not stated")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<NodeShape: {self}>"

    def _repr_html_(self) -> str:
        return f"<code>{self}</code>"


def largest(shapes: Sequence[NodeShape]) -> NodeShape:
    """Return the shape with most cores; then most GPUs, then most memory.

    Raises
    ------
    ValueError
        There are no shapes.
    """
    return max(shapes, key=lambda shape: (shape.cores, shape.gpus, shape.memory_bytes))


def _whole(value: object, name: str, *, least: int, end: int = _MAX_COUNT) -> int:
    number = number_of(value)
    if number is None or not least <= number < end or number != int(number):
        raise InvalidQuantity(name, value, f"a whole number, at least {least} and less than {end}")
    return int(number)


def _gpu_units(gpus: object) -> int:
    wanted = "a whole number of GPUs, or a share of one between 0.001 and 1"
    number = number_of(gpus)
    if number is None or not 0 <= number < _MAX_COUNT:
        raise InvalidQuantity("gpus", gpus, wanted)
    units = int(number * GPU_UNIT + 1e-9)
    if (number > 1 and number != int(number)) or (number > 0 and units == 0):
        raise InvalidQuantity("gpus", gpus, wanted)
    return units


def _count(number: float, noun: str) -> str:
    shown = f"{number:d}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}" if number <= 1 else f"{shown} {noun}s"
