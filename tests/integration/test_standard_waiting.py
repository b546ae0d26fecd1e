"""CPython's own tests of waiting and of futures, adapted to `exadask.Executor`."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.testing.waiting import eventually


@pytest.fixture(scope="module")
def pool() -> Iterator[xd.Executor]:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=5)]) as executor:
        yield executor


@pytest.fixture
def slow(pool: xd.Executor, tmp_path: Path) -> Iterator[xd.Future[Any]]:
    """A task that runs until the test is over."""
    future = pool.submit(wait_for, tmp_path / "never")
    yield future
    future.cancel()


def wait_for(path: Path) -> bool:
    eventually(path.exists, timeout_s=60)
    return True


def multiply(x: int, y: int) -> int:
    return x * y


def fail_when(path: Path) -> None:
    eventually(path.exists, timeout_s=60)
    raise ValueError("this is an exception")


def succeeded(pool: xd.Executor) -> xd.Future[Any]:
    future = pool.submit(multiply, 6, 7)
    future.result(30)
    return future


def failed(pool: xd.Executor) -> xd.Future[Any]:
    future = pool.submit(divmod, 1, 0)
    assert isinstance(future.exception(30), ZeroDivisionError)
    return future


def cancelled(pool: xd.Executor, tmp_path: Path) -> xd.Future[Any]:
    future = pool.submit(wait_for, tmp_path / "never")
    assert future.cancel()
    return future


# -- wait -----------------------------------------------------------------------------------


def test_20369(pool: xd.Executor) -> None:
    future = pool.submit(time.sleep, 0.5)
    done, not_done = futures.wait([future, future], return_when=futures.ALL_COMPLETED)
    assert (done, not_done) == ({future}, set())


def test_first_completed(pool: xd.Executor, slow: xd.Future[Any]) -> None:
    quick = pool.submit(multiply, 21, 2)
    done, not_done = futures.wait([slow, quick], return_when=futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})


def test_first_completed_some_already_completed(
    pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path
) -> None:
    before: list[xd.Future[Any]] = [cancelled(pool, tmp_path), succeeded(pool)]
    done, pending = futures.wait([*before, slow], return_when=futures.FIRST_COMPLETED)
    assert (done, pending) == (set(before), {slow})


def test_first_exception(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    go = tmp_path / "go"
    first, second = pool.submit(multiply, 2, 21), pool.submit(fail_when, go)
    first.add_done_callback(lambda _: go.touch())
    these: list[xd.Future[Any]] = [first, second, slow]
    finished, pending = futures.wait(these, return_when=futures.FIRST_EXCEPTION)
    assert (finished, pending) == ({first, second}, {slow})


def test_first_exception_some_already_complete(
    pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path
) -> None:
    failing, before = pool.submit(divmod, 21, 0), [succeeded(pool), cancelled(pool, tmp_path)]
    finished, pending = futures.wait([*before, failing, slow], return_when=futures.FIRST_EXCEPTION)
    assert (finished, pending) == ({*before, failing}, {slow})


def test_first_exception_one_already_failed(pool: xd.Executor, slow: xd.Future[Any]) -> None:
    before = failed(pool)
    finished, pending = futures.wait([before, slow], return_when=futures.FIRST_EXCEPTION)
    assert (finished, pending) == ({before}, {slow})


def test_all_completed(pool: xd.Executor, tmp_path: Path) -> None:
    these: list[xd.Future[Any]] = [
        pool.submit(divmod, 2, 0),
        pool.submit(multiply, 2, 21),
        cancelled(pool, tmp_path),
    ]
    finished, pending = futures.wait(these, return_when=futures.ALL_COMPLETED)
    assert (finished, pending) == (set(these), set())


def test_timeout(pool: xd.Executor, slow: xd.Future[Any]) -> None:
    quick = succeeded(pool)
    finished, pending = futures.wait([quick, slow], timeout=0.2)
    assert (finished, pending) == ({quick}, {slow})


def test_pending_calls_race(pool: xd.Executor) -> None:
    these = [pool.submit(multiply, n, 2) for n in range(50)]
    futures.wait(these)
    assert [future.result() for future in these] == [2 * n for n in range(50)]


def test_wait_of_exadask_agrees_with_the_standard_one(
    pool: xd.Executor, slow: xd.Future[Any]
) -> None:
    quick = pool.submit(multiply, 1, 1)
    done, pending = xd.wait([quick, slow], return_when=futures.FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {slow})
    assert xd.wait([]) == (set(), set())


# -- as_completed ---------------------------------------------------------------------------


def test_no_timeout(pool: xd.Executor, tmp_path: Path) -> None:
    before = [cancelled(pool, tmp_path), failed(pool), succeeded(pool)]
    these = {*before, pool.submit(multiply, 2, 21), pool.submit(multiply, 7, 6)}
    assert set(futures.as_completed(these)) == these
    assert set(xd.as_completed(these)) == these


def test_future_times_out(pool: xd.Executor, slow: xd.Future[Any]) -> None:
    before = succeeded(pool)
    for timeout in (0, 0.01):
        these: list[xd.Future[Any]] = [before, slow]
        iterator = futures.as_completed(these, timeout=timeout)
        assert next(iterator) is before
        with pytest.raises(futures.TimeoutError):
            next(iterator)


def test_duplicate_futures(pool: xd.Executor) -> None:
    future = pool.submit(time.sleep, 0.2)
    assert list(futures.as_completed([future, future])) == [future]


def test_free_reference_yielded_future(pool: xd.Executor) -> None:
    these = [pool.submit(multiply, n, 1) for n in range(8)]
    futures.wait(these)
    iterator = futures.as_completed(these)
    del these
    for future in iterator:
        reference = weakref.ref(future)
        del future
        gc.collect()
        eventually(lambda reference=reference: reference() is None)  # type: ignore[misc]  # bound now


def test_correct_timeout_exception_msg(
    pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path
) -> None:
    these = [cancelled(pool, tmp_path), slow, succeeded(pool), failed(pool)]
    with pytest.raises(futures.TimeoutError, match=r"1 \(of 4\) futures unfinished"):
        list(futures.as_completed(these, timeout=0))


# -- futures --------------------------------------------------------------------------------


class Called:
    """Remembers what it was called with."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.with_: list[Any] = []
        self.event = threading.Event()
        self._error = error

    def __call__(self, future: Any) -> None:
        self.with_.append(future)
        self.event.set()
        if self._error is not None:
            raise self._error


