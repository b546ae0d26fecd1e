"""Watches the memory of the tasks of one node, and ends those that take more than is theirs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from exadask.runtime.limits import (
    INTERPRETER_BYTES,
    bears,
    descendants_of,
    exact_memory_of,
    memory_of,
    sampled_descendants_of,
)

logger = logging.getLogger(__name__)

_TREE_EVERY = 3


class Watched(Protocol):
    """A task that is watched."""

    @property
    def pids(self) -> Collection[int]:
        """Its child process, or processes; what they start is found."""

    @property
    def mark(self) -> str:
        """What all its processes are known by, those too that somebody else has started."""

    @property
    def limit_bytes(self) -> int | None:
        """What it may use [bytes]; None: whatever the node has."""

    def exceeded(self, peak_bytes: int, limit_bytes: int) -> None:
        """End it: it used more than it may."""


@dataclass(slots=True)
class _Record:
    base_bytes: int
    members: set[int] = field(default_factory=set)
    used_bytes: int = 0
    peak_bytes: int = 0


class MemoryWatch:
    """Looks at all running tasks of a node several times a second.

    A task's memory is that of its whole process tree, less what its process held before it began
    (at least the interpreter). The first look is a cheap upper bound; before a task is ended, what
    it shares with others is divided among them.

    The ranks of an MPI program may be no descendants of the task: where a batch system starts them,
    they are its daemon's. So each rank announces itself (``ranks.sh``).

    Parameters
    ----------
    poll_interval_s : float
        Time between two looks [s].
    node_bytes : int
        Memory that all tasks together may use [bytes].
    ranks : Path, optional
        Where ranks announce themselves, each by an empty file ``MARK-PID``. None: nowhere.
    """

    def __init__(self, poll_interval_s: float, node_bytes: int, ranks: Path | None = None) -> None:
        self._interval_s, self._node_bytes, self._ranks = poll_interval_s, node_bytes, ranks
        self._records: dict[Watched, _Record] = {}
        self._has_work = asyncio.Event()
        self._looks = 0

    def add(self, task: Watched) -> None:
        """Begin to watch a task; its process has not begun to run it."""
        held = memory_of(task.pids)
        self._records[task] = _Record(max(held, INTERPRETER_BYTES), set(task.pids))
        self._has_work.set()

    def discard(self, task: Watched) -> int:
        """Stop watching a task; return its peak as far as it was seen [bytes]."""
        record = self._records.pop(task, None)
        if not self._records:
            self._has_work.clear()
        return record.peak_bytes if record else 0

    def forget_ranks(self, mark: str) -> bool:
        """Forget the ranks of a task that is over; returns whether it had any."""
        pids = self._announced().get(mark, ())
        for pid in pids:
            assert self._ranks is not None, "they were announced there"
            (self._ranks / f"{mark}-{pid}").unlink(missing_ok=True)
        return bool(pids)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._has_work.wait()
            await asyncio.sleep(self._interval_s)
            await self.look()

    async def look(self) -> None:
        """Measure every task once, and end those over their limit."""
        self._looks += 1
        await self._find_members()
        for task, record in list(self._records.items()):
            self._measure(record, memory_of(record.members))
            await self._judge(task, record)
        await self._guard_node()

    async def _find_members(self) -> None:
        """Find the processes of every task; all of the node's only where there is no other way."""
        announced, unknown = self._announced(), dict[Watched, set[int]]()
        for task, record in self._records.items():
            roots, members = set(task.pids), set(task.pids)
            for pid in (*task.pids, *announced.get(task.mark, ())):
                if pid in roots or (pid not in members and bears(pid, task.mark)):
                    below = sampled_descendants_of(pid)
                    roots.add(pid)
                    members.update((pid, *(below or ())))
                    if below is None:
                        unknown[task] = roots
            if task not in unknown:
                record.members = members
        has_company = any(len(record.members) > 1 for record in self._records.values())
        if unknown and (has_company or self._looks % _TREE_EVERY == 0):
            trees = await asyncio.to_thread(descendants_of, set().union(*unknown.values()))
            for task, roots in unknown.items():
                if task in self._records:
                    self._records[task].members = roots.union(*map(trees.__getitem__, roots))

    async def _judge(self, task: Watched, record: _Record) -> None:
        limit = task.limit_bytes
        if limit is None or record.used_bytes <= limit:
            return
        self._measure(record, await asyncio.to_thread(exact_memory_of, record.members))
        if record.used_bytes > limit and task in self._records:
            logger.info("memory limit of %d bytes exceeded by processes %s", limit, task.pids)
            task.exceeded(record.used_bytes, limit)

    async def _guard_node(self) -> None:
        """Before the kernel ends just any process, end the task that took most without asking."""
        if sum(record.used_bytes for record in self._records.values()) <= self._node_bytes:
            return
        members = [pid for record in self._records.values() for pid in record.members]
        if await asyncio.to_thread(exact_memory_of, members) <= self._node_bytes:
            return
        unlimited = [task for task in self._records if task.limit_bytes is None]
        if unlimited:
            worst = max(unlimited, key=lambda task: self._records[task].used_bytes)
            worst.exceeded(self._records[worst].used_bytes, self._node_bytes)

    def _announced(self) -> dict[str, list[int]]:
        """Give the ranks that have announced themselves, by their marks."""
        found: dict[str, list[int]] = {}
        if self._ranks is None:
            return found
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._ranks):  # noqa: PTH208  # ten times a second
                mark, _, pid = name.rpartition("-")
                if pid.isdecimal():
                    found.setdefault(mark, []).append(int(pid))
        return found

    @staticmethod
    def _measure(record: _Record, total_bytes: int) -> None:
        record.used_bytes = max(0, total_bytes - record.base_bytes)
        record.peak_bytes = max(record.peak_bytes, record.used_bytes)
