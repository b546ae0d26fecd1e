"""The journal: what was put is there, whatever happens to the process, the file and the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exadask.errors import RunFolderError
from exadask.journal import journal as journal_module
from exadask.journal.database import is_local
from exadask.journal.journal import Journal
from exadask.journal.lock import RunLock
from exadask.journal.reading import Lookup, RunRecord
from exadask.journal.rows import (
    AllocationRow,
    AttemptRow,
    EventRow,
    FunctionRow,
    ResultRow,
    SessionRow,
    TaskRow,
    checksum_of,
)
from exadask.testing.waiting import eventually

NAME = "journal.sqlite"


def task(number: int, state: str = "done") -> TaskRow:
    return TaskRow(number, f"f-{number}", 1, 1, 1, 1.0, 2.0, 3.0, state, None, None)


def attempt(number: int, error: str | None = None) -> AttemptRow:
    outcome = "done" if error is None else "failed"
    where = ("node-0", "0", "")
    return AttemptRow(number, 1, *where, 2.0, 3.0, outcome, error, error, None, 1.0, 0.5, 100)


def allocation(name: str, began: float | None, cost: float | None) -> AllocationRow:
    return AllocationRow(name, "cpu", "4711", "live", 4, 1.0, began, None, cost, "")


def result(number: int) -> ResultRow:
    value = f"value {number}".encode()
    return ResultRow(number.to_bytes(16, "big"), number, value, checksum_of(value), None)


@contextlib.contextmanager
def written(folder: Path, **options: bool) -> Iterator[Journal]:
    journal = Journal(folder / NAME, interval_s=0.01, **options)
    try:
        yield journal
    finally:
        journal.close()


@pytest.mark.parametrize("is_shared", [False, True], ids=["local", "network"])
def test_what_was_put_is_read_while_it_is_written_and_afterwards(
    tmp_path: Path, is_shared: bool
) -> None:
    with written(tmp_path, is_shared=is_shared) as journal:
        journal.put(SessionRow(1, 1.0, None, "host", 7, "[]", "0"))
        journal.put(FunctionRow(1, "f", "f.py:1", '{"cores": 1}', None))
        for number in range(1, 101):
            journal.put(task(number, "waiting"))
            journal.put(task(number))
            journal.put(attempt(number))
        journal.put(task(101, "failed"))
        journal.put(attempt(101, "ValueError"))
        assert journal.flush()
        with RunRecord.opened(tmp_path) as record:
            assert record.counts() == {"done": 100, "failed": 1}
    with RunRecord.opened(tmp_path) as record:
        assert [one.id for one in record.find("f-7")] == [7]
        assert [one.id for one in record.find("9")] == [9]
        assert len(record.find("f")) == 20
        assert record.attempts(5) == [attempt(5)]
        ((failed, function, reason),) = record.failures()
        assert (failed.id, function.name, reason) == (101, "f", attempt(101, "ValueError"))
        assert len(record.used(1)) == 101


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    with written(tmp_path) as journal:
        assert journal.numbers == (1, 1, 1)
        journal.put(SessionRow(1, 1.0, None, "host", 7, "[]", "0"))
        journal.put(task(41))
        journal.put(FunctionRow(3, "f", "", "{}", None))
    with written(tmp_path) as journal:
        assert journal.numbers == (2, 42, 4)


WRITER = """
import sys, itertools
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_journal import *
journal = Journal(Path(sys.argv[1]) / NAME, interval_s=0.001, is_shared=sys.argv[2] == "True")
for number in itertools.count(1):
    journal.put(task(number))
    journal.put(attempt(number))
    journal.put(result(number))
    if number % 500 == 0:
        journal.flush()
        print(number, flush=True)
