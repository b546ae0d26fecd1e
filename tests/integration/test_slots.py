"""What an agent sends to the process of a slot, and how it ends a call there, step by step."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest

from exadask.resources import Resources
from exadask.runtime import slot as slot_module
from exadask.runtime.board import Board
from exadask.runtime.bundle_attempt import BundleAttempt
from exadask.runtime.job import Bundle, BundleDone, Failure, Item, News, RunBundle
from exadask.runtime.kind import Kind, Surroundings
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.parcel import Packer
from exadask.runtime.slot import Captured, CaptureFile, Slot, SlotDied, SlotKind

pytestmark = pytest.mark.timeout(60)


def test_message_for_a_process_that_is_killed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What that process has started may still hold its side of the socket: nothing breaks then."""
    held: list[socket.socket] = []

    def pair_that_somebody_holds() -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        held.append(theirs.dup())
        return ours, theirs

    async def main() -> None:
        monkeypatch.setattr(
            slot_module, "socket", SimpleNamespace(socketpair=pair_that_somebody_holds)
        )
        slot = Slot(SlotKind(), f"{os.getpid()}-killed")
        os.kill(slot.pid, signal.SIGSTOP)
        try:
            sending = asyncio.ensure_future(slot.send(News("", "", (bytes(2**24),))))
            while slot._room is None:
                await asyncio.sleep(0)
            assert not sending.done()
        finally:
            os.kill(slot.pid, signal.SIGKILL)
        await asyncio.wait_for(sending, 20)
        await slot.end(0)
        another = Slot(SlotKind(), f"{os.getpid()}-another")  # has the same descriptors
        await asyncio.wait_for(another.close(), 20)

    asyncio.run(main())
    for one in held:
        one.close()


class BoardOfAFastChild(Board):
    """Lets something happen right before all calls behind one are marked."""

    before_others_are_dropped: Callable[[], None]

    def drop(self, indices: Iterable[int]) -> None:
        """Mark calls."""
        marked = list(indices)
        if len(marked) > 1:
            self.before_others_are_dropped()
        super().drop(marked)


class ActedSlot:
    """A slot whose process is acted by the test, which decides when the next call begins."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.on_item: object = None
        here = BoardOfAFastChild.create()
        assert isinstance(here, BoardOfAFastChild)
        self.here = here
        self.over: asyncio.Future[BundleDone] = asyncio.get_running_loop().create_future()

    def board(self) -> tuple[Board, None]:
        return self.here, None

    def capture_from_here(self) -> dict[str, Captured]:
        return {name: Captured(file=CaptureFile(), start=0) for name in ("stdout", "stderr")}

    async def run_bundle(self, _: RunBundle) -> BundleDone:
        assert self.begin(0)
        return await self.over

    async def end(self, _: float) -> None:
        if not self.over.done():
            self.over.set_exception(SlotDied(-signal.SIGKILL))

    def begin(self, index: int) -> bool:
        return self.here.begin(index, time.monotonic(), 0, 0)

    def finish(self, index: int) -> None:
        assert self.here.put(Item(index, 0.0, 0.0, 0, index).packed())


@pytest.mark.parametrize("limit", ["0.1s", None], ids=["time", "drop"])
def test_call_that_begins_while_the_one_before_is_being_ended_can_be_ended_too(
    limit: str | None,
) -> None:
    """That one came to its end after it was seen to run, and before its signal was sent."""
    ends: list[tuple[int, object]] = []

    async def main() -> int:
        bundle = bundle_of(4, limit)
        attempt = BundleAttempt(
            bundle,
            "node",
            MemoryWatch(1.0, 2**40),
            kill_grace_s=0.0,
            inline_bytes=100,
            tell=lambda items, *_: ends.extend(pickle.loads(item)[:5:4] for item in items),
            announce=lambda: None,
            is_cut_off=never,
        )
        slot = ActedSlot()

        def go_on() -> None:
            if slot.here.progress().index == 0:
                slot.finish(0)
                assert slot.begin(1)
                if limit is None:
                    attempt.drop(1)

        slot.here.before_others_are_dropped = go_on
        order = RunBundle(
            bundle=bundle,
            inputs=(),
            start=0,
            board=None,
            cores=(),
            n_cores=1,
            node="node",
            inline_bytes=100,
        )
        running = asyncio.ensure_future(attempt.run_in(slot, order))  # type: ignore[arg-type]  # it is acted
        while slot.here.progress().index < 0:
            await asyncio.sleep(0)
        if limit is None:
            attempt.drop(0)
        try:
            return await asyncio.wait_for(running, 20)
        finally:
            slot.here.close()

    assert asyncio.run(main()) == 2, "the others go on in another slot"
    assert ends[0] == (0, 0)
    if limit is None:
        assert ends[1:] == []
    else:
        ((index, outcome),) = ends[1:]
        assert isinstance(outcome, Failure)
        assert (index, outcome.error) == (1, "TimeExceeded")


def bundle_of(count: int, time_limit: str | None) -> Bundle:
    kind = Kind(
        name="f",
        function=Packer().pack(abs),
        source="f",
        request=Resources.parse(time=time_limit),
        surroundings=Surroundings(cwd="/", sys_path=()),
    )
    return Bundle(
        key="f",
        kinds=(kind,),
        calls=b"",
        count=count,
        kind_of=None,
        expected_s=math.nan,
        bound_s=math.inf,
    )


async def never() -> bool:
    return False
