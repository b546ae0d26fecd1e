"""Every way a task can go wrong, next to eight neighbours that must not notice."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

import exadask as xd
from exadask.errors import MemoryExceeded, TaskCrashed, TimeExceeded
from exadask.runtime.limits import MARK, is_alive, marked
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(90)

MIB = 2**20
N_NEIGHBOURS = 8


@pytest.fixture(scope="module")
def node() -> Iterator[xd.Executor]:
    shape = xd.NodeShape.declare(cores=16, memory="16GiB")
    with xd.Executor(nodes=[shape], kill_grace_s=0.5) as executor:
        yield executor


def compute_until(go: Path, number: int) -> tuple[int, int]:
    """Work until told to stop; only a process that lives all the time gives its pid twice."""
    pid, total = os.getpid(), 0
    while not go.exists():
        total += sum(range(1000)) % 7
        time.sleep(0.01)
    return number, pid - os.getpid()


@pytest.fixture
def neighbours(node: xd.Executor, tmp_path: Path) -> Iterator[list[xd.Future[Any]]]:
    """Let eight tasks run during the test; afterwards check that nobody disturbed them."""
    go = tmp_path / "go"
    futures = [node.submit(compute_until, go, number) for number in range(N_NEIGHBOURS)]
    eventually(lambda: all(future.running() for future in futures))
    yield futures
    assert all(future.running() for future in futures)
    go.touch()
    assert [future.result(30) for future in futures] == [(n, 0) for n in range(N_NEIGHBOURS)]
    assert {future.attempts for future in futures} == {1}


def noted_pids(notes: Path) -> list[int]:
    """Read the pids that processes have written to a folder, one file each."""
    return [int(file.read_text()) for file in notes.glob("*.pid") if file.read_text().strip()]


def note(notes: Path, name: str, text: object) -> None:
    """Write a note as a whole or not at all."""
    (notes / f"{name}.new").write_text(str(text))
    (notes / f"{name}.new").rename(notes / name)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


# -- memory -----------------------------------------------------------------------------------


def allocate(log: Path, step_bytes: int, most_bytes: int) -> None:
    """Take memory step by step; write down when how much was taken."""
    blocks: list[bytes] = []
    with log.open("a", buffering=1) as file:
        while len(blocks) * step_bytes < most_bytes:
            blocks.append(b"x" * step_bytes)
            file.write(f"{time.monotonic()} {len(blocks) * step_bytes}\n")
            time.sleep(0.02)  # a pace that a real program may have
        time.sleep(60)


def times_over_s(log: Path, limit_bytes: int) -> list[float]:
    """Find when the task took more although it was over the limit: the crossing comes first."""
    steps = [line.split() for line in log.read_text().splitlines()]
    return [float(time_s) for time_s, taken in steps if int(taken) > limit_bytes]


@pytest.mark.usefixtures("neighbours")
def test_task_over_its_memory_is_ended_within_a_second(node: xd.Executor, tmp_path: Path) -> None:
    log, limit = tmp_path / "log", 300 * MIB
    future = node.options(memory="300MiB").submit(allocate, log, 20 * MIB, 2048 * MIB)
    error = future.exception(60)
    ended_s = time.monotonic()
    assert isinstance(error, MemoryExceeded)
    assert error.asked == limit
    assert limit < error.peak < 2048 * MIB
    assert error.node == "node-0"
    assert "memory='" in str(error)
    over_s = times_over_s(log, limit)
    assert over_s[-1] - over_s[0] < 1.0, "it went on for too long"
    assert ended_s - over_s[0] < 5.0, "the news took too long, even on a busy machine"
    assert future.usage is not None
    assert future.usage.peak_bytes >= error.peak


@pytest.mark.usefixtures("neighbours")
def test_memory_of_grandchildren_counts(node: xd.Executor, notes: Path) -> None:
    program = f"x = b'x' * {600 * MIB}; import time; time.sleep(60)"

    def delegate() -> None:
        child = subprocess.Popen([sys.executable, "-c", program])
        note(notes, "child.pid", child.pid)
        child.wait()

    future = node.options(memory="300MiB").submit(delegate)
    with pytest.raises(MemoryExceeded):
        future.result(60)
    assert [pid for pid in noted_pids(notes) if is_alive(pid)] == []


def test_task_within_its_memory_is_left_alone(node: xd.Executor, tmp_path: Path) -> None:
    def take_and_go() -> int:
        return len(b"x" * (200 * MIB))

    future = node.options(memory="300MiB").submit(take_and_go)
    assert future.result(60) == 200 * MIB


def test_node_without_memory_ends_the_greediest_that_did_not_ask(tmp_path: Path) -> None:
    shape = xd.NodeShape.declare(cores=4, memory="600MiB")

    def hold(megabytes: int, go: Path) -> int:
        block = b"x" * (megabytes * MIB)
        while not go.exists():
            time.sleep(0.01)
        return len(block) // MIB

    go = tmp_path / "go"
    with xd.Executor(nodes=[shape]) as executor:
        modest = executor.submit(hold, 50, go)
        asked = executor.options(memory="300MiB").submit(hold, 200, go)
        eventually(lambda: modest.running() and asked.running())
        greedy = executor.submit(allocate, tmp_path / "log", 20 * MIB, 2048 * MIB)
        error = greedy.exception(60)
        go.touch()
        assert modest.result(30) == 50
        assert asked.result(30) == 200
    assert isinstance(error, MemoryExceeded)
    assert error.asked == 600 * MIB


# -- crashes ----------------------------------------------------------------------------------


def touch_address_zero() -> None:
    ctypes.string_at(0)


@pytest.mark.usefixtures("neighbours")
def test_segfault_names_the_signal_and_the_function(node: xd.Executor) -> None:
    with pytest.raises(TaskCrashed) as caught:
        node.submit(touch_address_zero).result(30)
    assert caught.value.signal == "SIGSEGV"
    assert caught.value.exit_code is None
    assert "in touch_address_zero" in caught.value.stderr_tail
    assert "faulthandler" in str(caught.value)


@pytest.mark.usefixtures("neighbours")
def test_exit_of_the_process_is_reported_with_its_code(node: xd.Executor) -> None:
    with pytest.raises(TaskCrashed, match="exit code 3") as caught:
        node.submit(os._exit, 3).result(30)
    assert (caught.value.signal, caught.value.exit_code) == (None, 3)


@pytest.mark.usefixtures("neighbours")
def test_processes_that_die_while_idle_are_forgotten() -> None:
    """Each has files for what its tasks write: a node that forgot none would run out of them."""
    counts = list[int]()
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)]) as ex:
        for _ in range(20):
            idle = psutil.Process(ex.submit(os.getpid).result())
            idle.kill()
            eventually(lambda one=idle: not one.is_running())  # type: ignore[misc]  # bound now
            gc.collect()
            counts.append(psutil.Process().num_fds())
    assert max(counts[10:]) <= max(counts[:10]) + 6


def test_signal_from_outside_is_named(node: xd.Executor) -> None:
    def kill_myself() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TaskCrashed, match="memory= request") as caught:
        node.submit(kill_myself).result(30)
    assert caught.value.signal == "SIGKILL"


# -- time -------------------------------------------------------------------------------------


def loop_in_c() -> int:
    return sum(range(10**13))


def match_for_ever() -> object:
    return re.match(r"(a+)+$", "a" * 60 + "b")


def wait_in_c() -> None:
    ctypes.CDLL(None).pause()


def refuse_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize("function", [loop_in_c, match_for_ever, wait_in_c, refuse_to_end])
def test_endless_task_is_ended_at_its_time(
    node: xd.Executor, function: Callable[[], object]
) -> None:
    start_s = time.monotonic()
    with pytest.raises(TimeExceeded, match=r"time limit of 0.5 s.*Raise time=") as caught:
        node.options(time="0.5s").submit(function).result(30)
    assert caught.value.limit_s == 0.5
    assert 0.5 <= time.monotonic() - start_s < 10


# -- processes that tasks start ---------------------------------------------------------------

DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
path = sys.argv[1]
open(path + ".new", "w").write(str(os.getpid()))
os.rename(path + ".new", path)
time.sleep(600)
"""
STUBBORN = "trap '' TERM; echo $$ > $0.new; mv $0.new $0; while :; do sleep 1; done"


