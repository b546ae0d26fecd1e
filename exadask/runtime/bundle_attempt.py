"""One attempt to run a bundle on a node: many calls in few slots, each with limits of its own."""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from exadask.errors import ExadaskError, MemoryExceeded, TimeExceeded
from exadask.runtime.attempt import Cancelled, crash, failure
from exadask.runtime.background import Background
from exadask.runtime.job import (
    INLINE_OUTPUT_BYTES,
    Bundle,
    BundleDone,
    Failure,
    Item,
    Kept,
    RunBundle,
    Usage,
)
from exadask.runtime.kind import Kind
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.parcel import Parcel
from exadask.runtime.slot import Captured, Slot, SlotDied

_POLL_S = 0.05
_NEAR_S = 0.06  # the end is announced so long before it comes
_SEEN_S = 0.003  # until then each side sees what the other has written
_PATIENCE_S = 0.025
_PATIENCE = 4

Tell = Callable[[Sequence[bytes], Sequence[int], int | None], None]


class BundleAttempt:
    """One attempt; the agent's loop owns it.

    A call that crashes, or is ended, takes its process with it; the others go on in another. Calls
    behind one that takes much longer than expected are given back.

    Parameters
    ----------
    bundle : Bundle
        What to run.
    node : str
        The node's name, for error messages.
    watch : MemoryWatch
        Watches its memory.
    kill_grace_s : float
        Time from SIGTERM to SIGKILL when a call is ended [s].
    inline_bytes : int
        Results up to this size are passed on [bytes].
    tell : callable
        Passes on packed items, the indices of calls that will not be run, and of one whose result
        is kept here.
    announce : callable
        Says that it is about to end.
    is_cut_off : callable
        Finds out whether a process was killed because the whole node is being ended.
    """

    def __init__(
        self,
        bundle: Bundle,
        node: str,
        watch: MemoryWatch,
        *,
        kill_grace_s: float,
        inline_bytes: int,
        tell: Tell,
        announce: Callable[[], None],
        is_cut_off: Callable[[], Awaitable[bool]],
    ) -> None:
        self.bundle, self.node = bundle, node
        self._watch, self._kill_grace_s, self._inline_bytes = watch, kill_grace_s, inline_bytes
        self._tell, self._announce, self._is_cut_off = tell, announce, is_cut_off
        self.is_cancelled = self.is_over = self.was_killed = self.has_worn_slot = False
        self.usage: Usage | None = None
        self.slot: Slot | None = None
        self.kept: Parcel | None = None
        self.kept_index = -1
        self.outputs: dict[int, dict[str, Captured]] = {}
        self._dropped: set[int] = set()
        self._gone: set[int] = set()
        self._last_done = -1
        self._kept_item: Item | None = None
        self.must_yield = False  # it was asked to begin no other call
        self._is_announced = False
        self._stopping = -1  # the call that is being ended
        self._is_halted = False  # no other is begun in this slot, but in the next
        self._verdict: ExadaskError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._background = Background()
        expected_s = bundle.expected_s
        is_bounded = bundle.bound_s < math.inf and expected_s == expected_s  # it is a number
        self._patience_s = max(_PATIENCE_S, _PATIENCE * expected_s) if is_bounded else math.inf

    @property
    def kind(self) -> Kind:
        """What holds for all its calls."""
        return self.bundle.kind

    @property
    def pids(self) -> tuple[int]:
        """The child process that runs it."""
        assert self.slot is not None
        return (self.slot.pid,)

    @property
    def mark(self) -> str:
        """What all its processes are known by."""
        assert self.slot is not None
        return self.slot.mark

    @property
    def limit_bytes(self) -> int | None:
        """Memory that a call may use [bytes]."""
        return self.kind.request.memory_bytes

    def cancel(self, grace_s: float) -> None:
        """End all of it, because nobody wants it any more."""
        self.is_cancelled = True
        self._end(grace_s)

    def drop(self, index: int) -> None:
        """Leave one call out, or end it if it runs."""
        self._dropped.add(index)
        if self.slot is not None and not self.is_over:
            self.slot.board()[0].drop([index])
            self._background.start(self._end_if_it_runs(self.slot, index))

    def give_way(self) -> None:
        """Begin no other call: the share is wanted."""
        self.must_yield = True
        if self.slot is not None and not self.is_over:
            self._background.start(self._give_rest_back(self.slot))

    def exceeded(self, peak_bytes: int, limit_bytes: int) -> None:
        """End the call that runs, because it took more memory than is its own."""
        assert self.slot is not None
        index = self.slot.board()[0].progress().index
        if index > self._last_done and self._stopping < 0:
            name = self.bundle.kind_at(index).name
            verdict = MemoryExceeded(name, limit_bytes, peak_bytes, self.node)
            self._background.start(self._stop(self.slot, index, 0, verdict))

    def return_all(self) -> None:
        """Give all calls back: none has begun."""
        self._return(set(range(self.bundle.count)) - self._dropped)

    async def run_in(self, slot: Slot, order: RunBundle) -> int:
        """Run calls in a slot; returns with which call to go on, in this slot or another.

        Raises
        ------
        Cancelled
            Nobody wants any of it any more, or the node is being ended.
        """
        board, memory = slot.board()
        board.take()
        board.reset()
        board.drop(self._dropped | self._gone)
        self.slot, self._verdict, self._ending, self.has_worn_slot = slot, None, None, False
        self._stopping, self._is_halted = -1, False
        slot.on_item = self._on_item
        if self.is_cancelled:
            self._end(0)
        elif self.must_yield:
            self.give_way()
        captured = slot.capture_from_here()
        self._watch.add(self)
        polling = asyncio.ensure_future(self._poll(slot))
        try:
            done = await slot.run_bundle(replace(order, board=memory))
        except SlotDied as death:
            go_on = await self._after_death(slot, death, order.start, captured)
        else:
            go_on = await self._after_end(slot, done)
        finally:
            polling.cancel()
            self._watch.discard(self)
            self.slot = None  # it may be another's from now on
        if self._kept_item is None:
            return go_on
        # Told at the end of the bundle, and to the scheduler too: if the node is lost, it lets this
        # call run again, whose future is done.
        self._pass_on([self._kept_item.packed()], self.kept_index)
        self._return(set(range(go_on, self.bundle.count)) - self._dropped - self._gone)
        return self.bundle.count

    def written(self, index: int) -> dict[str, Captured]:
        """Say where the output of a call is, if it is kept, or the call runs."""
        if index in self.outputs or self.slot is None:
            return self.outputs.get(index, {})
        progress = self.slot.board()[0].progress()
        return self._captured(progress.out, progress.err) if progress.index == index else {}

    # -- while it runs ----------------------------------------------------------------------

    async def _poll(self, slot: Slot) -> None:
        board, limit_s = slot.board()[0], self.kind.request.time_s
        while True:
            await asyncio.sleep(_POLL_S)
            self._pass_on(board.take())
            progress = board.progress()
            if progress.index <= self._last_done:
                continue
            lasted_s = time.monotonic() - progress.start_s
            if self._stopping < 0 and progress.index in self._dropped:
                await self._stop(slot, progress.index, self._kill_grace_s)
            elif self._stopping < 0 and limit_s is not None and lasted_s > limit_s:
                name = self.bundle.kind_at(progress.index).name
                verdict = TimeExceeded(name, limit_s, self.node)
                await self._stop(slot, progress.index, self._kill_grace_s, verdict)
            if lasted_s > self._patience_s and not self._gone:
                await self._give_rest_back(slot)
            self._announce_end(progress.index, lasted_s)

    def _announce_end(self, index: int, lasted_s: float) -> None:
        """Say that the end is near, as far as can be known."""
        if self._is_announced or self._gone or self._patience_s == math.inf or index < 0:
            return
        expected_s = self.bundle.expected_s
        left_s = (self.bundle.count - 1 - index) * expected_s + max(0.0, expected_s - lasted_s)
        if left_s < _NEAR_S:
            self._is_announced = True
            self._announce()

    def _pass_on(self, items: Sequence[bytes], kept: int | None = None) -> None:
        if not items:
            return
        if self._verdict is not None:
            items = [self._judged(item) for item in items]
        # What came over the socket may be older than what was taken from the board.
        self._last_done = max(self._last_done, pickle.loads(items[-1])[0])
        self._tell(items, (), kept)

    def _judged(self, packed: bytes) -> bytes:
        """Replace the outcome of the call that was ended: it may have come to an end by itself."""
        item = Item(*pickle.loads(packed))
        if item.place != self._stopping or self._verdict is None:
            return packed
        problem = failure(self._verdict, self.bundle.kind_at(item.place))
        return item._replace(outcome=problem).packed()

    def _on_item(self, item: Item) -> None:
        """Take what was too large for the board; what is on the board came before."""
        assert self.slot is not None
        self._pass_on(self.slot.board()[0].take())
        captured = self._captured(0, 0)
        for name, position in (("stdout", item.stdout), ("stderr", item.stderr)):
            if isinstance(position, tuple):
                start, end = position
                captured[name] = replace(captured[name], start=start, end=end)
                self.outputs[item.place] = captured
        outcome = item.outcome
        is_judged = self._verdict is not None and item.place == self._stopping
        if is_judged or not isinstance(outcome, Parcel) or self._is_light(outcome):
            self._pass_on([item.packed()])
        else:
            self.kept, self.kept_index = outcome, item.place
            self._kept_item = item._replace(outcome=Kept(outcome.nbytes))
            self._last_done = max(self._last_done, item.place)

    def _is_light(self, outcome: Parcel) -> bool:
        return outcome.is_small and outcome.nbytes <= self._inline_bytes

    async def _give_rest_back(self, slot: Slot) -> None:
        """Give back what has not begun, as soon as it is sure that it never will here."""
        board = slot.board()[0]
        begun = board.progress().index
        rest = set(range(begun + 1, self.bundle.count)) - self._dropped - self._gone
        self._gone |= rest
        board.drop(sorted(rest, reverse=True))
        await asyncio.sleep(_SEEN_S)
        if self.slot is slot and not self.is_over:
            self._return(one for one in rest if one > board.progress().index)

    async def _end_if_it_runs(self, slot: Slot, index: int) -> None:
        await asyncio.sleep(_SEEN_S)
        if self.slot is not slot or self.is_over:
            return
        board = slot.board()[0]
        self._pass_on(board.take())
        if board.progress().index == index > self._last_done and self._stopping < 0:
            await self._stop(slot, index, self._kill_grace_s)

    async def _stop(
        self, slot: Slot, index: int, grace_s: float, verdict: ExadaskError | None = None
    ) -> None:
        """End the call that runs; first make sure that the signal will meet no other."""
        board = slot.board()[0]
        self._stopping, self._is_halted = index, True
        # The last one first, so that the child never skips one and begins a later one.
        board.drop(range(self.bundle.count - 1, index, -1))
        await asyncio.sleep(_SEEN_S)
        if self.slot is not slot or self.is_over or self._ending is not None:
            return
        self._pass_on(board.take())
        if board.progress().index == index > self._last_done:
            self._verdict = verdict
            self._end(grace_s)
        else:  # it is over, and another had begun before it was marked: that may be ended too
            self._stopping = -1

    def _return(self, indices: Iterable[int]) -> None:
        back = sorted(indices)
        if back:
            self._gone.update(back)
            self._tell((), back, None)

    def _end(self, grace_s: float) -> None:
        if self.slot is not None and self._ending is None:
            self._ending = asyncio.ensure_future(self.slot.end(grace_s))

    # -- afterwards -------------------------------------------------------------------------

    async def _after_end(self, slot: Slot, done: BundleDone) -> int:
        self._pass_on(slot.board()[0].take())
        if self._ending is not None:  # it ended by itself while it was being ended
            await self._ending
            self.has_worn_slot = True
        else:
            self.has_worn_slot = self._is_halted or slot.is_worn(done)
            if self.has_worn_slot:
                await slot.end(0)
        if self.is_cancelled:
            raise Cancelled
        if self._is_halted:  # those behind it were not begun
            return self._last_done + 1
        if done.has_children:
            return done.stop
        rest = set(range(done.stop, self.bundle.count)) - self._dropped - self._gone
        self._return(rest)
        return self.bundle.count

    async def _after_death(
        self, slot: Slot, death: SlotDied, start: int, captured: dict[str, Captured]
    ) -> int:
        self.has_worn_slot = True
        is_ours = self._ending is not None
        if self._ending is not None:
            await self._ending
        await slot.end(0)  # its descendants may live
        if self.is_cancelled:
            raise Cancelled
        board = slot.board()[0]
        self._pass_on(board.take())
        progress = board.progress()
        index = max(progress.index, start) if self._stopping < 0 else self._stopping
        if index <= self._last_done:
            return index + 1
        if index in self._dropped:
            return index + 1
        if is_ours and (self._verdict is None or self._may_be_innocent(index, start)):
            return index
        if not is_ours:
            self.was_killed = death.was_killed
            if self.was_killed and await self._is_cut_off():
                raise Cancelled
            self.was_killed = False
        if progress.index >= 0:
            progress = board.begun(index)
            captured = self._captured(progress.out, progress.err)
        kind = self.bundle.kind_at(index)
        error = self._verdict or crash(death, kind, self.node, captured)
        lasted_s = time.monotonic() - progress.start_s
        self._blame(index, failure(error, kind), lasted_s, captured)
        return index + 1

    def _may_be_innocent(self, index: int, start: int) -> bool:
        """Whether the calls before, in the same process, may be to blame: then it runs again."""
        return isinstance(self._verdict, MemoryExceeded) and index > start

    def _blame(
        self, index: int, problem: Failure, wall_s: float, captured: dict[str, Captured]
    ) -> None:
        """Pass on what became of a call whose process is gone."""
        texts: list[bytes | tuple[int, int]] = []
        for piece in captured.values():
            if piece.size() > INLINE_OUTPUT_BYTES:
                self.outputs[index] = captured
                texts.append((0, 0))
            else:
                texts.append(piece.read())
        peak_bytes = self._watch.discard(self)
        self._pass_on([Item(index, 0.0, wall_s, peak_bytes, problem, *texts).packed()])

    def _captured(self, out: int, err: int) -> dict[str, Captured]:
        assert self.slot is not None
        pieces = self.slot.capture_from_here()
        return {
            "stdout": replace(pieces["stdout"], start=out),
            "stderr": replace(pieces["stderr"], start=err),
        }
