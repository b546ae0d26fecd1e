"""Memory shared with a child: what was written is read, in order, and survives the writer."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exadask
from exadask.runtime.board import MAX_CALLS, Board, Progress

HEAD_BYTES = 8
RING_BYTES = 256
RING_AT = 205_056
HEAD_AT, TAIL_AT = 64, 128

ROOT = str(Path(exadask.__file__).parents[1])
PROLOGUE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from exadask.runtime.board import Board
board = Board.attach(int(sys.argv[2]))
"""


@contextlib.contextmanager
def sides(ring_bytes: int = RING_BYTES) -> Iterator[tuple[Board, Board]]:
    agent = Board.create(ring_bytes)
    child = Board.attach(os.dup(agent.fd))
    try:
        yield agent, child
    finally:
        child.close()
        agent.close()


@pytest.fixture
def boards() -> Iterator[tuple[Board, Board]]:
    with sides() as both:
        yield both


@contextlib.contextmanager
def started(program: str, board: Board) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", PROLOGUE + program, ROOT, str(board.fd)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[board.fd]) as process:
        try:
            yield process
        finally:
            process.kill()


def move_to(position: int, agent: Board, child: Board) -> None:
    """Let the ring's head and tail stand there, both."""
    while position > 0:
        step = min(position, RING_BYTES)
        step -= HEAD_BYTES if 0 < position - step < HEAD_BYTES else 0
        assert child.put(b"." * (step - HEAD_BYTES))
        assert len(agent.take()) == 1
        position -= step


def word(board: Board, offset: int, value: int) -> None:
    os.pwrite(board.fd, struct.pack("=q", value), offset)


# --- progress ---------------------------------------------------------------------------------


def test_nothing_has_begun_at_first(boards: tuple[Board, Board]) -> None:
    before = time.monotonic()
    found = boards[0].progress()
    assert (found.index, found.out, found.err) == (-1, 0, 0)
    assert before <= found.start_s <= time.monotonic(), "it never looks as if it had run long"