def start_daemon(notes: Path, **more: Any) -> None:
    subprocess.run([sys.executable, "-c", DAEMON, str(notes / "daemon.pid")], check=True, **more)


def start_family(notes: Path) -> None:
    """Start a shell with a sleeper, one that ignores SIGTERM, and a daemon; then sleep."""
    note(notes, "mark", os.environ[MARK])
    note(notes, "self.pid", os.getpid())
    shell = subprocess.Popen(["/bin/sh", "-c", "sleep 600 & sleep 600; true"])
    note(notes, "shell.pid", shell.pid)
    subprocess.Popen(["/bin/sh", "-c", STUBBORN, str(notes / "stubborn.pid")])
    start_daemon(notes)
    time.sleep(600)


@pytest.mark.usefixtures("neighbours")
def test_cancel_ends_the_whole_family(node: xd.Executor, notes: Path) -> None:
    future = node.submit(start_family, notes)
    eventually(lambda: len(noted_pids(notes)) == 4)
    mark = (notes / "mark").read_text()
    assert len(marked(mark)) >= 5
    assert future.cancel()
    eventually(lambda: not any(map(is_alive, noted_pids(notes))), timeout_s=10)
    eventually(lambda: not any(map(is_alive, marked(mark))), timeout_s=10)


def leave_child(notes: Path) -> str:
    child = subprocess.Popen(["sleep", "600"])
    note(notes, "child.pid", child.pid)
    child.returncode = 0  # or Python warns that it still runs
    return "done"


def leave_orphan(notes: Path) -> str:
    """Do what `server &` in a script does."""
    line = f"sleep 600 & echo $! > {notes}/orphan.new; mv {notes}/orphan.new {notes}/orphan.pid"
    subprocess.run(["/bin/sh", "-c", line], check=True)
    return "done"


def leave_daemon(notes: Path) -> str:
    start_daemon(notes)
    eventually(lambda: noted_pids(notes))
    return "done"


def leave_nameless_daemon(notes: Path) -> str:
    """Start a daemon that has not inherited the environment, and so not the mark."""
    start_daemon(notes, env={})
    eventually(lambda: noted_pids(notes))
    return "done"


@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize(
    "function",
    [
        leave_child,
        leave_orphan,
        leave_daemon,
        leave_nameless_daemon,
    ],
)
def test_process_that_is_left_behind_is_ended(
    node: xd.Executor, notes: Path, function: Callable[[Path], str]
) -> None:
    assert node.submit(function, notes).result(30) == "done"
    (left,) = noted_pids(notes)
    try:
        eventually(lambda: not is_alive(left), timeout_s=5)
    finally:
        if is_alive(left):
            os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_works_in_a_task(node: xd.Executor, method: str) -> None:
    def roots() -> list[float]:
        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(math.sqrt, [1, 4, 9])

    assert node.submit(roots).result(60) == [1, 2, 3]
