"""One attempt to run a task in a slot: its limits, and every way it can end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

from exadask.errors import ExadaskError, MemoryExceeded, TaskCrashed, TimeExceeded
from exadask.runtime.job import Done, Failure, Job, Run, Usage
from exadask.runtime.kind import Kind
from exadask.runtime.leader import Leader
from exadask.runtime.limits import catches
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.slot import Captured, Slot, SlotDied

_WARN_AGAIN_S = 0.05
_TAIL_BYTES = 4000
_TAIL_LINES = 20


class Cancelled(Exception):
    """The attempt was ended because nobody wants its result any more."""


class Attempt:
    """One attempt; the agent's loop owns it.

    Parameters
    ----------
    job : Job
        What to run.
    node : str
        The node's name, for error messages.
    watch : MemoryWatch
        Watches its memory.
    kill_grace_s : float
        Time from SIGTERM to SIGKILL when it is ended for its time [s].

    Attributes
    ----------
    leader : Leader or None
        Leads its parts on other nodes, if it is a gang.
    limit_bytes : int or None
        Memory that it may use on this node [bytes].
    dropped : asyncio.Event
        Is set when nobody wants it any more.
    """

    def __init__(self, job: Job, node: str, watch: MemoryWatch, kill_grace_s: float) -> None:
        self.job, self.node = job, node
        self.captured: dict[str, Captured] = {}
        self.usage: Usage | None = None
        self.is_cancelled = self.is_over = False
        self.has_worn_slot = self.was_killed = False
        self.slot: Slot | None = None
        self.leader: Leader | None = None
        self.dropped = asyncio.Event()
        self.limit_bytes = job.kind.request.memory_bytes
        self._watch, self._kill_grace_s = watch, kill_grace_s
        self._verdict: ExadaskError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._start_s = 0.0

    @property
    def kind(self) -> Kind:
        """What holds for its job."""
        return self.job.kind

    @property
    def pids(self) -> tuple[int]:
        """The child process that runs it."""
        assert self.slot is not None
        return (self.slot.pid,)

    @property
    def mark(self) -> str:
        """What all its processes on this node are known by."""
        assert self.slot is not None
        return self.slot.mark

    def cancel(self, grace_s: float) -> None:
        """End it, because nobody wants it any more."""
        self.is_cancelled = True
        self.dropped.set()
        self._end(grace_s)

    def condemn(self, error: ExadaskError) -> None:
        """End it, because it has gone beyond its limits on another node."""
        if self._verdict is None:
            self._verdict = error
            self._end(0)

    def exceeded(self, peak_bytes: int, limit_bytes: int) -> None:
        """End it, because it took more memory than is its own."""
        if self._verdict is None:
            self._verdict = MemoryExceeded(self.kind.name, limit_bytes, peak_bytes, self.node)
            self._end(0)

    def judged(self, outcome: Failure) -> Failure:
        """Give the failure of the job, or why it was condemned meanwhile."""
        return outcome if self._verdict is None else failure(self._verdict, self.kind)

    async def run_in(self, slot: Slot, order: Run) -> Parcel | Failure:
        """Run the job in a slot; returns when its processes are idle again, or gone."""
        loop = asyncio.get_running_loop()
        self._start_s = loop.time()
        self.slot = slot
        self._watch.add(self)
        limit_s = self.kind.request.time_s
        timer = loop.call_later(limit_s, self._out_of_time) if limit_s is not None else None
        ends = [one for one in (limit_s, order.left_s) if one is not None]
        notice_s = self.kind.notice_s
        warning = (
            loop.call_later(max(0.0, min(ends) - notice_s), self._warn)
            if ends and notice_s is not None
            else None
        )
        if self.is_cancelled:
            self._end(0)
        try:
            done = await slot.run(order)
        except SlotDied as death:
            return await self._after_death(slot, death)
        else:
            return await self._after_end(slot, done)
        finally:
            for one in (timer, warning):
                if one is not None:
                    one.cancel()
            self._watch.discard(self)

    async def _after_end(self, slot: Slot, done: Done) -> Parcel | Failure:
        self.captured = {name: piece.ended() for name, piece in self.captured.items()}
        self.usage = done.usage
        if self._ending is not None:  # it ended by itself while it was being ended
            await self._ending
            self.has_worn_slot = True
        else:
            self.has_worn_slot = slot.is_worn(done)
            if self.has_worn_slot:
                await slot.end(0)
        self._note_peak()
        if self._verdict is not None:
            return failure(self._verdict, self.kind)
        return done.outcome

    async def _after_death(self, slot: Slot, death: SlotDied) -> Failure:
        self.has_worn_slot = True
        if self._ending is not None:
            await self._ending
        await slot.end(0)  # its descendants may live
        self.captured = {name: piece.ended() for name, piece in self.captured.items()}
        wall_s = asyncio.get_running_loop().time() - self._start_s
        self.usage = Usage(cpu_s=0.0, wall_s=wall_s, peak_bytes=0)
        self._note_peak()
        if self._verdict is not None:
            return failure(self._verdict, self.kind)
        self.was_killed = death.was_killed
        return failure(crash(death, self.kind, self.node, self.captured), self.kind)

    def _note_peak(self) -> None:
        seen = self._watch.discard(self)
        if self.usage is not None:
            self.usage = self.usage._replace(peak_bytes=max(self.usage.peak_bytes, seen))

    def _out_of_time(self) -> None:
        if self._verdict is None:
            assert self.kind.request.time_s is not None
            self._verdict = TimeExceeded(self.kind.name, self.kind.request.time_s, self.node)
            self._end(self._kill_grace_s)

    def _warn(self) -> None:
        """Tell the task that its end is near; not before its process takes it for a message."""
        if self.slot is None or self.is_over or self._ending is not None or not self.slot.is_alive:
            return
        if catches(self.slot.pid, signal.SIGTERM):
            os.kill(self.slot.pid, signal.SIGTERM)
        else:
            asyncio.get_running_loop().call_later(_WARN_AGAIN_S, self._warn)

    def _end(self, grace_s: float) -> None:
        if self.slot is not None and self._ending is None:
            self._ending = asyncio.ensure_future(self.slot.end(grace_s))


def crash(death: SlotDied, kind: Kind, node: str, captured: Mapping[str, Captured]) -> TaskCrashed:
    """Say how a task's process ended, with the last lines that it wrote."""
    name = death.signal_name
    exit_code = None if name is not None else death.returncode
    tail = captured["stderr"].read(_TAIL_BYTES).decode(errors="replace")
    last_lines = "\n".join(tail.splitlines()[-_TAIL_LINES:])
    return TaskCrashed(kind.name, name, exit_code, last_lines, node)


def failure(error: ExadaskError, kind: Kind) -> Failure:
    """Pack an error that the task itself did not raise."""
    name = type(error).__name__
    is_limit = isinstance(error, (MemoryExceeded, TimeExceeded))
    may_climb = is_limit and kind.higher(name) is not None  # then its client places it again
    return Failure(
        exception=Packer().pack(error),
        summary=f"{name}: {error}",
        may_retry=kind.may_retry(error) and not may_climb,
        error=name,
        is_limit=is_limit,
    )
