"""One attempt to run a task in a slot: its limits, and every way it can end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from exadask.errors import ExadaskError, MemoryExceeded, TaskCrashed, TimeExceeded
from exadask.runtime.job import Done, Failure, Job, Run, Usage
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.slot import Captured, Slot, SlotDied

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
    """

    def __init__(self, job: Job, node: str, watch: MemoryWatch, kill_grace_s: float) -> None:
        self.job, self.node = job, node
        self.captured: dict[str, Captured] = {}
        self.usage: Usage | None = None
        self.is_cancelled = self.is_over = False
        self.has_worn_slot = self.was_killed = False
        self.slot: Slot | None = None
        self._watch, self._kill_grace_s = watch, kill_grace_s
        self._verdict: ExadaskError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._start_s = 0.0

    @property
    def pid(self) -> int:
        """The child process that runs it."""
        assert self.slot is not None
        return self.slot.pid

    @property
    def limit_bytes(self) -> int | None:
        """Memory that it may use [bytes]."""
        return self.job.request.memory_bytes

    def cancel(self, grace_s: float) -> None:
        """End it, because nobody wants it any more."""
        self.is_cancelled = True
        self._end(grace_s)

    def exceeded(self, peak_bytes: int, limit_bytes: int) -> None:
        """End it, because it took more memory than is its own."""
        if self._verdict is None:
            self._verdict = MemoryExceeded(self.job.name, limit_bytes, peak_bytes, self.node)
            self._end(0)

    async def run_in(self, slot: Slot, order: Run) -> Parcel | Failure:
        """Run the job in a slot; returns when its processes are idle again, or gone."""
        loop = asyncio.get_running_loop()
        self._start_s = loop.time()
        self.slot = slot
        self._watch.add(self)
        limit_s = self.job.request.time_s
        timer = loop.call_later(limit_s, self._out_of_time) if limit_s is not None else None
        if self.is_cancelled:
            self._end(0)
        try:
            done = await slot.run(order)
        except SlotDied as death:
            return await self._after_death(slot, death)
        else:
            return await self._after_end(slot, done)
        finally:
            if timer is not None:
                timer.cancel()
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
            return self._failure(self._verdict)
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
            return self._failure(self._verdict)
        name = death.signal_name
        self.was_killed = name in ("SIGTERM", "SIGKILL")
        exit_code = None if name is not None else death.returncode
        tail = self.captured["stderr"].read(_TAIL_BYTES).decode(errors="replace")
        last_lines = "\n".join(tail.splitlines()[-_TAIL_LINES:])
        return self._failure(TaskCrashed(self.job.name, name, exit_code, last_lines, self.node))

    def _failure(self, error: ExadaskError) -> Failure:
        return Failure(
            exception=Packer().pack(error),
            summary=f"{type(error).__name__}: {error}",
            may_retry=self.job.may_retry(error),
        )

    def _note_peak(self) -> None:
        seen = self._watch.discard(self)
        if self.usage is not None:
            self.usage = replace(self.usage, peak_bytes=max(self.usage.peak_bytes, seen))

    def _out_of_time(self) -> None:
        if self._verdict is None:
            assert self.job.request.time_s is not None
            self._verdict = TimeExceeded(self.job.name, self.job.request.time_s, self.node)
            self._end(self._kill_grace_s)

    def _end(self, grace_s: float) -> None:
        if self.slot is not None and self._ending is None:
            self._ending = asyncio.ensure_future(self.slot.end(grace_s))