def test_done_callback_with_result(pool: xd.Executor) -> None:
    called, future = Called(), pool.submit(multiply, 5, 1)
    future.add_done_callback(called)
    assert called.event.wait(30)
    assert [one.result() for one in called.with_] == [5]


def test_done_callback_with_exception(pool: xd.Executor) -> None:
    called, future = Called(), pool.submit(divmod, 1, 0)
    future.add_done_callback(called)
    assert called.event.wait(30)
    assert isinstance(called.with_[0].exception(), ZeroDivisionError)


def test_done_callback_with_cancel(slow: xd.Future[Any]) -> None:
    called = Called()
    slow.add_done_callback(called)
    assert slow.cancel()
    assert called.event.wait(30)
    assert called.with_[0].cancelled()


def test_done_callback_raises(pool: xd.Executor, caplog: pytest.LogCaptureFixture) -> None:
    raising, after = Called(ZeroDivisionError("in a callback")), Called()
    future = pool.submit(time.sleep, 0.2)
    future.add_done_callback(raising)
    future.add_done_callback(after)
    with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        assert after.event.wait(30)
    assert raising.with_ == after.with_ == [future]
    assert "exception calling callback" in caplog.text


def test_done_callback_already_successful(pool: xd.Executor) -> None:
    called, future = Called(), succeeded(pool)
    future.add_done_callback(called)
    assert called.with_ == [future]


