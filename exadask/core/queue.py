"""The waiting tasks: by class, the classes in order, and which of them were overtaken.

Tasks that any node treats alike form a class, so that one failed search for room speaks for all of
them. `TaskClass` is a heap of such tasks; `WaitingQueue` keeps the classes sorted by their heads.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias

from exadask.core.events import Demand, WaitingTask
from exadask.core.ledger import NodeId, TaskId
from exadask.errors import InvalidTransition
from exadask.resources import Resources

__all__ = ["ClassKey", "Scale", "TaskClass", "WaitingQueue", "user_priority"]

ClassKey: TypeAlias = tuple[Resources, "str | None", "frozenset[NodeId] | None", bool, "str | None"]
Rank: TypeAlias = tuple[int, float, tuple[int, ...], int]
HeapEntry: TypeAlias = "tuple[tuple[int, ...], int, WaitingTask, TaskClass]"


class Scale(NamedTuple):
    """The largest node in each resource, to measure how wide a request is."""

    cores: int = 1
    gpu_units: int = 1
    memory_bytes: int = 1

    def width(self, request: Resources) -> float:
        """Return how much of a node, in any resource, a request asks for, all parts together."""
        return request.parts * max(
            request.cores / self.cores,
            request.gpu_units / self.gpu_units,
            (request.memory_bytes or 0) / self.memory_bytes,
        )


class TaskClass:
    """Waiting tasks of equal request, warm key, allowed nodes, solitude and pool.

    Attributes
    ----------
    asked : Resources
        What each of them asks for.
    request : Resources
        What that means on one node: all of it, or one part of a gang.
    parts : int
        How many such parts a gang has; 1 if it is none, or all are to share a node [parts].
    rank : tuple
        Where its head stands among all heads; smaller goes first.
    is_settled : bool
        Whether it is known to fit nowhere, save on nodes that gained room since the last dispatch.
    overtaken_since : float or None
        Since when others have been placed over it while it placed nothing [s].
    reserved : tuple of NodeId
        The nodes that are kept for its head: one, or all that a gang needs.
    reserved_mask : int
        The same as a set of bits.
    reserved_since : float
        When that began [s].
    reserved_until : float
        When the first of these nodes ends [s].
    reserved_start : float
        When its head can start there at the latest, as far as is known; inf if it is not [s].
    hope, hope_round, runnable, runnable_version
        Caches of `exadask.core.placement`: masks of nodes.
    """

    __slots__ = (
        "allowed",
        "alone",
        "asked",
        "heap",
        "hope",
        "hope_round",
        "is_settled",
        "key",
        "n_tasks",
        "overtaken_since",
        "parts",
        "pool",
        "rank",
        "request",
        "reserved",
        "reserved_mask",
        "reserved_since",
        "reserved_start",
        "reserved_until",
        "runnable",
        "runnable_version",
        "warm_key",
        "watched",
        "width",
    )

    def __init__(self, key: ClassKey, width: float) -> None:
        self.key = key
        self.asked, self.warm_key, self.allowed, self.alone, self.pool = key
        self.request, self.parts = self.asked.part, self.asked.parts
        self.width = width
        self.heap: list[HeapEntry] = []
        self.n_tasks = 0
        self.rank: Rank = (0, 0.0, (), -1)
        self.is_settled = False
        self.overtaken_since: float | None = None
        self.reserved: tuple[NodeId, ...] = ()
        self.reserved_mask = 0
        self.reserved_since, self.reserved_start, self.reserved_until = 0.0, math.inf, math.inf
        self.hope = self.hope_round = self.runnable = 0
        self.runnable_version = -1
        self.watched = -1

    @property
    def is_spread(self) -> bool:
        """Whether its tasks are gangs whose parts may share nodes, or be on one."""
        return self.asked.parts > 1 and not self.asked.is_apart

    def gather(self, *, on_one_node: bool) -> bool:
        """Say whether all parts are to share a node; returns whether that is new."""
        asked = self.asked
        parts = 1 if on_one_node else asked.parts
        if parts == self.parts:
            return False
        self.parts = parts
        self.request = asked.times(asked.parts) if on_one_node else asked.part
        self.runnable_version = -1
        return True

    @property
    def head(self) -> WaitingTask:
        """The task that goes first."""
        return self.heap[0][2]

    @property
    def arrival(self) -> int:
        """The head's place in the order of all submissions."""
        return self.heap[0][1]


