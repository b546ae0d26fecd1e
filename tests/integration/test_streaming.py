"""Many calls from few lines: generators are consumed as results are taken, values are shared."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exadask as xd
from exadask.errors import ExecutorClosed, InvalidRequest, NotSerializable
from exadask.runtime.cluster import EmbeddedCluster
from exadask.testing.waiting import eventually

TWO = xd.NodeShape.declare(cores=2)


@pytest.fixture(scope="module")
def executor() -> Iterator[xd.Executor]:
    with xd.Executor(nodes=[TWO]) as executor:
        yield executor


class Counted:
    """A generator that says how much of it was consumed."""

    def __init__(self, stop: int | None = None) -> None:
        self.taken, self._stop = 0, stop

    def __iter__(self) -> Iterator[int]:
        numbers = itertools.count() if self._stop is None else range(self._stop)
        for number in numbers:
            self.taken += 1
            yield number


def double(number: int) -> int:
    return 2 * number


def touch(path: Path) -> None:
    path.touch()


def wait_for(path: Path) -> str:
    while not path.exists():
        threading.Event().wait(0.01)
    return path.name


def test_map_consumes_a_generator_as_results_are_taken(executor: xd.Executor) -> None:
    source = Counted()
    results = executor.map(double, iter(source), buffersize=50)
    assert source.taken == 50
    assert list(itertools.islice(results, 1000)) == [2 * n for n in range(1000)]
    assert 1000 <= source.taken <= 1050
    results.close()  # type: ignore[attr-defined]  # it is a generator


def test_a_map_without_a_length_has_a_window_of_its_own(executor: xd.Executor) -> None:
    source = Counted(200_000)
    results = executor.map(double, iter(source))
    assert source.taken < 100_000
    assert sum(results) == 200_000 * 199_999
    assert source.taken == 200_000


def test_a_map_that_is_closed_cancels_what_is_left(executor: xd.Executor, tmp_path: Path) -> None:
    results = executor.map(wait_for, (tmp_path / name for name in ("there", "never", "never")))
    (tmp_path / "there").touch()
    assert next(results) == "there"
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert executor.options(cores=2).submit(abs, -1).result(30) == 1


def test_a_map_of_a_list_runs_although_nobody_takes_its_results(
    executor: xd.Executor, tmp_path: Path
) -> None:
    executor.map(touch, [tmp_path / str(number) for number in range(20)])
    eventually(lambda: len(list(tmp_path.iterdir())) == 20)


def test_results_before_an_error_of_the_generator_are_not_lost(executor: xd.Executor) -> None:
    def numbers() -> Iterator[int]:
        yield from range(10)
        raise LookupError("no more")

    results = executor.map(double, numbers())
    assert list(itertools.islice(results, 10)) == [2 * n for n in range(10)]
    with pytest.raises(LookupError, match="no more"):
        next(results)


def test_an_error_of_a_call_is_raised_in_its_turn(executor: xd.Executor) -> None:
    results = executor.map(lambda x: 1 // x, (n for n in (1, 0, 2)))
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_futures_and_arrays_among_the_arguments_of_a_map(executor: xd.Executor) -> None:
    arrays = [np.full(1000, n) for n in range(5)]
    futures = [executor.submit(double, n) for n in range(5)]
    got = list(executor.map(lambda array, n: int(array.sum()) + n, arrays, futures))
    assert got == [1002 * n for n in range(5)]


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_bad_sizes_are_refused(executor: xd.Executor, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        executor.map(double, [1], **{name: value})


def test_a_map_has_a_timeout(executor: xd.Executor, tmp_path: Path) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        list(executor.map(wait_for, [tmp_path / "never"], timeout=0.2))


def test_the_scheduler_never_holds_more_than_a_few_tasks(executor: xd.Executor) -> None:
    assert isinstance(executor._cluster, EmbeddedCluster)
    scheduler = executor._cluster.scheduler
    most = 0
    for _ in executor.map(double, range(100_000)):
        most = max(most, len(scheduler.tasks))
    assert most <= 50  # some are done, and on their way out


def test_chunksize_is_the_size_of_bundles(executor: xd.Executor) -> None:
    assert list(executor.map(double, range(100), chunksize=10)) == [2 * n for n in range(100)]


def test_as_completed_consumes_a_generator(executor: xd.Executor) -> None:
    source = Counted(100_000)
    seen = set()
    for number, future in enumerate(xd.as_completed(executor.submit(double, n) for n in source)):
        seen.add(future.result())
        if number == 0:
            assert source.taken < 50_000
    assert seen == {2 * n for n in range(100_000)}


def test_as_completed_gives_the_first_done_first(executor: xd.Executor, tmp_path: Path) -> None:
    slow: xd.Future[Any] = executor.submit(wait_for, tmp_path / "go")
    quick: xd.Future[Any] = executor.submit(double, 4)
    order = []
    for future in xd.as_completed(iter([slow, quick, quick])):
        order.append(future)
        (tmp_path / "go").touch()
    assert order[0] is quick
    assert set(order) == {slow, quick}


def test_as_completed_has_a_timeout_and_forgets(executor: xd.Executor, tmp_path: Path) -> None:
    slow = executor.submit(wait_for, tmp_path / "go")
    with pytest.raises(concurrent.futures.TimeoutError, match="1 futures"):
        list(xd.as_completed([slow], timeout=0.1))
    assert slow._waiters == []
    (tmp_path / "go").touch()
    assert slow.result(30) == "go"


def test_as_completed_wants_futures() -> None:
    with pytest.raises(InvalidRequest, match="not a future"):
        list(xd.as_completed(iter([3])))  # type: ignore[arg-type]


def test_maps_and_as_completed_inside_a_task(executor: xd.Executor) -> None:
    def parent() -> tuple[int, int]:
        import exadask as xd
        from exadask.active import active_executor

        inner = active_executor("parent")
        total = sum(inner.map(abs, (n for n in range(300))))
        done = xd.as_completed(inner.submit(abs, -n) for n in range(100))
        return total, sum(future.result() for future in done)

    assert executor.submit(parent).result(60) == (299 * 150, 99 * 50)


def test_large_results_of_a_map_inside_a_task(executor: xd.Executor) -> None:
    def parent() -> int:
        from exadask.active import active_executor

        inner = active_executor("parent")
        return sum(len(text) for text in inner.map(lambda n: b"x" * n, [200_000, 300_000]))

    assert executor.submit(parent).result(60) == 500_000


# -- values that calls share ------------------------------------------------------------------


def test_broadcast_is_an_argument_like_any_other(executor: xd.Executor) -> None:
    array = np.arange(500_000.0)
    shared = executor.broadcast(array)
    single = executor.options(bundle=False).submit(lambda a, i: float(a[i]), shared, 7)
    assert single.result() == 7
    many = executor.map(lambda a, i: float(a[i]), itertools.repeat(shared), range(2000))
    assert sum(many) == 1999 * 1000
    assert np.array_equal(shared.result(), array)


def test_broadcast_arrays_cannot_be_changed_by_a_call(executor: xd.Executor) -> None:
    shared = xd.broadcast(np.zeros(500_000))

    def change(array: Any, n: int) -> None:
        array[n] = 1

    for size in (1, 4):
        futures = [executor.options(bundle=size).submit(change, shared, n) for n in range(4)]
        for future in futures:
            assert isinstance(future.exception(30), ValueError)


def test_a_process_unpacks_a_shared_value_once(executor: xd.Executor) -> None:
    shared = executor.broadcast({"table": list(range(1000))})
    places = executor.map(lambda d, _: (os.getpid(), id(d)), itertools.repeat(shared), range(500))
    found = set(places)
    assert len(found) == len({pid for pid, _ in found})


def test_bad_values_to_share(executor: xd.Executor) -> None:
    with pytest.raises(NotSerializable, match="broadcast"):
        executor.broadcast(threading.Lock())
    with pytest.raises(InvalidRequest, match="1 futures"):
        executor.broadcast([executor.submit(double, 1)])


def test_a_closed_executor_takes_nothing() -> None:
    with xd.Executor(nodes=[TWO]) as closed:
        pass
    with pytest.raises(ExecutorClosed):
        closed.broadcast(1)
    with pytest.raises(ExecutorClosed):
        closed.map(double, (n for n in range(3)))


def test_a_map_that_outlives_its_executor_gives_what_it_has_and_says_why_no_more() -> None:
    with xd.Executor(nodes=[TWO]) as closed:
        results = closed.map(double, itertools.count(), buffersize=10)
        assert next(results) == 0
    got: list[int] = []
    with pytest.raises(ExecutorClosed):
        got.extend(results)
    assert got == [2 * n for n in range(1, len(got) + 1)]


def test_what_is_large_in_a_function_goes_to_each_node_once(tmp_path: Path) -> None:
    big = np.ones(1_000_000)

    def look(number: int) -> float:
        return float(big[number])

    def change(number: int) -> float:
        big[number] = 5
        return float(big[number])

    pool = xd.Pool.declare("here", batch="local", max_allocations=1, cores=2)
    with xd.Executor(pools=[pool], run_folder=str(tmp_path)) as executor:
        assert sum(executor.map(look, range(2000))) == 2000
        assert executor.submit(change, 3).result(30) == 5
        shared = executor.broadcast(np.arange(200_000.0))
        assert sum(executor.map(lambda a, i: a[i], itertools.repeat(shared), range(100))) == 4950