def test_progress_is_that_of_the_last_call_begun(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    child.begin(0, 12.5, 3, 4)
    assert agent.progress() == Progress(0, 12.5, 3, 4)
    child.begin(MAX_CALLS - 1, 13.5, 2**40, 2**41)
    assert agent.progress() == Progress(MAX_CALLS - 1, 13.5, 2**40, 2**41)
    assert agent.begun(0) == Progress(0, 12.5, 3, 4), "earlier records stay"


def test_index_must_be_one_of_a_bundle(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    with pytest.raises(IndexError):
        child.begin(MAX_CALLS, 1.0, 0, 0)
    with pytest.raises(IndexError):
        agent.drop([MAX_CALLS])
    assert agent.progress().index == -1


def test_call_whose_start_cannot_be_seen_yet_looks_young(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    child.begin(4, 1.0, 0, 0)
    agent.reset()
    before = time.monotonic()
    word(agent, 0, 4 + 1)
    found = agent.progress()
    assert found.index == 4
    assert before <= found.start_s <= time.monotonic()


def test_reset_forgets_progress_and_drops_but_no_frames(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    child.begin(7, 1.0, 2, 3)
    child.put(b"kept")
    agent.drop([0, 7, MAX_CALLS - 1])
    agent.reset()
    assert agent.progress().index == -1
    assert all(child.begin(index, 1.0, 0, 0) for index in range(MAX_CALLS))
    assert agent.take() == [b"kept"]


def test_progress_read_meanwhile_is_never_torn() -> None:
    program = """
while True:
    for index in range(1, 8192):
        board.begin(index, index / 4, 2 * index, 3 * index)
"""
    with sides() as (agent, _), started(program, agent):
        while agent.progress().index < 0:
            pass
        seen = [agent.progress() for _ in range(20_000)]
    assert {one.index for one in seen} > {seen[0].index}
    assert [one for one in seen if one != record(one.index)] == []


def record(index: int) -> Progress:
    return Progress(index, index / 4, 2 * index, 3 * index)


# --- drops ------------------------------------------------------------------------------------


def test_dropped_calls_are_those_that_were_dropped(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    dropped = {0, 5, 4095, MAX_CALLS - 1}
    agent.drop(dropped)
    begun = {index for index in range(MAX_CALLS) if child.begin(index, 1.0, 0, 0)}
    assert begun == set(range(MAX_CALLS)) - dropped


def test_dropped_call_leaves_no_trace(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    agent.drop([0, 2])
    assert not child.begin(0, 1.0, 0, 0)
    assert agent.progress().index == -1
    assert child.begin(1, 1.5, 3, 4)
    assert not child.begin(2, 2.0, 0, 0)
    assert agent.progress() == Progress(1, 1.5, 3, 4)
    agent.reset()
    before = time.monotonic()
    assert min(agent.begun(index).start_s for index in range(3)) >= before


def test_child_stops_at_a_drop_and_the_agent_knows_where() -> None:
    program = """
for index in range(8192):
    if not board.begin(index, time.monotonic(), 0, 0):
        break
    time.sleep(0.0001)
print(index - 1, flush=True)
"""
    with sides() as (agent, _), started(program, agent) as process:
        while agent.progress().index < 3:
            pass
        agent.drop(range(MAX_CALLS))
        assert process.stdout is not None
        stopped_at = int(process.stdout.readline())
        assert agent.progress().index == stopped_at >= 3


# --- outbox -----------------------------------------------------------------------------------


def test_frames_come_out_in_order_and_once(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    frames = [b"one", b"", b"\0" * 20, b"two"]
    assert [child.put(frame) for frame in frames] == [True] * 4
    assert agent.take() == frames
    assert agent.take() == []


@pytest.mark.parametrize("position", [0, *range(RING_BYTES - 20, RING_BYTES + 4)])
@pytest.mark.parametrize("size", [0, 1, 7, 100, RING_BYTES - HEAD_BYTES])
def test_frame_is_whole_wherever_the_ring_ends(
    boards: tuple[Board, Board], position: int, size: int
) -> None:
    agent, child = boards
    move_to(position, agent, child)
    frame = bytes(range(256))[:size]
    assert child.put(frame)
    assert agent.take() == [frame]


@pytest.mark.parametrize("position", [0, 100, RING_BYTES - 1])
def test_exactly_full_ring_takes_nothing_more(boards: tuple[Board, Board], position: int) -> None:
    agent, child = boards
    move_to(position, agent, child)
    n_fit = RING_BYTES // 16
    assert all(child.put(b"%08d" % number) for number in range(n_fit))
    assert not child.put(b"")
    assert agent.take() == [b"%08d" % number for number in range(n_fit)]
    assert child.put(b"again")
    assert agent.take() == [b"again"]


def test_frame_larger_than_the_ring_is_refused_and_harms_nothing(
    boards: tuple[Board, Board],
) -> None:
    agent, child = boards
    assert child.put(b"before")
    assert not child.put(b"." * (RING_BYTES - HEAD_BYTES + 1))
    assert not child.put(b"." * 10_000)
    assert child.put(b"after")
    assert agent.take() == [b"before", b"after"]


def test_default_ring_takes_a_mebibyte() -> None:
    agent = Board.create()
    child = Board.attach(os.dup(agent.fd))
    assert not child.put(bytes(2**20 - HEAD_BYTES + 1))
    assert child.put(bytes(2**20 - HEAD_BYTES))
    assert agent.take() == [bytes(2**20 - HEAD_BYTES)]
    child.close()
    agent.close()


steps = st.lists(
    st.none() | st.binary(max_size=60) | st.integers(0, 300).map(lambda size: b"x" * size),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ring_bytes=st.integers(9, 300), script=steps)
def test_outbox_is_a_queue_of_limited_size(ring_bytes: int, script: list[bytes | None]) -> None:
    model, free = deque[bytes](), ring_bytes
    with sides(ring_bytes) as (agent, child):
        for frame in [*script, None]:
            if frame is None:
                assert agent.take() == list(model)
                model.clear()
                free = ring_bytes
                continue
            fits = len(frame) + HEAD_BYTES <= free
            assert child.put(frame) == fits
            if fits:
                model.append(frame)
                free -= len(frame) + HEAD_BYTES


def test_frame_of_which_the_end_is_not_there_yet_stays(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    assert child.put(b"complete")
    assert child.put(b"12345678")
    os.pwrite(agent.fd, b"\0\0\0\0", RING_AT + 28)
    assert agent.take() == [b"complete"]
    assert agent.take() == []
    os.pwrite(agent.fd, b"5678", RING_AT + 28)
    assert agent.take() == [b"12345678"]


def test_head_that_shows_before_an_old_frame_is_replaced_is_not_believed(
    boards: tuple[Board, Board],
) -> None:
    agent, child = boards
    for number in range(RING_BYTES // 16):
        child.put(b"old %04d" % number)
    assert len(agent.take()) == RING_BYTES // 16
    word(agent, HEAD_AT, RING_BYTES + 32)
    assert agent.take() == [], "the old frames still lie there, whole and of the same size"
    word(agent, HEAD_AT, RING_BYTES)
    assert child.put(b"new 0000")
    assert agent.take() == [b"new 0000"]


@pytest.mark.parametrize("n_bytes", [1, 8, 16, 100])
def test_head_that_shows_before_the_first_frame_is_not_believed(
    boards: tuple[Board, Board], n_bytes: int
) -> None:
    word(boards[0], HEAD_AT, n_bytes)
    assert boards[0].take() == []


def test_positions_beyond_four_bytes_do_not_matter(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    for position in (2**32 - 10, 2**40 + 3):
        word(agent, HEAD_AT, position)
        word(agent, TAIL_AT, position)
        for number in range(100):
            assert child.put(b"%d" % number)
            assert agent.take() == [b"%d" % number]


def test_all_frames_of_a_busy_child_come_in_order() -> None:
    n_frames = 200_000
    program = f"""
for number in range({n_frames}):
    frame = b"%d" % number
    while not board.put(frame):
        time.sleep(0.0001)
"""
    found = list[bytes]()
    with sides(2**16) as (agent, _), started(program, agent) as process:
        while process.poll() is None:
            found += agent.take()
            time.sleep(0.0005)  # leaves the core to the child
        found += agent.take()
    assert found == [b"%d" % number for number in range(n_frames)]


@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.02])
def test_killed_child_takes_no_frame_with_it_that_was_in(after_s: float) -> None:
    program = """
number = 0
while True:
    if board.put(b"%d" % number + b"." * (number % 300)):
        os.write(1, b".")
        number += 1
"""
    found = list[bytes]()
    with sides(2**14) as (agent, _), started(program, agent) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        deadline = time.monotonic() + after_s
        n_put = 1
        os.set_blocking(process.stdout.fileno(), False)
        while time.monotonic() < deadline:
            found += agent.take()
            n_put += len(process.stdout.read() or b"")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        n_put += len(process.stdout.read() or b"")
        found += agent.take()
    assert n_put <= len(found) <= n_put + 1, "at most the last one was put and not yet reported"
    expected = (b"%d" % number + b"." * (number % 300) for number in range(len(found)))
    assert found == list(expected)


# --- descriptors ------------------------------------------------------------------------------


def n_open() -> int:
    gc.collect()
    return len(list(Path("/dev/fd").iterdir()))


def test_no_descriptor_stays_open() -> None:
    before = n_open()
    for _ in range(5):
        with sides():
            pass
    assert n_open() == before


def test_descriptor_may_be_closed_and_the_memory_stays(boards: tuple[Board, Board]) -> None:
    agent, child = boards
    agent.close_fd()
    agent.close_fd()
    assert agent.fd == child.fd == -1
    assert child.put(b"still there")
    assert agent.take() == [b"still there"]


def test_programs_of_the_child_do_not_inherit_the_memory() -> None:
    program = """
import subprocess
count = "import os; print(len(os.listdir('/dev/fd')))"
print(subprocess.check_output([sys.executable, "-c", count], close_fds=False).decode())
"""
    counted = subprocess.check_output(
        [sys.executable, "-c", "import os; print(len(os.listdir('/dev/fd')))"]
    )
    with sides() as (agent, _), started(program, agent) as process:
        assert process.stdout is not None
        assert int(process.stdout.read()) == int(counted)


def test_import_is_light() -> None:
    program = "import exadask.runtime.board, sys; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "dask", "distributed", "psutil", "asyncio"} & set(loaded) == set()