class WaitingQueue:
    """All waiting tasks.

    Attributes
    ----------
    order : list of (rank, TaskClass)
        The classes that have tasks, sorted; `pop_head` never moves a class to the front.
    unsettled : dict of TaskClass to None
        The classes that have not been looked at since they came up.
    overtaken, urgent : dict of TaskClass to float
        Overtaken classes and since when [s], oldest first; the urgent ones waited long enough.
    spread : dict of TaskClass to None
        The classes of gangs whose parts may share nodes.
    """

    def __init__(self) -> None:
        self.order: list[tuple[Rank, TaskClass]] = []
        self.unsettled: dict[TaskClass, None] = {}
        self.overtaken: dict[TaskClass, float] = {}
        self.urgent: dict[TaskClass, float] = {}
        self.spread: dict[TaskClass, None] = {}
        self._classes: dict[ClassKey, TaskClass] = {}
        self._waiting: dict[TaskId, HeapEntry] = {}  # the very entries of the heaps
        self._n_arrivals = 0
        self._scale = Scale()
        self._watch: list[tuple[int, int, TaskClass]] = []  # heads not overtaken, oldest first
        self._n_watched = 0

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def class_of(self, task_id: TaskId) -> TaskClass:
        """Return the class of a waiting task."""
        return self._waiting[task_id][3]

    def add(self, task: WaitingTask) -> TaskClass:
        """Queue a task; return its class.

        Raises
        ------
        InvalidTransition
            It waits already.
        """
        if task.task in self._waiting:
            raise InvalidTransition(f"task {task.task}", "submit", "waiting")
        key = (task.request, task.warm_key, task.allowed, task.alone, task.pool)
        cls = self._classes.get(key)
        if cls is None:
            cls = self._classes[key] = TaskClass(key, self._width(task.request, task.alone))
            self.unsettled[cls] = None
            if cls.is_spread:
                self.spread[cls] = None
        arrival = self._n_arrivals
        self._n_arrivals += 1
        entry = self._waiting[task.task] = (task.priority, arrival, task, cls)
        heappush(cls.heap, entry)
        cls.n_tasks += 1
        if cls.arrival == arrival:
            self._rank_again(cls)
            self._watch_head(cls)
        return cls

    def discard(self, task_id: TaskId) -> TaskClass | None:
        """Forget a waiting task; return its class if that is empty now, and gone."""
        if task_id not in self._waiting:
            return None
        cls = self._waiting.pop(task_id)[3]
        cls.n_tasks -= 1
        return self._after_removal(cls)

    def pop_head(self, cls: TaskClass) -> None:
        """Remove the head of a class, because it was placed: the class made progress."""
        task = heappop(cls.heap)[2]
        del self._waiting[task.task]
        cls.n_tasks -= 1
        if cls.overtaken_since is not None:
            self.overtaken.pop(cls, None)
            self.urgent.pop(cls, None)
            cls.overtaken_since = None
        self._after_removal(cls)

    def settle(self, cls: TaskClass) -> None:
        """Note that a class fits nowhere now."""
        cls.is_settled = True
        self.unsettled.pop(cls, None)

    def unsettle(self, cls: TaskClass) -> None:
        """Note that a class may fit somewhere after all."""
        cls.is_settled = False
        self.unsettled[cls] = None

    def mark_overtaken(self, cls: TaskClass, now: float) -> None:
        """Note that another class was placed over this one."""
        if cls.overtaken_since is None and cls.n_tasks:
            cls.overtaken_since = now
            self.overtaken[cls] = now

    def mark_older(self, arrival: int, now: float, *, besides: set[TaskClass]) -> None:
        """Note that a task which arrived so late was placed over all classes with older heads."""
        watch, kept = self._watch, []
        while watch and watch[0][0] < arrival:
            seen, _, cls = heappop(watch)
            if cls.watched == seen:
                cls.watched = -1
            if cls.n_tasks == 0:
                continue
            if cls.arrival < arrival and cls not in besides:
                self.mark_overtaken(cls, now)
            kept.append(cls)
        for cls in kept:
            self._watch_head(cls)

    def promote(self, now: float, after_s: float) -> bool:
        """Make those classes urgent that were overtaken long ago; return whether there are new."""
        due = []
        for cls, since in self.overtaken.items():
            if since + after_s > now:
                break
            due.append(cls)
        for cls in due:
            self.urgent[cls] = self.overtaken.pop(cls)
        return bool(due)

    def rescale(self, scale: Scale) -> None:
        """Measure all widths against other nodes."""
        if scale == self._scale:
            return
        self._scale = scale
        for _, cls in self.order:
            cls.width = self._width(cls.asked, cls.alone)
            cls.rank = _rank(cls)
        self.order = sorted((cls.rank, cls) for _, cls in self.order)

    def tasks_before(self, task_id: TaskId) -> Iterator[tuple[WaitingTask, TaskClass]]:
        """Yield the tasks that go before this one, its own class included; O(waiting tasks)."""
        own_priority, arrival, _, own = self._waiting[task_id]
        own_rank = (user_priority(own_priority), -own.width, own_priority, arrival)
        for _, cls in self.order[: bisect_left(self.order, (own_rank, own))]:
            for entry in cls.heap:
                rank = (user_priority(entry[0]), -cls.width, entry[0], entry[1])
                if rank < own_rank and self._is_live(entry):
                    yield entry[2], cls

    def first_tasks(self, cls: TaskClass, at_most: int) -> Iterator[WaitingTask]:
        """Yield the first tasks of a class in order; the queue must not change meanwhile."""
        frontier = [(cls.heap[0], 0)]
        while frontier and at_most:
            at_most -= 1
            entry, index = heappop(frontier)
            for child in range(2 * index + 1, min(2 * index + 3, len(cls.heap))):
                heappush(frontier, (cls.heap[child], child))
            if self._is_live(entry):
                yield entry[2]

    def demand(self) -> list[Demand]:
        """Count the waiting tasks by what a new node must have; those served first come first."""
        counts: dict[tuple[Resources, str | None, bool, bool], int] = {}
        urgent = list(self.urgent)
        others = (cls for _, cls in self.order if cls not in self.urgent)
        for cls in (*urgent, *others):
            key = (cls.asked, cls.pool, cls.allowed is not None, cls.alone)
            counts[key] = counts.get(key, 0) + cls.n_tasks
        return [
            Demand(request=request, pool=pool, is_bound=is_bound, alone=alone, count=count)
            for (request, pool, is_bound, alone), count in counts.items()
        ]

    def tasks_of(self, cls: TaskClass) -> list[TaskId]:
        """Name the tasks of a class, first come first; O(tasks of the class)."""
        return [entry[2].task for entry in sorted(cls.heap, key=_order) if self._is_live(entry)]

    def check(self) -> None:
        """Assert that the books are right; for tests."""
        counted = dict.fromkeys(self._classes.values(), 0)
        for *_, cls in self._waiting.values():
            counted[cls] += 1
        assert all(count == cls.n_tasks > 0 for cls, count in counted.items()), "class sizes"
        assert self.order == sorted((cls.rank, cls) for cls in counted), "order of classes"
        assert all(cls.rank == _rank(cls) for cls in counted), "a rank is out of date"
        assert all(self._is_live(cls.heap[0]) for cls in counted), "a head was withdrawn"
        assert set(self.unsettled) == {cls for cls in counted if not cls.is_settled}
        marked = {cls for cls in counted if cls.overtaken_since is not None}
        assert self.overtaken.keys() | self.urgent.keys() == marked, "overtaken classes"
        assert not self.overtaken.keys() & self.urgent.keys()
        assert self.spread.keys() == {cls for cls in counted if cls.is_spread}
        watched = {cls for _, _, cls in self._watch}
        assert counted.keys() - marked <= watched, "a class is not watched"

    def _width(self, request: Resources, alone: bool) -> float:
        return float(request.parts) if alone else self._scale.width(request)

    def _is_live(self, entry: HeapEntry) -> bool:
        return self._waiting.get(entry[2].task) is entry

    def _after_removal(self, cls: TaskClass) -> TaskClass | None:
        """Bring a class up to date that lost a task; return it if it is empty now, and gone."""
        if cls.n_tasks == 0:
            self._remove_from_order(cls)
            del self._classes[cls.key]
            self.unsettled.pop(cls, None)
            self.overtaken.pop(cls, None)
            self.urgent.pop(cls, None)
            self.spread.pop(cls, None)
            return cls
        while not self._is_live(cls.heap[0]):
            heappop(cls.heap)
        if cls.arrival != cls.rank[3]:
            self._rank_again(cls)
        self._watch_head(cls)
        return None

    def _rank_again(self, cls: TaskClass) -> None:
        if cls.rank[3] >= 0:
            self._remove_from_order(cls)
        cls.rank = _rank(cls)
        insort(self.order, (cls.rank, cls))

    def _remove_from_order(self, cls: TaskClass) -> None:
        # No two ranks are equal, so that the classes themselves are never compared.
        del self.order[bisect_left(self.order, (cls.rank, cls))]

    def _watch_head(self, cls: TaskClass) -> None:
        """See to it that a class which is not overtaken is watched, from its head or before."""
        if cls.overtaken_since is not None or 0 <= cls.watched <= cls.arrival:
            return
        cls.watched = cls.arrival
        self._n_watched += 1
        heappush(self._watch, (cls.arrival, self._n_watched, cls))
        if len(self._watch) > 64 + 4 * len(self._classes):
            self._watch = [entry for entry in self._watch if _is_current(entry)]
            heapify(self._watch)


def _order(entry: HeapEntry) -> tuple[tuple[int, ...], int]:
    return entry[:2]


def _is_current(entry: tuple[int, int, TaskClass]) -> bool:
    return entry[2].n_tasks > 0 and entry[2].watched == entry[0]


def user_priority(priority: tuple[int, ...]) -> int:
    """Return the part of a priority that counts strictly; smaller goes first."""
    return priority[0] if priority else 0


def _rank(cls: TaskClass) -> Rank:
    priority, arrival, *_ = cls.heap[0]
    return (user_priority(priority), -cls.width, priority, arrival)