"""


@pytest.mark.parametrize("is_shared", [False, True], ids=["local", "network"])
def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path, is_shared: bool) -> None:
    chance = random.Random(3)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(is_shared), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        n_flushed = [int(writer.stdout.readline()) for _ in range(chance.randint(1, 6))][-1]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with RunRecord.opened(tmp_path) as record:
            found = {one.id for one in record.tasks()}
            assert found.issuperset(range(1, n_flushed + 1))
        with written(tmp_path, is_shared=is_shared) as journal:
            journal.put(task(1, "cancelled"))
        with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "exadask-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_nothing_and_spoils_nothing(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with written(small_disk) as journal:
        journal.put(task(1))
        assert journal.flush()
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for number in range(2, 2002):
            journal.put(task(number))
        assert not journal.flush(5)
        assert journal.problem is not None
        warnings = [one for one in caplog.records if "cannot be written" in one.message]
        assert len(warnings) == 1, "the user is told once"
        ballast.unlink()
        eventually(lambda: journal.problem is None, timeout_s=20)
        journal.put(task(3000))
        assert journal.flush()
    with RunRecord.opened(small_disk) as record:
        assert record.counts() == {"done": 2002}
        assert [one.kind for one in record.events()] == ["journal"]
    with contextlib.closing(sqlite3.connect(small_disk / NAME)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_journal_that_is_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with written(folder) as journal:
        journal.put(task(1))
        assert journal.flush()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        journal.put(task(2))
        assert journal.flush()
    with RunRecord.opened(folder) as record:
        assert [one.id for one in record.tasks()] == [2]


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"):
        Journal(tmp_path / "file" / NAME)


@pytest.mark.parametrize("damage", ["cut", "garbled", "nonsense"])
def test_a_damaged_journal_is_set_aside_and_what_is_sound_goes_on(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with written(tmp_path) as journal:
        for number in range(1, 2001):
            journal.put(task(number))
            journal.put(result(number))
    path = tmp_path / NAME
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "cut":
        path.write_bytes(whole[:middle])
    elif damage == "garbled":
        path.write_bytes(whole[:middle] + os.urandom(9000) + whole[middle + 9000 :])
    else:
        path.write_bytes(b"no database" * 1000)
    with written(tmp_path) as journal:
        journal.put(task(5000))
    assert [one.name for one in tmp_path.glob("*.damaged-*")] == [f"{NAME}.damaged-1"]
    assert "is damaged" in caplog.text
    lookup = Lookup(path, is_shared=False)
    found = [lookup.result(number.to_bytes(16, "big")) for number in range(1, 2001)]
    lookup.close()
    for number, row in enumerate(found, start=1):
        assert row in (None, result(number)), "never a wrong one"
    if damage == "garbled":
        assert sum(row is not None for row in found) > 500


def test_a_wrong_result_is_not_given(tmp_path: Path) -> None:
    with written(tmp_path) as journal:
        journal.put(result(1)._replace(value=b"another"))
        journal.put(result(2))
        assert journal.flush()
        lookup = Lookup(tmp_path / NAME, is_shared=False)
        assert lookup.result((1).to_bytes(16, "big")) is None
        assert lookup.result((2).to_bytes(16, "big")) == result(2)
        assert lookup.result((3).to_bytes(16, "big")) is None
        lookup.close()


def test_a_journal_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as plain:
        plain.execute("PRAGMA user_version=99")
        plain.execute("CREATE TABLE sessions (id)")
        plain.commit()
    for attempt_to_use in (
        lambda: Journal(tmp_path / NAME),
        lambda: RunRecord.opened(tmp_path).__enter__(),
    ):
        with pytest.raises(RunFolderError, match="version 99"):
            attempt_to_use()


def test_a_run_without_a_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no journal"), RunRecord.opened(tmp_path):
        pass


def test_rows_are_kept_while_there_is_memory_and_results_longest(tmp_path: Path) -> None:
    journal = Journal(tmp_path / NAME, interval_s=0.01, most_held=100)
    blocked = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    journal._connection.execute("PRAGMA busy_timeout=1")  # type: ignore[union-attr]  # it is open
    blocked.execute("BEGIN EXCLUSIVE")
    journal.put(result(1))
    for number in range(500):
        journal.put(task(number))
    assert not journal.flush(5)
    blocked.execute("ROLLBACK")
    blocked.close()
    eventually(lambda: journal.problem is None, timeout_s=20)
    journal.close()
    with RunRecord.opened(tmp_path) as record:
        ((*_, text),) = record.events()
        assert "401 rows are lost" in text
        assert [one.id for one in record.tasks()] == list(range(401, 500))
    lookup = Lookup(tmp_path / NAME, is_shared=False)
    assert lookup.result((1).to_bytes(16, "big")) == result(1)
    lookup.close()


def test_one_process_alone_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal.lock"
    lock = RunLock(path)
    lock.acquire()
    with pytest.raises(RunFolderError, match=f"process {os.getpid()} on .* writes there"):
        RunLock(path).acquire()
    lock.release()
    program = (
        "import sys, time; from pathlib import Path; from exadask.journal.lock import RunLock\n"
        "RunLock(Path(sys.argv[1])).acquire(); print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program.replace("RunLock(Path", "lock = RunLock(Path").replace(
                ".acquire()", "; lock.acquire()"
            ),
            path,
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(RunFolderError, match=f"process {holder.pid} on"):
        RunLock(path).acquire()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    lock.acquire()
    lock.release()


def test_network_file_systems_are_recognised() -> None:
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n"
        "lustre@tcp:/scratch /scratch lustre rw 0 0\ntmpfs /scratch/fast tmpfs rw 0 0\n"
    )
    assert is_local(Path("/data"), mounts)
    assert not is_local(Path("/home/me"), mounts)
    assert not is_local(Path("/scratch/run"), mounts)
    assert is_local(Path("/scratch/fast/run"), mounts)


def test_rows_are_asked_for_and_a_fault_there_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with written(tmp_path) as journal:
        given = [EventRow(None, time.time(), "test", "a", "b")]
        journal.on_drain = lambda: [given.pop()] if given else []
        assert journal.flush()
        journal.on_drain = lambda: 1 / 0  # type: ignore[assignment]  # a fault
        journal.put(task(1))
        with caplog.at_level(logging.CRITICAL, "exadask"):
            assert journal.flush()
        journal.on_drain = None
    with RunRecord.opened(tmp_path) as record:
        assert record.counts() == {"done": 1}
        assert [one.kind for one in record.events()] == ["test"]


def test_a_row_that_no_database_takes_keeps_no_other_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with written(tmp_path) as journal:
        journal.put(task(1))
        journal.put(attempt(1, "half a character: \ud800"))
        journal.put(task(2)._replace(n_tasks=2**80))
        journal.put(task(3)._replace(node=object()))  # type: ignore[arg-type]  # a fault
        journal.put(task(4))
        assert journal.flush()
    assert caplog.text.count("a row cannot be written") == 3
    with RunRecord.opened(tmp_path) as record:
        assert [one.id for one in record.tasks()] == [1, 4]


def test_results_are_found_below_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "100%41?b#c"
    folder.mkdir()
    with written(folder) as journal:
        journal.put(result(1))
        assert journal.flush()
        lookup = Lookup(folder / NAME, is_shared=False)
        assert lookup.result((1).to_bytes(16, "big")) == result(1)
        lookup.close()


def test_rows_of_kinds_that_alternate_share_statements(tmp_path: Path) -> None:
    statements: list[str] = []
    with written(tmp_path) as journal:
        assert journal._connection is not None
        journal._connection.set_trace_callback(statements.append)
        given = [row for number in range(256) for row in (task(number), result(number))]
        journal.on_drain = lambda: [given.pop(0) for _ in range(len(given))]
        assert journal.flush()
        journal._connection.set_trace_callback(None)
    assert sum(one.startswith("INSERT") for one in statements) == 2


def test_an_old_sqlite_takes_the_statements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MOST_VALUES", 999)
    with written(tmp_path) as journal:
        assert journal._connection is not None
        if not hasattr(journal._connection, "setlimit"):
            pytest.skip("Python 3.10 cannot set the limit")
        journal._connection.setlimit(9, 999)  # SQLITE_LIMIT_VARIABLE_NUMBER
        for number in range(1, 301):
            journal.put(task(number))
        assert journal.flush(), journal.problem


def test_a_journal_is_opened_again_after_its_file_system_failed(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with written(tmp_path, is_shared=True) as journal:
        journal.put(task(1))
        assert journal.flush()
        broken = os.open("/dev/null", os.O_WRONLY)  # reading from it is an error
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if link.readlink() == path:
                    os.dup2(broken, int(link.name))
        os.close(broken)
        journal.put(task(2))
        eventually(lambda: journal.flush(1), timeout_s=10)
    with RunRecord.opened(tmp_path) as record:
        assert record.counts() == {"done": 2}


@pytest.mark.parametrize("wanted", ["\u00b2", "9" * 30, "f-" + "9" * 30, "x\ud800"])
def test_what_can_be_no_task_is_not_found(tmp_path: Path, wanted: str) -> None:
    with written(tmp_path) as journal:
        journal.put(task(1))
    with RunRecord.opened(tmp_path) as record:
        assert record.find(wanted) == []


def test_what_is_put_after_the_end_is_not_said_to_be_written(tmp_path: Path) -> None:
    with written(tmp_path) as journal:
        pass
    journal.put(task(1))
    assert not journal.flush(1)


def test_what_a_run_spent_includes_allocations_whose_end_nobody_saw(tmp_path: Path) -> None:
    with written(tmp_path) as journal:
        journal.put(allocation("cpu-0", 10.0, 200.0))
        journal.put(allocation("cpu-1", 20.0, None))
        journal.put(allocation("cpu-2", None, None))
    with RunRecord.opened(tmp_path) as record:
        assert record.spent(until=50.0) == 200.0 + 4 * 30.0
        assert record.spent(until=5.0) == 200.0
