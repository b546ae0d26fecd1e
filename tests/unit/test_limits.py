"""Families of real processes are found, measured and ended, whatever they do."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from exadask.runtime.leftovers import remove_leftovers
from exadask.runtime.limits import (
    MARK,
    descendants_of,
    end_family,
    exact_memory_of,
    family_of,
    is_alive,
    marked,
    memory_of,
)
from exadask.runtime.memory_watch import MemoryWatch
from exadask.testing.waiting import eventually

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
    pytest.mark.timeout(30),
]

MIB = 2**20
Start = Callable[[str], subprocess.Popen[bytes]]

DAEMON = "(setsid sh -c 'echo $$ > pid; exec sleep 600' &) ; exec sleep 600"
STUBBORN = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done"


@pytest.fixture
def mark() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def start(mark: str, tmp_path: Path) -> Iterator[Start]:
    """Start shells that bear the mark, in a folder of their own; end all of them at the end."""
    started = []

    def start_shell(line: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, MARK: mark}
        started.append(
            subprocess.Popen(
                ["/bin/sh", "-c", line], env=environment, cwd=tmp_path, start_new_session=True
            )
        )
        return started[-1]

    yield start_shell
    for process in started:  # which may have no mark yet
        process.kill()
        process.wait()
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pid_in(tmp_path: Path) -> int:
    """Wait for the pid that a shell writes."""
    file = tmp_path / "pid"
    eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def allocating(megabytes: int) -> str:
    program = f"x = b'x' * {megabytes * MIB}; open('pid', 'w').write('1\\n'); input()"
    return f'exec {sys.executable} -S -c "{program}" < /dev/zero'


def test_descendants_are_found_at_any_depth(start: Start) -> None:
    process = start("sh -c 'sleep 600 & sleep 600; true' & wait")
    eventually(lambda: len(descendants_of([process.pid])[process.pid]) == 3)
    own = descendants_of([os.getpid(), process.pid])
    assert set(own[process.pid]) < set(own[os.getpid()])


def test_process_that_is_unknown_has_no_descendants() -> None:
    assert descendants_of([2**22 + 1]) == {2**22 + 1: []}
    assert descendants_of([]) == {}


def test_mark_is_found_by_its_prefix_and_nothing_else(start: Start, mark: str) -> None:
    process = start("exec sleep 600")
    eventually(lambda: marked(mark) == {process.pid})
    assert marked(mark[:-4]) == {process.pid}
    assert marked(f"{mark}.1") == set()
    assert os.getpid() not in marked(mark)


def test_family_has_those_who_left(start: Start, mark: str, tmp_path: Path) -> None:
    process = start(DAEMON)
    daemon = pid_in(tmp_path)
    eventually(lambda: daemon not in descendants_of([process.pid])[process.pid])
    assert {process.pid, daemon} <= family_of(process.pid, mark)


def test_a_mark_that_another_begins_with_is_another(start: Start, mark: str) -> None:
    process = start("exec sleep 600")
    eventually(lambda: family_of(None, mark) == {process.pid})
    end_family(None, mark[:-1], grace_s=0)
    assert process.poll() is None, "the slot .1 is not the slot .12"
    end_family(None, mark, grace_s=0)
    assert process.wait() == -signal.SIGKILL


def test_family_is_known_after_its_head_has_died(start: Start, mark: str, tmp_path: Path) -> None:
    process = start("sh -c 'echo $$ > pid; exec sleep 600' & exit 0")
    process.wait()
    child = pid_in(tmp_path)
    # While it becomes another program it has no mark for an instant.
    eventually(lambda: family_of(process.pid, mark) == {child})


def test_zombie_is_no_member(start: Start, mark: str) -> None:
    process = start("exit 0")
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert family_of(process.pid, mark) == set()


@pytest.mark.parametrize("grace_s", [0, 5])
def test_family_is_ended(start: Start, mark: str, tmp_path: Path, grace_s: float) -> None:
    process = start(DAEMON)
    daemon = pid_in(tmp_path)
    start_s = time.monotonic()
    end_family(process.pid, mark, grace_s=grace_s)
    assert time.monotonic() - start_s < 3, "those who go by themselves need no grace"
    assert not is_alive(daemon)
    assert family_of(process.pid, mark) == set()


def test_who_ignores_sigterm_is_killed_after_the_grace(
    start: Start, mark: str, tmp_path: Path
) -> None:
    process = start(STUBBORN)
    pid_in(tmp_path)
    start_s = time.monotonic()
    end_family(process.pid, mark, grace_s=0.3)
    assert 0.3 <= time.monotonic() - start_s < 5
    assert process.wait() == -signal.SIGKILL


def test_who_obeys_sigterm_may_tidy_up(start: Start, mark: str, tmp_path: Path) -> None:
    process = start("trap 'touch tidy; exit 0' TERM; echo $$ > pid; while :; do sleep 0.01; done")
    pid_in(tmp_path)
    end_family(process.pid, mark, grace_s=10)
    assert process.wait() == 0
    assert (tmp_path / "tidy").exists()


def test_who_starts_others_for_ever_is_ended(start: Start, mark: str, tmp_path: Path) -> None:
    process = start("echo $$ > pid; while :; do sleep 600 & sleep 0.02; done")
    pid_in(tmp_path)
    end_family(process.pid, mark, grace_s=0)
    assert family_of(process.pid, mark) == set()


def test_large_process_is_really_gone(start: Start, mark: str, tmp_path: Path) -> None:
    """The kernel takes a while to free its memory; meanwhile it shows neither mark nor parent."""
    program = (
        f"import os; x = b'x' * {400 * MIB}; "
        "open('pid', 'w').write(str(os.getpid()) + '\\n'); input()"
    )
    process = start(f'{sys.executable} -S -c "{program}" < /dev/zero; true')
    large = pid_in(tmp_path)
    end_family(process.pid, mark, grace_s=0)
    assert not is_alive(large)


def test_ending_who_has_ended_does_nothing(start: Start, mark: str) -> None:
    process = start("exit 0")
    process.wait()
    end_family(process.pid, mark, grace_s=5)


def test_memory_is_measured(start: Start, tmp_path: Path) -> None:
    process = start(allocating(100))
    pid_in(tmp_path)
    for measure in (memory_of, exact_memory_of):
        assert 100 * MIB <= measure([process.pid]) < 140 * MIB
        assert measure([process.pid, process.pid]) >= 200 * MIB


def test_memory_of_nobody_is_nothing() -> None:
    assert memory_of([]) == exact_memory_of([]) == 0
    assert memory_of([2**22 + 1]) == exact_memory_of([2**22 + 1]) == 0


def test_what_is_shared_is_divided_in_the_exact_measure(start: Start, tmp_path: Path) -> None:
    program = (
        f"import os; x = b'x' * {100 * MIB}; pid = os.fork(); "
        "pid and open('pid', 'w').write(str(pid) + '\\n'); input()"
    )
    process = start(f'exec {sys.executable} -S -c "{program}" < /dev/zero')
    both = [process.pid, pid_in(tmp_path)]
    assert memory_of(both) >= 200 * MIB
    assert 100 * MIB <= exact_memory_of(both) < 150 * MIB


class Task:
    """A task that is watched."""

    limit_bytes = 50 * MIB

    def __init__(self, pid: int, mark: str) -> None:
        self.pids, self.mark = (pid,), mark
        self.peaks_bytes: list[int] = []

    def exceeded(self, peak_bytes: int, _: int) -> None:
        self.peaks_bytes.append(peak_bytes)


@pytest.mark.parametrize("is_marked", [True, False])
def test_rank_that_somebody_else_has_started_counts_if_it_bears_the_mark(
    start: Start, mark: str, tmp_path: Path, is_marked: bool
) -> None:
    """A batch system's daemon starts it, so it is no descendant; an unmarked one is a stranger."""
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    rank = start(allocating(100))
    pid_in(tmp_path)
    task = Task(start("exec sleep 600").pid, mark if is_marked else f"{mark}-of-another")

    async def watch() -> tuple[int, bool, bool]:
        watching = MemoryWatch(1.0, 2**40, ranks)
        watching.add(task)
        await watching.look()
        assert task.peaks_bytes == []
        (ranks / f"{task.mark}-{rank.pid}").touch()
        await watching.look()
        had_ranks = watching.forget_ranks(task.mark), watching.forget_ranks(task.mark)
        return watching.discard(task), *had_ranks

    peak_bytes, *had_ranks = asyncio.run(watch())
    assert (peak_bytes > 60 * MIB) == bool(task.peaks_bytes) == is_marked
    assert had_ranks == [True, False]
    assert list(ranks.iterdir()) == []


def test_shared_memory_that_a_killed_rank_leaves_is_removed_and_no_other(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("mpich_shm_1_0", "mpich_shm_2_0", "of_the_user")}
    for file in files.values():
        file.write_bytes(bytes(4096))
        os.utime(file, (time.time() - 10,) * 2)
    young = tmp_path / "mpich_shm_3_0"
    with files["mpich_shm_1_0"].open("r+b") as used, mmap.mmap(used.fileno(), 4096):
        young.touch()
        assert remove_leftovers(tmp_path) == {files["mpich_shm_2_0"]}
    assert remove_leftovers(tmp_path) == {files["mpich_shm_1_0"]}
    assert files["of_the_user"].exists()
    assert remove_leftovers(tmp_path / "missing") == set()