def test_done_callback_already_failed(pool: xd.Executor) -> None:
    called, future = Called(), failed(pool)
    future.add_done_callback(called)
    assert called.with_ == [future]


def test_done_callback_already_cancelled(pool: xd.Executor, tmp_path: Path) -> None:
    called, future = Called(), cancelled(pool, tmp_path)
    future.add_done_callback(called)
    assert called.with_ == [future]


def test_done_callback_raises_already_succeeded(
    pool: xd.Executor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        succeeded(pool).add_done_callback(Called(ZeroDivisionError("in a callback")))
    assert "exception calling callback" in caplog.text


def test_repr(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    eventually(slow.running)
    for future, state in (
        (slow, "running on node-0"),
        (succeeded(pool), r"finished in [\d.e-]+ s"),
        (failed(pool), r"failed in [\d.e-]+ s"),
        (cancelled(pool, tmp_path), "cancelled"),
    ):
        assert re.fullmatch(rf"<Future \w+: {state}; 1 core>", repr(future))


def test_cancel(pool: xd.Executor, slow: xd.Future[Any]) -> None:
    eventually(slow.running)
    assert slow.cancel()  # the standard library cannot cancel what runs; this is on purpose
    assert slow.cancel()
    assert slow.cancelled()
    assert not succeeded(pool).cancel()
    assert not failed(pool).cancel()


def test_cancelled(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    assert cancelled(pool, tmp_path).cancelled()
    assert not any(one.cancelled() for one in (slow, succeeded(pool), failed(pool)))


def test_done(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    assert all(one.done() for one in (cancelled(pool, tmp_path), succeeded(pool), failed(pool)))
    assert not slow.done()


def test_running(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    eventually(slow.running)
    ended = (cancelled(pool, tmp_path), succeeded(pool), failed(pool))
    assert not any(one.running() for one in ended)


def test_result_with_timeout(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    with pytest.raises(futures.TimeoutError):
        slow.result(timeout=0)
    with pytest.raises(futures.CancelledError):
        cancelled(pool, tmp_path).result(timeout=0)
    with pytest.raises(ZeroDivisionError):
        failed(pool).result(timeout=0)
    assert succeeded(pool).result(timeout=0) == 42


def test_result_with_success(pool: xd.Executor) -> None:
    future = pool.submit(multiply, 6, 7)
    assert future.result(timeout=5) == 42
    assert future.result() == 42


def test_result_with_cancel(slow: xd.Future[Any]) -> None:
    threading.Timer(0.2, slow.cancel).start()
    with pytest.raises(futures.CancelledError):
        slow.result(timeout=30)


def test_exception_with_timeout(pool: xd.Executor, slow: xd.Future[Any], tmp_path: Path) -> None:
    with pytest.raises(futures.TimeoutError):
        slow.exception(timeout=0)
    with pytest.raises(futures.CancelledError):
        cancelled(pool, tmp_path).exception(timeout=0)
    assert isinstance(failed(pool).exception(timeout=0), ZeroDivisionError)
    assert succeeded(pool).exception(timeout=0) is None


def test_exception_with_success(pool: xd.Executor) -> None:
    assert isinstance(pool.submit(divmod, 1, 0).exception(timeout=5), ZeroDivisionError)


# -- asyncio --------------------------------------------------------------------------------


def test_futures_can_be_awaited_wrapped_and_run_by_a_loop(pool: xd.Executor) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        wrapped = asyncio.wrap_future(pool.submit(multiply, 2, 3))
        run = loop.run_in_executor(pool, multiply, 4, 5)
        with pytest.raises(ZeroDivisionError):
            await pool.submit(divmod, 1, 0)
        return [await pool.submit(multiply, 1, 1), await wrapped, await run]

    assert asyncio.run(main()) == [1, 6, 20]
