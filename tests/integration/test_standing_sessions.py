"""Sessions of a standing scheduler: beside each other, ended by force, and left without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import exadask as xd
from exadask.runtime import gateway, pooled_cluster
from exadask.runtime.limits import is_alive
from exadask.testing.waiting import eventually

pytestmark = pytest.mark.dask

LONG_S = 60
SOON_S = 15
COMMAND = "from exadask.cli.main import main; main()"

# Submits tasks that note where they run; waits for them and prints their sum.
SESSION = """
import os, signal, sys, time
from pathlib import Path
import exadask as xd

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where it was ignored
run, count, seconds, factor, folder = sys.argv[1], *map(float, sys.argv[2:5]), Path(sys.argv[5])

def work(number):
    note = folder / f"{factor:g}-{number}"
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    time.sleep(seconds)
    return factor * number

with xd.Executor(attach=run) as ex:
    futures = [ex.submit(work, number) for number in range(int(count))]
    print(sum(one.result() for one in futures), flush=True)
"""


@dataclass(frozen=True)
class Home:
    """A folder where runs are, and the commands that are given there."""

    folder: Path

    def exadask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=self.folder,
            env={**os.environ, "EXADASK_RUN_FOLDER": f"{self.folder}/exadask-runs"},
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )

    def up(self) -> Path:
        """Start a scheduler whose nodes have four cores."""
        facts = ["interface=lo", "exclusive=false", "cores=4", f"scratch={self.scratch}"]
        options = [word for fact in facts for word in ("-o", fact)]
        done = self.exadask("up", "--site", "local", "--walltime", "10m", *options)
        assert done.returncode == 0, done.stderr
        assert f"exadask down {done.stdout.strip()}" in done.stderr
        return Path(done.stdout.strip())

    def session(
        self, run: Path, *, count: int, seconds: float, factor: int
    ) -> subprocess.Popen[str]:
        """Start a process that attaches."""
        argv = [sys.executable, "-c", SESSION, run, count, seconds, factor, self.folder]
        return subprocess.Popen(
            list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def notes(self, factor: int) -> list[int]:
        """Give the processes where tasks of a session have run."""
        return [int(one.read_text()) for one in self.folder.glob(f"{factor}-*") if not one.suffix]

    def processes(self) -> list[str]:
        """List what runs for the runs here, but for sessions."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = process.info["cmdline"] or []
            is_of_node = (process.info["environ"] or {}).get("EXADASK_SCRATCH") == str(self.scratch)
            if is_of_node or any(f"{self.folder}/exadask-runs" in word for word in words):
                found.append(" ".join(words))
        return [one for one in found if SESSION not in one]

    def check_nothing_is_left(self) -> None:
        """Wait until nothing runs any more, and look at what has stayed."""
        eventually(lambda: not self.processes(), timeout_s=20)
        for name in ("tls", "cluster.json", "cancel.json", "depot"):
            assert list(self.folder.glob(f"exadask-runs/*/{name}")) == []
        eventually(lambda: not list(self.scratch.glob("*")), timeout_s=20)  # the guardian's work


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A folder of its own for one test."""
    made = Home(tmp_path)
    yield made
    for path in tmp_path.glob("exadask-runs/*/cluster.json"):  # the test has failed
        made.exadask("down", str(path.parent))
    made.check_nothing_is_left()


@contextmanager
def standing(folder: Path) -> Iterator[tuple[Home, Path]]:
    """Keep a scheduler for all tests that leave it alone."""
    made = Home(folder)
    run = made.up()
    yield made, run
    done = made.exadask("down", str(run))
    assert done.returncode == 0, done.stderr
    made.check_nothing_is_left()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Path]]:
    """A scheduler for all tests that leave it alone."""
    with standing(tmp_path_factory.mktemp("standing")) as found:
        yield found


def pid_of(run: Path) -> int:
    return int(json.loads((run / "cluster.json").read_text())["pid"])


# -- beside each other ------------------------------------------------------------------------


def test_a_session_runs_tasks_and_leaves(shared: tuple[Home, Path]) -> None:
    home, run = shared
    with xd.Executor(attach=run) as ex:
        first = ex.submit(pow, 2, 10)
        assert ex.submit(str, [first]).result(LONG_S) == "[1024]"
        large = ex.submit(bytes, 3_000_000)
        assert len(large.result(LONG_S)) == 3_000_000
        assert ex.run_folder == run
        assert list(ex.nodes) == ["local-0-0"]
        with pytest.raises(xd.errors.ImpossibleRequest, match="4 cores"):
            ex.options(cores=5).submit(abs, -1)
        with pytest.raises(xd.errors.InvalidRequest, match='scale="manual"'):
            ex.scale("local", nodes=2)
        assert ex.plan() == []
    latest = json.loads(home.exadask("status", "--json").stdout)
    assert latest["pools"][0]["nodes"] == 1


def test_memoised_results_of_a_session_lie_where_others_find_them(
    shared: tuple[Home, Path], tmp_path: Path
) -> None:
    _, run = shared
    square = xd.task(memo=True)(abs)
    for machine in ({"attach": run}, {"nodes": [xd.NodeShape.declare(cores=1)]}):
        options = {**machine, "memo_folder": tmp_path / "memo"}
        with xd.Executor(**options) as ex:  # type: ignore[arg-type]  # of various types
            assert ex.submit(square, -4).result(LONG_S) == 4
    assert len([one for one in (tmp_path / "memo").rglob("*") if one.is_file()]) == 1
    with xd.Executor(attach=run) as ex:
        assert ex.submit(square, -5).result(LONG_S) == 5
    assert not list(run.rglob("memo")), "it is beside the runs, not within one"


def test_two_sessions_of_one_process_and_an_embedded_cluster(
    shared: tuple[Home, Path], ex: xd.Executor
) -> None:
    _, run = shared
    with xd.Executor(attach=run) as one, xd.Executor(attach=str(run)) as other:
        mine, theirs = one.submit(abs, -1), other.submit(abs, -2)
        here = ex.submit(abs, -3)
        assert [each.result(LONG_S) for each in (mine, theirs, here)] == [1, 2, 3]
        with pytest.raises(xd.errors.InvalidRequest, match="another executor"):
            one.submit(abs, theirs)
        other.shutdown()
        assert one.submit(abs, mine).result(LONG_S) == 1


def test_sessions_of_two_processes_get_their_own_results(shared: tuple[Home, Path]) -> None:
    """One ends long before the other."""
    home, run = shared
    short = home.session(run, count=20, seconds=0.05, factor=3)
    long = home.session(run, count=20, seconds=0.3, factor=5)
    for session, factor in ((short, 3), (long, 5)):
        printed, errors = session.communicate(timeout=LONG_S)
        assert (printed, errors) == (f"{factor * 190:.1f}\n", "")
    assert (len(home.notes(3)), len(home.notes(5))) == (20, 20)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_session_that_is_ended_takes_only_its_own_tasks_with_it(
    shared: tuple[Home, Path], end: signal.Signals
) -> None:
    home, run = shared
    gone, stays = 10 + end, 100 + end
    victim = home.session(run, count=9, seconds=600, factor=gone)
    eventually(lambda: len(home.notes(gone)) == 4, timeout_s=LONG_S)
    other = home.session(run, count=12, seconds=0.2, factor=stays)
    with xd.Executor(attach=run) as ex:
        waiting = ex.submit(abs, -1)
        eventually(lambda: "needs 1 core" in waiting.explain(), timeout_s=LONG_S)
        pids = home.notes(gone)
        assert all(map(is_alive, pids))
        victim.send_signal(end)
        victim.communicate(timeout=LONG_S)
        assert waiting.result(LONG_S) == 1
        printed, errors = other.communicate(timeout=LONG_S)
        assert (printed, errors) == (f"{stays * 66:.1f}\n", "")
        eventually(lambda: not any(map(is_alive, pids)))
        assert len(home.notes(gone)) == 4, "what waited never began"
        assert ex.options(cores=4).submit(abs, -2).result(LONG_S) == 2, "all cores are free"


def test_allocations_and_sessions_are_found_afterwards(home: Home) -> None:
    run = home.up()
    with xd.Executor(attach=run) as ex:
        assert ex.submit(abs, -1).result(LONG_S) == 1
    assert home.exadask("down", str(run)).returncode == 0
    told = home.exadask("explain", str(run))
    assert told.returncode == 0, told.stderr
    assert "allocation local-0: ended, 1 nodes, 0.00 node-hours" in told.stdout
    (session,) = (run / "sessions").iterdir()
    assert f"exadask explain {session}" in told.stdout
    assert "tasks: 1 done" in home.exadask("explain", str(session)).stdout


# -- without it -------------------------------------------------------------------------------


def test_down_ends_what_sessions_wait_for(home: Home) -> None:
    run = home.up()
    with xd.Executor(attach=run) as ex:
        running = ex.submit(time.sleep, 600)
        eventually(running.running, timeout_s=LONG_S)
        waiting = [ex.submit(time.sleep, 600) for _ in range(5)]
        done = home.exadask("down", str(run))
        assert done.returncode == 0, done.stderr
        assert f"{run} has ended" in done.stderr
        for future in [running, *waiting]:
            assert isinstance(future.exception(SOON_S), xd.errors.ClusterLost)
        with pytest.raises(xd.errors.ClusterUnreachable, match="connection to the scheduler broke"):
            ex.status()
        assert "no node" in repr(ex)
    home.check_nothing_is_left()
    for verb in ("down", "status"):
        again = home.exadask(verb, str(run))
        assert (again.returncode, again.stdout) == (2, ""), verb
        assert "no scheduler of this run listens" in again.stderr


def test_a_scheduler_that_is_killed_leaves_nothing_and_nobody_waits(home: Home) -> None:
    run = home.up()
    with xd.Executor(attach=run) as ex:
        running, large = ex.submit(time.sleep, 600), ex.submit(bytes, 3_000_000)
        assert large.exception(LONG_S) is None
        eventually(running.running, timeout_s=LONG_S)
        os.kill(pid_of(run), signal.SIGKILL)
        for ask in (running.result, large.result):
            with pytest.raises(xd.errors.ClusterLost, match="connection to the scheduler broke"):
                ask(SOON_S)
    home.check_nothing_is_left()
    began_s = time.monotonic()
    with pytest.raises(xd.errors.RunFolderError, match=r"no scheduler.*exadask up"):
        xd.Executor(attach=run)
    assert time.monotonic() - began_s < SOON_S


def note_times(number: int, folder: Path) -> int:
    """Note when this is done."""
    time.sleep(0.02)
    with (folder / f"{number}").open("a") as file:
        file.write(f"{time.monotonic()}\n")
    return number**2


def test_a_session_goes_on_with_the_successor_of_a_killed_scheduler(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_cluster, "_CONNECT_TIMEOUT", "3s")  # so long it is looked for again
    count, notes, run = 400, home.folder / "notes", home.up()
    notes.mkdir()
    with xd.Executor(attach=run, keep_results=True) as ex:
        futures = [ex.submit(note_times, number, notes) for number in range(count)]
        eventually(lambda: sum(one.done() for one in futures) >= count // 4, timeout_s=LONG_S)
        killed_at = time.monotonic()
        os.kill(pid_of(run), signal.SIGKILL)
        errors = [one.exception(SOON_S) for one in futures]
        assert {type(one) for one in errors} == {type(None), xd.errors.ClusterLost}
    (session,) = run.glob("sessions/2*")
    home.check_nothing_is_left()
    successor = home.up()
    with xd.Executor(attach=successor, resume=session) as ex:
        futures = [ex.submit(note_times, number, notes) for number in range(count)]
        assert [one.result(LONG_S) for one in futures] == [number**2 for number in range(count)]
    times = [[float(at) for at in one.read_text().split()] for one in notes.iterdir()]
    assert len(times) == count
    assert max(map(len, times)) <= 2
    assert all(killed_at - one[0] < 1 for one in times if len(one) == 2), "it was written down"
    done = home.exadask("down", str(successor))
    assert done.returncode == 0, done.stderr


def test_a_scheduler_that_stops_for_a_while_costs_nothing(
    shared: tuple[Home, Path], tmp_path: Path
) -> None:
    _, run = shared
    scheduler = psutil.Process(pid_of(run))
    with xd.Executor(attach=run) as ex:
        futures = [ex.submit(note_times, number, tmp_path) for number in range(400)]
        eventually(lambda: sum(one.done() for one in futures) >= 10, timeout_s=LONG_S)
        scheduler.suspend()
        try:
            xd.wait(futures, timeout=3)
        finally:
            scheduler.resume()
        assert [one.result(LONG_S) for one in futures] == [number**2 for number in range(400)]
    assert {len(one.read_text().split()) for one in tmp_path.iterdir()} == {1}


def test_nobody_hangs_who_asks_a_scheduler_that_is_stopped(
    shared: tuple[Home, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait for results wait on; all others are told, and Ctrl-C ends a session."""
    home, run = shared
    monkeypatch.setattr(gateway, "_ANSWER_S", 2.0)
    monkeypatch.setattr(pooled_cluster, "_CONNECT_TIMEOUT", "2s")
    scheduler = psutil.Process(pid_of(run))
    session = home.session(run, count=4, seconds=0.5, factor=7)
    with xd.Executor(attach=run) as ex:
        future = ex.submit(time.sleep, 2)
        eventually(future.running, timeout_s=LONG_S)
        eventually(lambda: home.notes(7), timeout_s=LONG_S)
        scheduler.suspend()
        try:
            with pytest.raises(TimeoutError):
                future.result(0.5)
            for ask in (ex.status, future.explain, future.stdout):
                with pytest.raises(xd.errors.ClusterUnreachable, match="no answer in 2"):
                    ask()
            with pytest.raises(xd.errors.ClusterUnreachable, match="reached: no answer in 2s"):
                xd.Executor(attach=run)
            session.send_signal(signal.SIGINT)
            session.communicate(timeout=SOON_S)
        finally:
            scheduler.resume()
        assert future.result(LONG_S) is None
        assert ex.submit(abs, -1).result(LONG_S) == 1


def test_down_tidies_where_even_the_reaper_was_killed(home: Home) -> None:
    run = home.up()
    scheduler = psutil.Process(pid_of(run))
    (reaper,) = [one for one in scheduler.children() if "reaper.py" in " ".join(one.cmdline())]
    reaper.kill()
    scheduler.kill()
    eventually(lambda: not is_alive(scheduler.pid))
    done = home.exadask("down", str(run))
    assert done.returncode == 0, done.stderr
    (run / "cancel.json").unlink()  # the record of its jobs


@pytest.mark.parametrize(("name", "value"), [("budget", "1 node-hours"), ("idle", "1m")])
def test_what_a_session_cannot_change_is_refused(
    shared: tuple[Home, Path], name: str, value: str
) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(xd.errors.InvalidRequest, match=f"{name}= would change nothing"):
        xd.Executor(attach=shared[1], **settings)


def test_up_that_cannot_stand_leaves_nothing(home: Home) -> None:
    done = home.exadask("up", "--site", "local", "-o", "scheduler_interface=ib9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no network interface 'ib9'" in done.stderr
    home.check_nothing_is_left()
