"""What is known about a task's attempts: retries, output, and what it used."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

import exadask as xd
from exadask.errors import TaskCrashed, TimeExceeded
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(60)

MIB = 2**20


def fail_until(count: Path, successes_at: int, kind: type[Exception] = OSError) -> int:
    """Count the attempts in a file; raise until enough were made."""
    with count.open("a") as file:
        file.write("x")
    attempt = count.stat().st_size
    if attempt < successes_at:
        raise kind(f"attempt {attempt}")
    return attempt


def crash(count: Path) -> None:
    with count.open("a") as file:
        file.write("x")
    os._exit(4)


def test_task_that_fails_twice_succeeds_with_two_retries(ex: xd.Executor, tmp_path: Path) -> None:
    future = ex.options(retries=2).submit(fail_until, tmp_path / "count", 3)
    assert future.result(30) == 3
    assert future.attempts == 3


def test_last_error_arrives_when_retries_are_used_up(ex: xd.Executor, tmp_path: Path) -> None:
    future = ex.options(retries=1).submit(fail_until, tmp_path / "count", 9)
    with pytest.raises(OSError, match="attempt 2"):
        future.result(30)
    assert future.attempts == 2


def test_without_retries_there_is_one_attempt(ex: xd.Executor, tmp_path: Path) -> None:
    future = ex.submit(fail_until, tmp_path / "count", 9)
    assert "attempt 1" in str(future.exception(30))
    assert future.attempts == 1


@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [
        (OSError, 3),
        ((KeyError, OSError), 3),
        (Exception, 3),
        (KeyError, 1),
        ((KeyError, ValueError), 1),
    ],
)
def test_retry_on_filters(
    ex: xd.Executor,
    tmp_path: Path,
    retry_on: type[Exception] | tuple[type[Exception], ...],
    attempts: int,
) -> None:
    options = ex.options(retries=2, retry_on=retry_on)
    future = options.submit(fail_until, tmp_path / "count", 9)
    assert isinstance(future.exception(30), OSError)
    assert future.attempts == attempts
    assert (tmp_path / "count").stat().st_size == attempts


def test_retry_on_knows_subclasses(ex: xd.Executor, tmp_path: Path) -> None:
    options = ex.options(retries=1, retry_on=OSError)
    future = options.submit(fail_until, tmp_path / "count", 2, ConnectionResetError)
    assert future.result(30) == 2


@pytest.mark.parametrize(("retry_on", "attempts"), [(None, 2), (TaskCrashed, 2), (OSError, 1)])
def test_crash_counts_as_an_attempt(
    ex: xd.Executor, tmp_path: Path, retry_on: type[Exception] | None, attempts: int
) -> None:
    future = ex.options(retries=1, retry_on=retry_on).submit(crash, tmp_path / "count")
    with pytest.raises(TaskCrashed):
        future.result(30)
    assert future.attempts == attempts
    assert (tmp_path / "count").stat().st_size == attempts


def test_time_limit_holds_for_each_attempt(ex: xd.Executor) -> None:
    future = ex.options(retries=1, time="0.2s").submit(time.sleep, 60)
    assert isinstance(future.exception(30), TimeExceeded)
    assert future.attempts == 2


# -- output -----------------------------------------------------------------------------------


def say(text: str, error: str) -> None:
    sys.stdout.write(text)
    sys.stderr.write(error)


def test_output_of_a_finished_task(ex: xd.Executor) -> None:
    future = ex.submit(say, "été\n", "warned\n")
    future.result(30)
    assert (future.stdout(), future.stderr()) == ("été\n", "warned\n")


def test_output_of_a_running_task(ex: xd.Executor, tmp_path: Path) -> None:
    def speak_and_wait() -> None:
        say("so far\n", "oh\n")
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        say("and more\n", "")

    future = ex.submit(speak_and_wait)
    eventually(lambda: future.stdout() == "so far\n")
    eventually(lambda: future.stderr() == "oh\n")
    (tmp_path / "go").touch()
    future.result(30)
    assert future.stdout() == "so far\nand more\n"


def test_output_of_a_failed_task(ex: xd.Executor) -> None:
    def speak_and_fail() -> None:
        say("before\n", "worse\n")
        raise ValueError

    future = ex.submit(speak_and_fail)
    assert isinstance(future.exception(30), ValueError)
    assert (future.stdout(), future.stderr()) == ("before\n", "worse\n")


def test_output_of_a_crashed_task(ex: xd.Executor) -> None:
    def speak_and_crash() -> None:
        say("before\n", "")
        ctypes.string_at(0)

    future = ex.submit(speak_and_crash)
    assert isinstance(future.exception(30), TaskCrashed)
    assert future.stdout() == "before\n"
    assert "Segmentation fault" in future.stderr()


def test_output_of_a_program_that_a_task_runs(ex: xd.Executor) -> None:
    future = ex.submit(subprocess.run, ["/bin/sh", "-c", "echo out; echo err >&2"], check=True)
    future.result(30)
    assert (future.stdout(), future.stderr()) == ("out\n", "err\n")


def test_output_is_each_tasks_own(ex: xd.Executor) -> None:
    futures = [ex.submit(say, f"{number}\n", "") for number in range(12)]
    for future in futures:
        future.result(30)
    assert [future.stdout() for future in futures] == [f"{number}\n" for number in range(12)]


def test_long_output_is_whole(ex: xd.Executor) -> None:
    future = ex.submit(say, "0123456789" * 10_000, "")
    future.result(30)
    assert future.stdout() == "0123456789" * 10_000


def test_output_of_a_retried_task_is_that_of_its_last_attempt(
    ex: xd.Executor, tmp_path: Path
) -> None:
    def speak(count: Path) -> None:
        say(f"attempt {count.stat().st_size if count.exists() else 0}\n", "")
        fail_until(count, 2)

    future = ex.options(retries=1).submit(speak, tmp_path / "count")
    future.result(30)
    assert future.stdout() == "attempt 1\n"


# -- usage ------------------------------------------------------------------------------------


def burn(seconds: float) -> None:
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass


def test_usage_of_a_busy_task(ex: xd.Executor) -> None:
    future = ex.submit(burn, 0.5)
    future.result(30)
    usage = future.usage
    assert usage is not None
    assert 0.5 <= usage.cpu_s < 1.0
    assert 0.5 <= usage.wall_s < 20


def test_usage_of_a_sleeping_task(ex: xd.Executor) -> None:
    future = ex.submit(time.sleep, 0.5)
    future.result(30)
    usage = future.usage
    assert usage is not None
    assert usage.cpu_s < 0.2
    assert 0.5 <= usage.wall_s < 5


def test_usage_counts_programs_that_a_task_runs(ex: xd.Executor) -> None:
    program = "import time\nwhile time.process_time() < 0.5: pass"
    future = ex.submit(subprocess.run, [sys.executable, "-c", program], check=True)
    future.result(30)
    assert future.usage is not None
    assert 0.5 <= future.usage.cpu_s < 2


def test_peak_of_a_large_task_and_not_of_the_next_one(ex: xd.Executor) -> None:
    options = ex.options(env={"ONE_SLOT": "for the two"})

    def allocate() -> int:
        return len(b"x" * (200 * MIB))

    large, small = options.submit(allocate), None
    assert large.result(30) == 200 * MIB
    small = options.submit(abs, -1)
    assert small.result(30) == 1
    assert large.usage is not None
    assert small.usage is not None
    assert 200 * MIB <= large.usage.peak_bytes < 400 * MIB
    assert small.usage.peak_bytes < 100 * MIB


def test_usage_of_a_task_that_was_ended(ex: xd.Executor) -> None:
    future = ex.options(time="0.5s").submit(time.sleep, 60)
    assert isinstance(future.exception(30), TimeExceeded)
    assert future.usage is not None
    assert 0.4 < future.usage.wall_s < 10
