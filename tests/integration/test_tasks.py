"""What a user can say about a task, and what the task then finds."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.testing.waiting import eventually


@pytest.fixture(scope="module")
def here() -> Iterator[xd.Executor]:
    """This machine, with its real cores."""
    with xd.Executor() as executor:
        yield executor


def surroundings() -> dict[str, Any]:
    return {
        "affinity": sorted(os.sched_getaffinity(0)),
        "environment": dict(os.environ),
        "cwd": os.getcwd(),  # noqa: PTH109  # compared as text
        "pid": os.getpid(),
    }


def blas_threads() -> set[int]:
    import numpy as np
    import threadpoolctl

    np.dot(np.ones((10, 10)), np.ones((10, 10)))
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


def wait_for(path: Path, started: Path) -> dict[str, Any]:
    started.touch()
    eventually(path.exists, timeout_s=60)
    return surroundings()


def test_tasks_that_run_together_have_cores_of_their_own(here: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    n_cores = sum(shape.cores for shape in here.nodes.values())
    futures = [here.submit(wait_for, go, tmp_path / f"{index}") for index in range(n_cores)]
    eventually(lambda: all((tmp_path / f"{index}").exists() for index in range(n_cores)))
    go.touch()
    found = [future.result(30)["affinity"] for future in futures]
    assert sorted(core for cores in found for core in cores) == sorted(os.sched_getaffinity(0))
    assert all(len(cores) == 1 for cores in found)


def test_wide_task_is_bound_to_all_its_cores(here: xd.Executor) -> None:
    n_cores = sum(shape.cores for shape in here.nodes.values())
    found = here.options(cores=n_cores).submit(surroundings).result(30)
    assert len(found["affinity"]) == n_cores
    assert found["environment"]["OMP_NUM_THREADS"] == str(n_cores)


def test_thread_counts_follow_the_cores_in_a_warm_process(ex: xd.Executor) -> None:
    for cores in (1, 3, 2):
        future = ex.options(cores=cores).submit(surroundings)
        environment = future.result(30)["environment"]
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            assert environment[name] == str(cores)
        assert ex.options(cores=cores).submit(blas_threads).result(30) <= {cores}


def test_gpus_are_visible_to_the_task_that_has_them_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXADASK_GPUS", "2")
    with xd.Executor() as executor:
        with_gpus = executor.options(gpus=2).submit(surroundings).result(30)
        half = executor.options(gpus=0.5).submit(surroundings).result(30)
        without = executor.submit(surroundings).result(30)
    assert with_gpus["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert half["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert without["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert len({found["pid"] for found in (with_gpus, half, without)}) == 3


def test_two_halves_of_a_gpu_run_together(ex: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    half = ex.options(gpus=0.5)
    futures = [half.submit(wait_for, go, tmp_path / f"{index}") for index in range(2)]
    eventually(lambda: all((tmp_path / f"{index}").exists() for index in range(2)))
    third = ex.options(gpus=0.5).submit(surroundings)
    eventually(lambda: "GPU" in third.explain())
    go.touch()
    assert len({future.result(30)["pid"] for future in [*futures, third]}) >= 2


def test_environment_is_the_tasks_alone(ex: xd.Executor) -> None:
    chosen = ex.options(env={"GREETING": "hello"}).submit(surroundings).result(30)
    other = ex.submit(surroundings).result(30)
    assert chosen["environment"]["GREETING"] == "hello"
    assert "GREETING" not in other["environment"]
    assert chosen["pid"] != other["pid"]


def test_warm_process_is_used_again(ex: xd.Executor) -> None:
    pids = {ex.submit(os.getpid).result(30) for _ in range(5)}
    assert len(pids) == 1


def test_next_task_starts_in_the_directory_of_the_user(ex: xd.Executor, tmp_path: Path) -> None:
    ex.submit(os.chdir, tmp_path).result(30)
    assert ex.submit(surroundings).result(30)["cwd"] == os.getcwd()  # noqa: PTH109  # as text


_LOADED: list[int] = []


def load_model() -> list[int]:
    return [os.getpid()]


@xd.task(setup=load_model)
def calls_so_far(model: list[int]) -> tuple[int, int]:
    model.append(0)
    return model[0], len(model)


def test_setup_is_built_once_per_slot_and_used_again(ex: xd.Executor) -> None:
    first, second = (calls_so_far.submit().result(30) for _ in range(2))
    assert first == (first[0], 2)
    assert second == (first[0], 3)
    assert calls_so_far()[0] == os.getpid()


def test_setup_that_fails_fails_the_task(ex: xd.Executor) -> None:
    def broken() -> None:
        raise FileNotFoundError("weights.bin")

    future = ex.options(setup=broken).submit(lambda state: state)
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        future.result(30)


def test_higher_priority_runs_first(ex: xd.Executor, tmp_path: Path) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    busy = ex.options(cores=4).submit(wait_for, go, tmp_path / "started")
    eventually((tmp_path / "started").exists)

    def note(name: str) -> None:
        with log.open("a") as file:
            file.write(name)

    futures = [
        ex.options(cores=4, priority=priority).submit(note, name)
        for name, priority in (("c", 0), ("b", 1), ("a", 2))
    ]
    eventually(
        lambda: all(
            "behind" in future.explain() or "needs" in future.explain() for future in futures
        )
    )
    go.touch()
    assert busy.result(30)
    for future in futures:
        future.result(30)
    assert log.read_text() == "abc"


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def plus(self, n: int) -> int:
        return self.start + n

    @xd.task(cores=2)
    def as_task(self, n: int) -> int:
        return self.start + n


@xd.task(cores=2, memory="1GiB")
def double(x: int) -> int:
    """Double it."""
    return 2 * x


def test_callables_of_every_kind_run(ex: xd.Executor) -> None:
    import functools

    assert ex.submit(Counter(3).plus, 4).result(30) == 7
    assert ex.submit(functools.partial(pow, 2), 5).result(30) == 32
    assert ex.submit(lambda x, *, y: x - y, 5, y=3).result(30) == 2
    assert ex.submit(double, 4).result(30) == 8
    assert ex.submit(Counter, 9).result(30).plus(1) == 10
    assert double.submit(3).result(30) == 6
    assert Counter(1).as_task(2) == 3
    assert Counter(1).as_task.submit(2).result(30) == 3


async def sleepless(x: int) -> int:
    return x + 1


def test_coroutine_function_runs_to_its_end(ex: xd.Executor) -> None:
    assert ex.submit(sleepless, 1).result(30) == 2  # type: ignore[comparison-overlap]  # its value


def test_decorated_function_stays_a_plain_function() -> None:
    assert double(4) == 8
    assert double.__doc__ == "Double it."
    assert double.__name__ == "double"
    assert repr(double) == "<Task double: 2 cores, 1 GiB of memory>"


def test_futures_are_arguments_at_any_depth(ex: xd.Executor) -> None:
    one, two = ex.submit(abs, -1), ex.submit(abs, -2)
    nested = {"list": [one, (two, {"deep": one})], "same": one}
    found = ex.submit(lambda nested, *, more: (nested, more), nested, more=[two]).result(30)
    assert found == ({"list": [1, (2, {"deep": 1})], "same": 1}, [2])


def test_map_gives_futures_in_order_and_shows_progress(
    ex: xd.Executor, capfd: pytest.CaptureFixture[str]
) -> None:
    futures = double.map(range(5), progress=True)
    assert [future.result(30) for future in futures] == [0, 2, 4, 6, 8]
    assert {future.result() for future in xd.as_completed(futures, progress=True)} == {
        0,
        2,
        4,
        6,
        8,
    }
    written = ""

    def has_finished() -> bool:
        nonlocal written
        written += capfd.readouterr().err
        return "5/5" in written

    eventually(has_finished)


def test_task_in_a_thread_shares_the_process(ex: xd.Executor) -> None:
    marker = threading.Lock()
    future = ex.options(isolation="thread").submit(lambda: (os.getpid(), threading.Lock()))
    pid, lock = future.result(30)
    assert pid == os.getpid()
    assert type(lock) is type(marker)


def test_what_a_future_can_tell(ex: xd.Executor) -> None:
    def speak() -> str:
        sys.stdout.write("to stdout\n")
        sys.stderr.write("to stderr\n")
        return "done"

    future = ex.options(cores=2, memory="1GiB").submit(speak)
    assert future.result(30) == "done"
    assert future.stdout() == "to stdout\n"
    assert future.stderr() == "to stderr\n"
    assert future.resources == xd.Resources.parse(cores=2, memory="1GiB")
    assert future.node in ex.nodes
    assert future.attempts == 1
    assert future.usage is not None
    assert future.usage.wall_s > 0
    assert future.usage.peak_bytes > 1_000_000
    assert "finished" in future.explain()
    assert "speak" in repr(future)
    assert "finished" in future._repr_html_()


def test_large_output_arrives_whole(ex: xd.Executor) -> None:
    future = ex.submit(lambda: sys.stdout.write("x" * 100_000))
    future.result(30)
    assert future.stdout() == "x" * 100_000


def test_explain_says_what_a_task_waits_for(ex: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    busy = ex.options(cores=4).submit(wait_for, go, tmp_path / "started")
    eventually((tmp_path / "started").exists)
    assert "running on" in busy.explain()
    waiting = ex.options(cores=3).submit(abs, -1)
    eventually(lambda: "needs 3 cores" in waiting.explain())
    following = ex.submit(abs, waiting)
    eventually(lambda: "inputs: abs" in following.explain())
    go.touch()
    assert following.result(30) == 1
    assert busy.done()


def test_large_array_is_not_copied_for_each_task(ex: xd.Executor) -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(2_000_000, dtype="f8")
    futures = [ex.submit(lambda x: float(x.sum()), array) for _ in range(4)]
    assert {future.result(30) for future in futures} == {float(array.sum())}

    def spoil(x: Any) -> float:
        x[:] = 0
        return float(x.sum())

    assert ex.submit(spoil, array).result(30) == 0
    assert array[1] == 1
    made = ex.submit(np.ones, 2_000_000)
    assert ex.submit(spoil, made).result(30) == 0
    assert made.result(30).sum() == 2_000_000


def test_task_that_leaves_its_children_alone_does_not_deadlock(ex: xd.Executor) -> None:
    def submit_and_leave() -> int:
        xd.task(abs).submit(-1)
        return 7

    assert ex.submit(submit_and_leave).result(30) == 7


def test_error_of_a_nested_task_arrives_in_its_parent(ex: xd.Executor) -> None:
    def child() -> None:
        raise ValueError("seven")

    def parent() -> str:
        future = xd.task(child).submit()
        try:
            future.result()
        except ValueError as error:
            return str(error)
        return "no error"

    assert "seven" in ex.submit(parent).result(30)
