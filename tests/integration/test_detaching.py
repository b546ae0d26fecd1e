"""Sessions that end before their calls are done, and others that find the futures again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest

import exadask as xd
from exadask.errors import ClusterLost, Detached, InvalidRequest, NotSerializable
from exadask.testing.waiting import eventually
from tests.integration.test_standing_sessions import LONG_S, Home, pid_of, standing

pytestmark = pytest.mark.dask


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Path]]:
    """A scheduler for all tests that leave it alone."""
    with standing(tmp_path_factory.mktemp("detaching")) as found:
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A folder of its own for one test."""
    made = Home(tmp_path / "home")
    made.folder.mkdir()
    return made


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where tasks leave marks."""
    made = tmp_path / "marks"
    made.mkdir()
    return made


def mark(folder: Path, name: object) -> None:
    with (folder / str(name)).open("a") as file:
        file.write("x")


def executions(folder: Path) -> set[int]:
    """Say how often each task that left a mark was executed."""
    return {one.stat().st_size for one in folder.iterdir()}


def square(place: int, folder: Path, seconds: float = 0.0) -> int:
    mark(folder, place)
    time.sleep(seconds)
    return place * place


def wait_for_file(path: Path, folder: Path) -> str:
    mark(folder, "waiting")
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()


def fail(text: str) -> None:
    raise ArithmeticError(text)


def deputies(run: Path) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(pid_of(run)).children():
        with contextlib.suppress(psutil.Error):  # it ends meanwhile
            if "exadask.deputy" in one.cmdline():
                found.append(one)
    return found


# -- from session to session --------------------------------------------------------------------


def test_futures_of_all_kinds_are_found_again(
    shared: tuple[Home, Path], marks: Path, tmp_path: Path
) -> None:
    home, run = shared
    with xd.Executor(attach=run) as early, pytest.raises(InvalidRequest, match="nothing is left"):
        early.take_back()
    first = xd.Executor(attach=run)
    done, large = first.submit(pow, 2, 10), first.submit(bytes, 3_000_000)
    failed = first.submit(fail, "sorry")
    eventually(lambda: done.done() and large.done() and failed.done(), timeout_s=LONG_S)
    running = first.submit(wait_for_file, tmp_path / "go", marks)
    eventually(running.running, timeout_s=LONG_S)
    following = first.options(cores=4).submit(len, running)  # waits, and its input too
    using_large = first.options(cores=4).submit(len, large)
    table = first.broadcast(list(range(1000)))
    using_table = first.options(cores=4).submit(sum, table)
    cancelled = first.options(cores=4).submit(abs, -1)
    cancelled.cancel()
    first.detach(
        {
            "results": [done, large, failed],
            "running": (running, following),
            "more": [using_large, using_table, cancelled, table],
        },
        name="all-kinds",
    )
    assert isinstance(following.exception(0), Detached)
    assert f"exadask.attach({str(run)!r}, 'all-kinds')" in str(following.exception(0))
    assert done.result() == 1024, "what was done stays so"
    with pytest.raises(xd.errors.ExecutorClosed):
        first.submit(abs, -1)
    assert "all-kinds" in home.exadask("status", str(run)).stdout

    with xd.Executor(attach=run) as second:
        found = second.take_back("all-kinds")
        again, blob, bad = found["results"]
        assert (again.result(LONG_S), len(blob.result(LONG_S))) == (1024, 3_000_000)
        with pytest.raises(ArithmeticError, match="sorry"):
            bad.result(LONG_S)
        assert bad.attempts == 1
        busy, after = found["running"]
        assert busy.running()
        assert "running on" in busy.explain()
        length, total, nothing, kept = found["more"]
        with pytest.raises(CancelledError):
            nothing.result(0)
        (tmp_path / "go").write_text("now")
        assert busy.result(LONG_S) == "now"
        assert (after.result(LONG_S), length.result(LONG_S)) == (3, 3_000_000)
        assert total.result(LONG_S) == 499_500
        assert second.submit(sum, kept).result(LONG_S) == 499_500, "they are inputs like others"
        assert second.submit(len, blob).result(LONG_S) == 3_000_000
    assert (marks / "waiting").read_text() == "x", "it was not started anew"
    assert home.exadask("status", "--json", str(run)).stdout.count("all-kinds") == 0
    eventually(lambda: deputies(run) == [])
    assert list((run / "left").iterdir()) == []


def test_no_call_runs_twice_however_often_sessions_change(
    shared: tuple[Home, Path], marks: Path
) -> None:
    _, run = shared
    n_calls = 3000
    with xd.Executor(attach=run) as session:
        futures = xd.task(square).map(range(n_calls), [marks] * n_calls, [0.004] * n_calls)
        eventually(lambda: sum(map(xd.Future.done, futures)) > 100, timeout_s=LONG_S)
        session.detach(futures, name="many")
    for _ in range(2):
        with xd.Executor(attach=run) as session:
            found = session.take_back()
            n_done = sum(map(xd.Future.done, found))
            goal = min(n_calls, n_done + 200)
            eventually(lambda: sum(map(xd.Future.done, found)) >= goal, timeout_s=LONG_S)  # noqa: B023
            session.detach(found, name="many")
    found = xd.attach(run, "many")
    assert [one.result(LONG_S) for one in found] == [place**2 for place in range(n_calls)]
    assert len(list(marks.iterdir())) == n_calls
    assert executions(marks) == {1}
    from exadask.active import active_executor

    active_executor("the test").shutdown()


def test_what_is_not_named_goes_on_too(shared: tuple[Home, Path], marks: Path) -> None:
    _, run = shared
    first = xd.Executor(attach=run)
    hidden = [first.submit(square, place, marks, 0.1) for place in range(8)]
    totals = first.submit(sum, hidden)
    del hidden
    first.detach(totals)
    with xd.Executor(attach=run) as second:
        assert second.take_back().result(LONG_S) == 140
    assert executions(marks) == {1}


def test_without_a_choice_all_that_is_not_done_is_found(
    shared: tuple[Home, Path], tmp_path: Path, marks: Path
) -> None:
    _, run = shared
    first = xd.Executor(attach=run)
    first.submit(abs, -1).result(LONG_S)
    open_ones = [first.submit(wait_for_file, tmp_path / "go", marks) for _ in range(6)]
    eventually(lambda: sum(map(xd.Future.running, open_ones)) == 4, timeout_s=LONG_S)
    first.detach()
    with xd.Executor(attach=run) as second:
        found = second.take_back()
        assert len(found) == 6
        (tmp_path / "go").write_text("x")
        assert [one.result(LONG_S) for one in found] == ["x"] * 6
    assert (marks / "waiting").read_text() == "x" * 6


def test_a_loop_over_a_map_ends_with_its_session(
    shared: tuple[Home, Path], tmp_path: Path, marks: Path
) -> None:
    _, run = shared
    first = xd.Executor(attach=run)
    kept = first.options(cores=2).submit(wait_for_file, tmp_path / "go", marks)
    values = first.map(square, range(500), [marks] * 500, [0.1] * 500)
    assert next(values) == 0
    first.detach(kept)
    with pytest.raises(Detached):
        list(values)
    n_marks = len(list(marks.iterdir()))
    with xd.Executor(attach=run) as second:
        (tmp_path / "go").write_text("x")
        assert second.take_back().result(LONG_S) == "x"
        assert second.options(cores=4).submit(abs, -1).result(LONG_S) == 1, "all cores are free"
    assert len(list(marks.iterdir())) < n_marks + 10


# -- when something dies ------------------------------------------------------------------------


def test_a_deputy_that_is_killed_loses_no_call(shared: tuple[Home, Path], marks: Path) -> None:
    _, run = shared
    first = xd.Executor(attach=run)
    done, large = first.submit(abs, -5), first.submit(bytes, 3_000_000)
    eventually(lambda: done.done() and large.done(), timeout_s=LONG_S)
    futures = [first.submit(square, place, marks, 0.2) for place in range(30)]
    eventually(futures[2].done, timeout_s=LONG_S)
    first.detach([done, large, *futures], name="fragile")
    (deputy,) = deputies(run)
    deputy.kill()
    eventually(lambda: deputies(run) == [])
    with xd.Executor(attach=run) as second:
        five, gone, *rest = second.take_back("fragile")
        assert five.result(LONG_S) == 5
        with pytest.raises(ClusterLost, match="has gone with the process that had it"):
            gone.result(LONG_S)
        assert [one.result(LONG_S) for one in rest] == [place**2 for place in range(30)]


def test_down_ends_deputies(home: Home, tmp_path: Path, marks: Path) -> None:
    run = home.up()
    first = xd.Executor(attach=run)
    first.submit(wait_for_file, tmp_path / "never", marks)
    first.detach()
    assert len(deputies(run)) == 1
    assert home.exadask("down", str(run)).returncode == 0
    home.check_nothing_is_left()
    with pytest.raises(xd.errors.RunFolderError, match="no scheduler"):
        xd.attach(run)


def test_deputies_of_a_scheduler_that_is_killed_end(
    home: Home, tmp_path: Path, marks: Path
) -> None:
    run = home.up()
    first = xd.Executor(attach=run)
    first.submit(wait_for_file, tmp_path / "never", marks)
    first.detach()
    os.kill(pid_of(run), signal.SIGKILL)
    home.check_nothing_is_left()


# -- mistakes -----------------------------------------------------------------------------------


def test_only_a_scheduler_that_stays_can_be_left(ex: xd.Executor) -> None:
    future = ex.submit(abs, -1)
    with pytest.raises(InvalidRequest, match=r"detach\(\) needs a scheduler that stays"):
        ex.detach([future])
    with pytest.raises(InvalidRequest, match=r"take_back\(\) needs a scheduler that stays"):
        ex.take_back()
    assert future.result(LONG_S) == 1


@pytest.mark.parametrize(
    ("futures", "error", "text"),
    [
        ([], InvalidRequest, "no future in the list"),
        ("text", InvalidRequest, "no future in the str"),
        ([lambda: 1], NotSerializable, "what was to be left"),
    ],
)
def test_what_cannot_be_left_is_refused_and_the_session_goes_on(
    shared: tuple[Home, Path], futures: Any, error: type[Exception], text: str
) -> None:
    with xd.Executor(attach=shared[1]) as session:
        with pytest.raises(error, match=text):
            session.detach(futures)
        assert session.submit(abs, -1).result(LONG_S) == 1


def test_services_cannot_be_left(shared: tuple[Home, Path]) -> None:
    with xd.Executor(attach=shared[1]) as session:
        server = xd.service("exec python3 -m http.server {port} --bind {host}").start()
        assert session.submit(str, server).result(LONG_S)
        with pytest.raises(InvalidRequest, match=r"services .* cannot be left"):
            session.detach(session.submit(abs, -1))
        assert session.submit(abs, -2).result(LONG_S) == 2


def test_futures_of_others_cannot_be_left(shared: tuple[Home, Path], ex: xd.Executor) -> None:
    other = ex.submit(abs, -1)
    with xd.Executor(attach=shared[1]) as session:
        with pytest.raises(InvalidRequest, match="a future of another executor"):
            session.detach([session.submit(abs, -2), other])
        assert session.submit(abs, -1).result(LONG_S) == 1


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x" * 101])
def test_names_that_are_none_are_refused(shared: tuple[Home, Path], name: str) -> None:
    with xd.Executor(attach=shared[1]) as session:
        future = session.submit(abs, -1)
        with pytest.raises(InvalidRequest, match="is no name"):
            session.detach([future], name=name)
        assert future.result(LONG_S) == 1


def test_a_name_is_used_once(shared: tuple[Home, Path]) -> None:
    _, run = shared
    first = xd.Executor(attach=run)
    first.detach([first.submit(abs, -1)], name="mine")
    with xd.Executor(attach=run) as second:
        future = second.submit(abs, -2)
        with pytest.raises(InvalidRequest, match="left as 'mine' already"):
            second.detach([future], name="mine")
        with pytest.raises(InvalidRequest, match=r"'yours' is not here. Left here:.* mine"):
            second.take_back("yours")
        assert second.take_back("mine")[0].result(LONG_S) == 1
        with pytest.raises(InvalidRequest, match="'mine' is not here"):
            second.take_back("mine")
        assert future.result(LONG_S) == 2


def test_where_nothing_can_be_written_the_session_goes_on(home_with_file: Path) -> None:
    with xd.Executor(attach=home_with_file) as session:
        future = session.submit(abs, -1)
        with pytest.raises(xd.errors.RunFolderError, match="Nothing has changed"):
            session.detach([future])
        assert session.submit(abs, -2).result(LONG_S) == 2


@pytest.fixture
def home_with_file(home: Home) -> Iterator[Path]:
    """A run with a file where the folder of what is left should be."""
    run = home.up()
    (run / "left").write_text("")
    yield run
    assert home.exadask("down", str(run)).returncode == 0
    home.check_nothing_is_left()
