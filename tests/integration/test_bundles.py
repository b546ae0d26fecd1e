"""Many short calls travel as one task of Dask's; to their user, each is a task of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import exadask as xd
from exadask.errors import (
    DependencyFailed,
    InvalidRequest,
    MemoryExceeded,
    NodeLost,
    NotSerializable,
    TaskCrashed,
    TimeExceeded,
)
from exadask.runtime.cluster import EmbeddedCluster
from exadask.runtime.job import Bundle
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.dask, pytest.mark.timeout(90)]

MIB = 2**20
N = 9
MIDDLE = 4
OTHERS = [place for place in range(N) if place != MIDDLE]


@pytest.fixture(scope="module")
def node() -> Iterator[xd.Executor]:
    shape = xd.NodeShape.declare(cores=2, memory="8GiB")
    with xd.Executor(nodes=[shape], kill_grace_s=0.3, poll_interval_s=0.02) as executor:
        yield executor
        check_books(executor)


@pytest.fixture
def two_nodes() -> Iterator[xd.Executor]:
    shape = xd.NodeShape.declare(cores=2, memory="8GiB")
    with xd.Executor(nodes=[shape, shape], kill_grace_s=0.3) as executor:
        yield executor
        check_books(executor)


def cluster_of(executor: xd.Executor) -> EmbeddedCluster:
    assert isinstance(executor._cluster, EmbeddedCluster)
    return executor._cluster


def check_books(executor: xd.Executor) -> None:
    """Nothing is held any more by anyone, and the books agree with themselves."""
    placement = cluster_of(executor).plugin.placement
    eventually(lambda: all(one.ledger.is_idle for one in placement.nodes.values()))
    placement.check()


@contextlib.contextmanager
def together(executor: xd.Executor) -> Iterator[None]:
    """Send nothing until all is submitted."""
    go = threading.Event()
    cluster_of(executor).gateway.loop.call_soon_threadsafe(go.wait)
    try:
        yield
    finally:
        go.set()


def bundle(
    executor: xd.Executor,
    function: Callable[..., Any],
    *arguments: Sequence[Any],
    **options: Any,
) -> list[xd.Future[Any]]:
    """Submit calls so that they travel as one bundle."""
    size = len(arguments[0])
    with together(executor):
        return executor.options(bundle=size, **options).map(function, *arguments)


def note(folder: Path, place: int) -> None:
    """Note that a call has begun."""
    with (folder / str(place)).open("a") as file:
        file.write("x")


def begun(folder: Path) -> dict[int, int]:
    """Count how often each call has begun."""
    return {int(file.name): file.stat().st_size for file in folder.iterdir()}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def mostly_square(place: int, notes: Path, trouble: Callable[[], Any]) -> int:
    """Do what a well-behaved call does; in the middle of the bundle, do something else."""
    note(notes, place)
    if place == MIDDLE:
        trouble()
    return place**2


def with_trouble(
    executor: xd.Executor, notes: Path, trouble: Callable[[], Any], **options: Any
) -> xd.Future[Any]:
    """Run a bundle with one such call; check all the others, and give the one."""
    futures = bundle(executor, mostly_square, range(N), [notes] * N, [trouble] * N, **options)
    assert [futures[place].result(30) for place in OTHERS] == [place**2 for place in OTHERS]
    concurrent.futures.wait([futures[MIDDLE]], 30)
    assert begun(notes) == dict.fromkeys(range(N), 1)
    assert {futures[place].attempts for place in OTHERS} == {1}
    return futures[MIDDLE]


def say(text: str, error: str) -> None:
    sys.stdout.write(text)
    sys.stderr.write(error)


def wait_for_file(path: Path) -> str:
    eventually(path.exists, timeout_s=60)
    return os.environ.get("EXADASK_SLOT", "")


# -- what travels together --------------------------------------------------------------------


@pytest.fixture
def sizes(node: xd.Executor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many calls are in each task that is sent."""
    found: list[int] = []
    gateway = cluster_of(node).gateway
    send = gateway.send

    def noted(batch: Sequence[Any]) -> None:
        found.extend(one.work.count if isinstance(one.work, Bundle) else 1 for one in batch)
        send(batch)

    monkeypatch.setattr(gateway, "send", noted)
    return found


def test_calls_of_a_chosen_number_travel_together(node: xd.Executor, sizes: list[int]) -> None:
    with together(node):
        futures = node.options(bundle=10).map(abs, range(25))
    assert [future.result(30) for future in futures] == list(range(25))
    assert sizes == [10, 10, 5]
    assert {future.attempts for future in futures} == {1}


def test_calls_travel_together_once_one_was_measured(node: xd.Executor, sizes: list[int]) -> None:
    def double(number: int) -> int:
        return 2 * number

    assert node.submit(double, 1).result(30) == 2
    with together(node):
        futures = [node.submit(double, number) for number in range(500)]
    assert [future.result(30) for future in futures] == [2 * number for number in range(500)]
    assert sum(sizes) == 501
    assert len(sizes) < 20


def test_calls_travel_alone_if_the_user_wants_it(node: xd.Executor, sizes: list[int]) -> None:
    with together(node):
        futures = [node.options(bundle=False).submit(abs, -number) for number in range(20)]
    assert [future.result(30) for future in futures] == list(range(20))
    assert set(sizes) == {1}


@pytest.mark.parametrize("size", [0, -1, "x", 2.5, ()])
def test_size_of_a_bundle_that_makes_no_sense(node: xd.Executor, size: object) -> None:
    with pytest.raises(InvalidRequest, match="bundle="):
        node.options(bundle=size)


def test_huge_bundle_is_cut_into_pieces(node: xd.Executor, sizes: list[int]) -> None:
    with together(node):
        futures = node.options(bundle=10**12).map(abs, range(20_000))
    assert [future.result(60) for future in futures] == list(range(20_000))
    assert max(sizes) < 20_000


def test_different_functions_travel_together(node: xd.Executor, sizes: list[int]) -> None:
    functions: list[Any] = [lambda factor=factor: factor * 3 for factor in range(40)]
    with together(node):
        futures = [node.options(bundle=64).submit(one) for one in [*functions, os.getcwd]]
    assert [future.result(30) for future in futures[:-1]] == [3 * one for one in range(40)]
    assert futures[-1].result(30) == os.getcwd()  # noqa: PTH109  # as text
    assert sizes == [41]


# -- how calls end ----------------------------------------------------------------------------


def test_exception_is_that_of_its_call(node: xd.Executor, notes: Path) -> None:
    def divide() -> float:
        return 1 / 0

    error = with_trouble(node, notes, divide).exception()
    assert isinstance(error, ZeroDivisionError)
    assert "in divide" in str(error.__cause__)
    assert "bundle_runner" not in str(error.__cause__)


def test_endless_recursion_is_an_exception(node: xd.Executor, notes: Path) -> None:
    def recurse() -> None:
        recurse()

    assert isinstance(with_trouble(node, notes, recurse).exception(), RecursionError)


def fail_until(place: int, notes: Path, successes_at: int) -> int:
    note(notes, place)
    attempt = (notes / str(place)).stat().st_size
    if place == MIDDLE and attempt < successes_at:
        raise OSError(f"attempt {attempt}")
    return attempt


@pytest.mark.parametrize(
    ("retries", "retry_on", "attempts", "is_well"),
    [(2, None, 3, True), (1, None, 2, False), (2, OSError, 3, True), (2, KeyError, 1, False)],
)
def test_retries_are_those_of_the_call(
    node: xd.Executor, notes: Path, retries: int, retry_on: Any, attempts: int, is_well: bool
) -> None:
    options = {"retries": retries, "retry_on": retry_on}
    futures = bundle(node, fail_until, range(N), [notes] * N, [3] * N, **options)
    assert [futures[place].result(30) for place in OTHERS] == [1] * len(OTHERS)
    assert (futures[MIDDLE].exception(30) is None) == is_well
    assert futures[MIDDLE].attempts == attempts
    assert begun(notes) == dict.fromkeys(range(N), 1) | {MIDDLE: attempts}


def test_each_function_of_a_bundle_has_its_own_retries(node: xd.Executor, notes: Path) -> None:
    def crash(place: int) -> None:
        note(notes, place)
        os._exit(3)

    stubborn = xd.task(retries=2, retry_on=TaskCrashed, bundle=3)(crash)
    picky = xd.task(retries=2, retry_on=KeyError, bundle=3, name="picky")(crash)
    with together(node):
        futures = [picky.submit(0), stubborn.submit(1), picky.submit(2)]
    errors = [future.exception(30) for future in futures]
    assert ["'picky'" in str(error) for error in errors] == [True, False, True]
    assert [future.attempts for future in futures] == [1, 3, 1]


def touch_address_zero() -> None:
    say("", "the last words\n")
    ctypes.string_at(0)


def kill_myself() -> None:
    say("", "the last words\n")
    os.kill(os.getpid(), signal.SIGKILL)


def leave_at_once() -> None:
    say("", "the last words\n")
    os._exit(3)


def leave() -> None:
    sys.exit(4)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("trouble", "signal_name", "exit_code"),
    [
        (touch_address_zero, "SIGSEGV", None),
        (kill_myself, "SIGKILL", None),
        (leave_at_once, None, 3),
        (leave, None, 4),
        (interrupt, "SIGINT", None),
    ],
)
def test_crash_is_that_of_its_call(
    node: xd.Executor,
    notes: Path,
    trouble: Callable[[], None],
    signal_name: str | None,
    exit_code: int | None,
) -> None:
    error = with_trouble(node, notes, trouble).exception()
    assert isinstance(error, TaskCrashed)
    assert (error.signal, error.exit_code) == (signal_name, exit_code)
    if trouble not in (leave, interrupt):
        assert error.stderr_tail.startswith("the last words")


def test_crashes_in_a_row_cost_their_calls_only(node: xd.Executor, notes: Path) -> None:
    def crash_if_odd(place: int) -> int:
        note(notes, place)
        if place % 2:
            os._exit(1)
        return place

    futures = bundle(node, crash_if_odd, range(12))
    for place, future in enumerate(futures):
        assert isinstance(future.exception(30), TaskCrashed) == bool(place % 2)
    assert begun(notes) == dict.fromkeys(range(12), 1)


def test_crash_after_thousands_of_calls_costs_none_of_their_results(
    node: xd.Executor, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def crash_at_end(place: int) -> int:
        with log.open("a") as file:
            file.write(f"{place}\n")
        if place == 2999:
            os._exit(1)
        return place

    futures = bundle(node, crash_at_end, range(3000))
    assert [future.result(30) for future in futures[:-1]] == list(range(2999))
    assert isinstance(futures[-1].exception(30), TaskCrashed)
    assert log.read_text().split() == [str(place) for place in range(3000)]


# -- limits -----------------------------------------------------------------------------------


def refuse_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def end_when_asked() -> None:
    is_asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_asked.set())
    is_asked.wait(60)


@pytest.mark.parametrize("trouble", [lambda: time.sleep(60), refuse_to_end, end_when_asked])
def test_time_limit_is_that_of_its_call(
    node: xd.Executor, notes: Path, trouble: Callable[[], Any]
) -> None:
    future = with_trouble(node, notes, trouble, time="0.5s")
    with pytest.raises(TimeExceeded, match=r"'mostly_square'.*time limit of 0.5 s"):
        future.result()
    assert future.usage is not None
    assert 0.5 <= future.usage.wall_s < 10


def test_calls_may_last_longer_together_than_their_time_limit(node: xd.Executor) -> None:
    futures = bundle(node, time.sleep, [0.1] * 8, time="0.5s")
    assert [future.result(30) for future in futures] == [None] * 8
    assert {future.attempts for future in futures} == {1}


def take_too_much() -> None:
    blocks = []
    while True:
        blocks.append(b"x" * (20 * MIB))
        time.sleep(0.01)


def test_memory_limit_is_that_of_its_call(node: xd.Executor, notes: Path) -> None:
    def take_more_and_more(place: int) -> int:
        note(notes, place)
        if place == MIDDLE:
            take_too_much()
        return place

    futures = bundle(node, take_more_and_more, range(N), memory="300MiB")
    assert [futures[place].result(30) for place in OTHERS] == OTHERS
    error = futures[MIDDLE].exception(30)
    assert isinstance(error, MemoryExceeded)
    usage = futures[MIDDLE].usage
    assert usage is not None
    assert usage.peak_bytes >= error.peak > 300 * MIB
    counts = begun(notes)
    assert counts.pop(MIDDLE) == 2, "those before it in its process might be to blame"
    assert counts == dict.fromkeys(OTHERS, 1)


_leaked: list[bytes] = []


def test_call_after_leaky_ones_is_not_blamed(node: xd.Executor) -> None:
    def leak(place: int) -> int:
        _leaked.append(b"x" * (100 * MIB))
        time.sleep(0.15)
        return place

    futures = bundle(node, leak, range(6), memory="250MiB")
    assert [future.result(30) for future in futures] == list(range(6))


# -- cancelling -------------------------------------------------------------------------------


def note_and_wait(place: int, notes: Path, go: Path) -> int:
    note(notes, place)
    if place == 1:
        wait_for_file(go)
    return place


def test_queued_call_that_is_cancelled_never_runs(node: xd.Executor, notes: Path) -> None:
    go = notes.parent / "go"
    busy = [node.submit(wait_for_file, go) for _ in range(2)]
    eventually(lambda: all(map(xd.Future.running, busy)))
    futures = [node.options(bundle=5).submit(note_and_wait, n, notes, go) for n in range(100, 200)]
    assert all(future.cancel() for future in futures[10:])
    go.touch()
    assert [future.result(30) for future in futures[:10]] == list(range(100, 110))
    assert all(future.cancelled() for future in futures[10:])
    assert len({future.result(30) for future in busy}) == 2
    assert begun(notes) == dict.fromkeys(range(100, 110), 1)


def test_calls_of_a_running_bundle_that_are_cancelled_never_run(
    node: xd.Executor, notes: Path
) -> None:
    go = notes.parent / "go"
    futures = bundle(node, note_and_wait, range(N), [notes] * N, [go] * N)
    eventually((notes / "1").exists)
    assert futures[3].cancel()
    assert futures[N - 1].cancel()
    check_explained(futures[2], "travel together")
    go.touch()
    left = [place for place in range(N) if place not in (3, N - 1)]
    assert [futures[place].result(30) for place in left] == left
    assert begun(notes) == dict.fromkeys(left, 1)


def check_explained(future: xd.Future[Any], text: str) -> None:
    assert text in future.explain()


@pytest.mark.parametrize("trouble", [lambda: time.sleep(60), refuse_to_end, end_when_asked])
def test_running_call_is_ended_when_it_is_cancelled(
    node: xd.Executor, notes: Path, trouble: Callable[[], Any]
) -> None:
    futures = bundle(node, mostly_square, range(N), [notes] * N, [trouble] * N)
    eventually((notes / str(MIDDLE)).exists)
    assert futures[0].result(30) == 0
    assert futures[MIDDLE].cancel()
    assert [futures[place].result(30) for place in OTHERS] == [place**2 for place in OTHERS]
    assert begun(notes) == dict.fromkeys(range(N), 1)


def test_bundle_ends_when_all_its_calls_are_cancelled(node: xd.Executor, notes: Path) -> None:
    go = notes.parent / "never"
    running = bundle(node, note_and_wait, range(1, 4), [notes] * 3, [go] * 3)
    eventually((notes / "1").exists)
    waiting = bundle(node, note_and_wait, range(11, 14), [notes] * 3, [go] * 3, cores=2)
    assert all(future.cancel() for future in (*waiting, *running))
    assert node.options(cores=2).submit(abs, -1).result(30) == 1
    assert begun(notes) == {1: 1}


def test_calls_cancelled_at_any_moment_give_their_shares_back(two_nodes: xd.Executor) -> None:
    rng = random.Random(1)
    for index in range(150):
        options = two_nodes.options(bundle=rng.choice((False, 3)))
        futures = options.map(time.sleep, [60.0] * 3)
        if index % 2:
            threading.Event().wait(rng.random() * 0.004)
        assert all(future.cancel() for future in futures)
    assert two_nodes.options(cores=2).submit(abs, -1).result(30) == 1
    check_books(two_nodes)


# -- what is known about a call ---------------------------------------------------------------


def test_output_is_each_calls_own(node: xd.Executor) -> None:
    long = "0123456789" * 1000
    texts = [("été\n", ""), ("", "warned\n"), (long, "short\n"), ("", long), ("", ""), (long, long)]
    futures = bundle(node, say, *zip(*texts, strict=True))
    for future, (out, err) in zip(futures, texts, strict=True):
        future.result(30)
        assert (future.stdout(), future.stderr()) == (out, err)


def test_output_of_a_failed_and_of_a_crashed_call(node: xd.Executor) -> None:
    long = "0123456789" * 1000

    def speak_and_end(place: int) -> None:
        say(f"{place}" + long * (place > 1), f"error {place}\n")
        if place % 2:
            os._exit(1)
        raise ValueError

    futures = bundle(node, speak_and_end, range(4))
    kinds = [type(future.exception(30)) for future in futures]
    assert kinds == [ValueError, TaskCrashed, ValueError, TaskCrashed]
    texts = [(f"{n}" + long * (n > 1), f"error {n}\n") for n in range(4)]
    assert [(future.stdout(), future.stderr()) for future in futures] == texts


def test_output_of_a_call_that_runs(node: xd.Executor, tmp_path: Path) -> None:
    def speak_and_wait(place: int) -> None:
        say(f"so far {place}\n", "")
        if place == 1:
            wait_for_file(tmp_path / "go")
        say("and more\n", "")

    futures = bundle(node, speak_and_wait, range(3))
    eventually(lambda: futures[1].stdout() == "so far 1\n")
    assert futures[2].stdout() == ""
    (tmp_path / "go").touch()
    futures[2].result(30)
    assert [one.stdout() for one in futures] == [f"so far {n}\nand more\n" for n in range(3)]


def test_output_of_a_program_that_a_call_runs(node: xd.Executor) -> None:
    def run(text: str) -> None:
        subprocess.run(["/bin/sh", "-c", f"echo {text}; echo {text} >&2"], check=True)

    futures = bundle(node, run, ["a", "b", "c"])
    for future, text in zip(futures, "abc", strict=True):
        future.result(30)
        assert (future.stdout(), future.stderr()) == (f"{text}\n", f"{text}\n")


def test_usage_is_that_of_the_call(node: xd.Executor) -> None:
    def use(place: int) -> int:
        if place == 1:
            time.sleep(0.3)
        if place == 2:
            until_s = time.process_time() + 0.3
            while time.process_time() < until_s:
                pass
        if place == 3:
            program = "import time\nwhile time.process_time() < 0.3: pass"
            subprocess.run([sys.executable, "-S", "-c", program], check=True)
        return len(b"x" * (200 * MIB)) if place == 4 else 0

    futures = bundle(node, use, range(6))
    for future in futures:
        future.result(30)
    usages = [future.usage for future in futures]
    idle, asleep, busy, parent, large, after = usages
    assert idle is not None
    assert asleep is not None
    assert busy is not None
    assert parent is not None
    assert large is not None
    assert after is not None
    assert 0 <= idle.wall_s < 0.1
    assert 0.3 <= asleep.wall_s < 5
    assert asleep.cpu_s < 0.2
    assert 0.3 <= busy.cpu_s < 1
    assert 0.3 <= parent.cpu_s < 2
    assert 200 * MIB <= large.peak_bytes < 400 * MIB
    assert after.peak_bytes < 400 * MIB


def test_call_can_be_explained_at_any_time(node: xd.Executor, notes: Path) -> None:
    go, stop = notes.parent / "go", notes.parent / "stop"
    busy = [node.submit(wait_for_file, stop) for _ in range(2)]
    eventually(lambda: all(future.running() for future in busy))
    with together(node):
        arguments = range(40), [notes] * 40, [go] * 40
        futures = node.options(bundle=4).map(note_and_wait, *arguments)
    eventually(lambda: "needs 1 core" in futures[1].explain())
    assert "call 2 of 4 that travel together" in futures[1].explain()
    assert "go before it, not sent yet" in futures[39].explain()
    stop.touch()
    eventually((notes / "1").exists)
    eventually(futures[1].running)
    check_explained(futures[1], "node-0")
    assert not futures[3].done()
    go.touch()
    assert futures[39].result(30) == 39
    assert futures[1].result(30) == 1
    assert futures[1].explain().startswith("finished after")
    assert futures[1].node == "node-0"


def test_results_come_back_while_the_bundle_runs(node: xd.Executor, notes: Path) -> None:
    go = notes.parent / "go"
    futures = bundle(node, note_and_wait, range(3), [notes] * 3, [go] * 3)
    assert futures[0].result(30) == 0
    eventually(futures[1].running)
    assert not futures[1].done()
    assert not futures[2].done()
    go.touch()
    assert futures[2].result(30) == 2


# -- what goes in and comes out ---------------------------------------------------------------


def test_result_that_cannot_be_packed_fails_its_call(node: xd.Executor, notes: Path) -> None:
    def lock_or_number(place: int) -> Any:
        return threading.Lock() if place == MIDDLE else place

    futures = bundle(node, lock_or_number, range(N))
    assert [futures[place].result(30) for place in OTHERS] == OTHERS
    with pytest.raises(NotSerializable, match="the result"):
        futures[MIDDLE].result(30)


def test_argument_that_cannot_be_packed_is_refused_at_once(node: xd.Executor) -> None:
    with pytest.raises(NotSerializable, match="argument 1"):
        node.options(bundle=4).submit(id, threading.Lock())


class CannotBeRebuilt(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def test_exception_that_cannot_be_rebuilt_fails_its_call(node: xd.Executor, notes: Path) -> None:
    def fail() -> None:
        raise CannotBeRebuilt(1, 2)

    error = with_trouble(node, notes, fail).exception()
    assert isinstance(error, xd.errors.RemoteError)
    assert "1 2" in str(error)


def test_large_results_and_what_is_made_of_them(node: xd.Executor) -> None:
    np = pytest.importorskip("numpy")

    def make(place: int) -> Any:
        small = [place, b"x" * (100_000 if place == 2 else 10)]
        return np.full(500_000, place, dtype="f8") if place in (3, 6) else small

    futures = bundle(node, make, range(8))
    sums = [node.submit(lambda one: one.sum(), futures[place]) for place in (3, 6)]
    assert [one.result(30) for one in sums] == [1_500_000, 3_000_000]
    for place, future in enumerate(futures):
        value = future.result(30)
        if place in (3, 6):
            assert value.shape == (500_000,)
            assert (value == place).all()
        else:
            assert value[0] == place


def test_objects_and_keywords_are_arguments(node: xd.Executor) -> None:
    def join(parts: dict[str, Any], *, sign: str, last: Any = None) -> str:
        return sign.join(map(str, parts["all"])) + str(last)

    with together(node):
        options = node.options(bundle=4)
        futures = [options.submit(join, {"all": [n, {n}]}, sign="-", last=n) for n in range(4)]
    assert [future.result(30) for future in futures] == [f"{n}-{{{n}}}{n}" for n in range(4)]


def test_coroutine_functions_are_awaited(node: xd.Executor) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert [one.result(30) for one in bundle(node, double, range(5))] == [0, 2, 4, 6, 8]


def test_state_of_a_setup_is_kept_between_calls(node: xd.Executor) -> None:
    def start() -> list[int]:
        return []

    def count(state: list[int], number: int) -> int:
        state.append(number)
        return len(state)

    assert [one.result(30) for one in bundle(node, count, range(5), setup=start)] == [1, 2, 3, 4, 5]


def test_setup_that_fails_fails_every_call(node: xd.Executor) -> None:
    def start() -> None:
        raise LookupError("no model")

    errors = [one.exception(30) for one in bundle(node, lambda state, n: n, range(3), setup=start)]
    assert [type(error) for error in errors] == [LookupError] * 3


def test_environment_is_that_of_the_calls(node: xd.Executor) -> None:
    def look(name: str) -> str | None:
        return os.environ.get(name)

    futures = bundle(node, look, ["GREETING"] * 3, env={"GREETING": "hello"})
    assert [future.result(30) for future in futures] == ["hello"] * 3
    assert [one.result(30) for one in bundle(node, look, ["GREETING"] * 2)] == [None] * 2


def test_higher_priority_goes_first(node: xd.Executor, tmp_path: Path) -> None:
    go, log = tmp_path / "go", tmp_path / "log"

    def write(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    busy = [node.submit(wait_for_file, go) for _ in range(2)]
    eventually(lambda: all(future.running() for future in busy))
    low = bundle(node, write, ["l"] * 5, cores=2)
    high = bundle(node, write, ["h"] * 5, cores=2, priority=1)
    eventually(lambda: "needs 2 cores" in high[0].explain() and "needs 2 cores" in low[0].explain())
    go.touch()
    concurrent.futures.wait([*low, *high], 30)
    assert log.read_text() == "hhhhhlllll"
    assert len({future.result(30) for future in busy}) == 2


def test_a_bundle_ends_early_for_a_task_of_higher_priority(
    node: xd.Executor, notes: Path, tmp_path: Path
) -> None:
    def wait_in_turn(place: int) -> None:
        note(notes, place)
        wait_for_file(tmp_path / ("first" if place == 0 else "rest"))

    low = bundle(node, wait_in_turn, range(20), cores=2)
    eventually(lambda: 0 in begun(notes))
    urgent = node.options(cores=2, priority=1).submit(os.getpid)
    eventually(lambda: "running" not in low[19].explain())  # the bundle has given its rest back
    (tmp_path / "first").touch()
    assert urgent.result(30) > 0
    assert not low[2].done()
    (tmp_path / "rest").touch()
    concurrent.futures.wait(low, 30)
    assert begun(notes) == dict.fromkeys(range(20), 1)


# -- calls that leave something behind --------------------------------------------------------


def leave_child() -> None:
    child = subprocess.Popen(["sleep", "600"])
    child.returncode = 0  # or Python warns that it still runs


def close_output() -> None:
    os.close(1)
    os.close(2)


def close_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()


def replace_streams() -> None:
    import io

    sys.stdout = sys.stderr = io.StringIO()


def redirect_output() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def go_elsewhere() -> None:
    os.chdir("/")


def change_path() -> None:
    sys.path[:] = ["/nowhere"]


@pytest.mark.parametrize(
    "trouble",
    [
        leave_child,
        close_output,
        close_streams,
        replace_streams,
        redirect_output,
        go_elsewhere,
        change_path,
    ],
)
def test_next_call_finds_all_as_it_should_be(
    node: xd.Executor, trouble: Callable[[], None]
) -> None:
    def speak(place: int) -> tuple[str, list[str]]:
        found = os.getcwd(), list(sys.path)  # noqa: PTH109  # as text
        if place == 1:
            trouble()
        else:
            say(f"{place}\n", f"error {place}\n")
        return found

    futures = bundle(node, speak, range(4))
    found = [future.result(30) for future in futures]
    assert found == [found[0]] * 4
    assert found[0][0] == os.getcwd()  # noqa: PTH109  # as text
    for place in (0, 2, 3):
        assert futures[place].stdout() == f"{place}\n"
        assert futures[place].stderr() == f"error {place}\n"


def test_calls_may_wait_for_processes_that_they_start(node: xd.Executor) -> None:
    def echo(place: int) -> str:
        return subprocess.run(
            ["echo", str(place)], check=True, capture_output=True, text=True
        ).stdout

    futures = bundle(node, echo, range(8))
    assert [future.result(30) for future in futures] == [f"{place}\n" for place in range(8)]


# -- tasks that submit tasks ------------------------------------------------------------------


def sum_of_squares(count: int) -> int:
    return sum(future.result() for future in xd.task(pow).map(range(count), [2] * count))


def test_task_maps_short_calls_on_one_core() -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)]) as executor:
        assert executor.submit(sum_of_squares, 200).result(60) == sum(n**2 for n in range(200))
        futures = bundle(executor, sum_of_squares, [20, 30, 40])
        assert [one.result(60) for one in futures] == [2470, 8555, 20540]
        check_books(executor)


def wait_for_another(place: int, notes: Path) -> int:
    """Lend the share out, and be ended meanwhile; others must then wait until it is back."""
    if place == 0:
        return xd.task(time.sleep).submit(60).result() or 0
    note(notes, place)
    is_alone = len(list(notes.glob("busy-*"))) == 0
    (notes / f"busy-{place}").touch()
    time.sleep(0.1)
    (notes / f"busy-{place}").unlink()
    return is_alone


def test_share_that_was_lent_is_back_before_the_next_call(tmp_path: Path) -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)], kill_grace_s=0.1) as executor:
        options = {"time": "0.5s"}
        first, *others = bundle(executor, wait_for_another, range(5), [tmp_path] * 5, **options)
        single = executor.options(bundle=False)
        others += single.map(wait_for_another, range(5, 10), [tmp_path] * 5)
        assert isinstance(first.exception(30), TimeExceeded)
        assert [future.result(30) for future in others] == [True] * 9
        check_books(executor)


# -- dependencies -----------------------------------------------------------------------------


def add(*numbers: int) -> int:
    return sum(numbers)


def test_chain(node: xd.Executor) -> None:
    last = node.submit(add, 0)
    for _ in range(200):
        last = node.submit(add, last, 1)
    assert last.result(60) == 200


def test_fan_out_on_one_and_reduction(node: xd.Executor) -> None:
    root = node.submit(add, 7)
    level = [node.submit(add, root, number) for number in range(1000)]
    assert [future.result(60) for future in level] == [7 + number for number in range(1000)]
    while len(level) > 1:
        level = [node.submit(add, *level[n : n + 4]) for n in range(0, len(level), 4)]
    assert level[0].result(60) == sum(7 + number for number in range(1000))


def test_fan_out_on_a_large_result(node: xd.Executor) -> None:
    root = node.submit(bytes, 1_000_000)
    assert {one.result(60) for one in [node.submit(len, root) for _ in range(50)]} == {1_000_000}


def test_failing_input_fails_all_that_need_it(node: xd.Executor) -> None:
    def fail() -> int:
        raise ValueError("the root")

    root = node.submit(fail)
    middle = [node.submit(add, root, number) for number in range(50)]
    last = node.submit(add, *middle)
    error = last.exception(30)
    assert isinstance(error, DependencyFailed)
    assert error.chain == ("add", "fail")
    assert "the root" in str(error)
    assert all(isinstance(future.exception(30), DependencyFailed) for future in middle)


def test_cancelled_input_fails_all_that_need_it(node: xd.Executor, tmp_path: Path) -> None:
    root = node.submit(wait_for_file, tmp_path / "never")
    needing = [node.submit(len, root) for _ in range(20)]
    assert root.cancel()
    assert all(isinstance(future.exception(30), DependencyFailed) for future in needing)
    late = node.submit(len, root)
    assert isinstance(late.exception(30), DependencyFailed)


def test_call_runs_though_nobody_keeps_its_future(node: xd.Executor, notes: Path) -> None:
    def write(place: int) -> None:
        note(notes, place)

    for place in range(100):
        node.options(bundle=10).submit(write, place)
    eventually(lambda: begun(notes) == dict.fromkeys(range(100), 1))


def test_equal_calls_are_different_calls(node: xd.Executor, notes: Path) -> None:
    futures = bundle(node, note, [notes] * 5, [1] * 5)
    assert [future.result(30) for future in futures] == [None] * 5
    assert begun(notes) == {1: 5}
    one = node.submit(add, 1)
    assert node.submit(add, one, one).result(30) == 2


# -- slow calls, and processes that hang ------------------------------------------------------


def slow_first(place: int, folder: Path) -> int:
    if place == 0 and folder.is_dir():
        (folder / "pid.new").write_text(str(os.getpid()))
        (folder / "pid.new").rename(folder / "pid")
        wait_for_file(folder / "go")
    return place


def measured(executor: xd.Executor) -> None:
    """Let it be known that calls of `slow_first` are fast."""
    for _ in range(5):
        executor.submit(slow_first, 1, Path("/nowhere")).result(30)


def test_calls_behind_a_slow_one_run_elsewhere(node: xd.Executor, tmp_path: Path) -> None:
    measured(node)
    with together(node):
        futures = [node.submit(slow_first, place, tmp_path) for place in range(100)]
    assert [future.result(30) for future in futures[1:]] == list(range(1, 100))
    assert not futures[0].done()
    (tmp_path / "go").touch()
    assert futures[0].result(30) == 0


def test_calls_behind_a_process_that_is_stopped_run_elsewhere(
    node: xd.Executor, tmp_path: Path
) -> None:
    measured(node)
    with together(node):
        futures = [node.submit(slow_first, place, tmp_path) for place in range(100)]
    eventually((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        assert [future.result(30) for future in futures[1:]] == list(range(1, 100))
        (tmp_path / "go").touch()
        assert not futures[0].done()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert futures[0].result(30) == 0


def test_stopped_process_is_ended_at_its_time(node: xd.Executor, notes: Path) -> None:
    def stop_myself() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    future = with_trouble(node, notes, stop_myself, time="0.5s")
    assert isinstance(future.exception(), TimeExceeded)


def test_process_that_ends_before_it_has_read_its_calls(notes: Path) -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)], kill_grace_s=0.1) as executor:
        pid = executor.submit(os.getpid).result(30)
        os.kill(pid, signal.SIGSTOP)
        futures = bundle(executor, len, ["x" * 40_000] * 50)
        eventually(futures[0].running)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(futures[0].exception(30), TaskCrashed)
        assert [future.result(30) for future in futures[1:]] == [40_000] * 49
        check_books(executor)


# -- lost nodes -------------------------------------------------------------------------------


def test_calls_of_a_lost_node_run_elsewhere(two_nodes: xd.Executor, notes: Path) -> None:
    go = notes.parent / "go"
    done: Counter[int] = Counter()
    arguments = range(50), [notes] * 50, [go] * 50
    futures = bundle(two_nodes, note_and_wait, *arguments)
    for place, future in enumerate(futures):
        future.add_done_callback(lambda _, place=place: done.update([place]))  # type: ignore[misc]  # bound now
    eventually((notes / "1").exists)
    assert futures[0].result(30) == 0
    lost = futures[0].node
    assert lost is not None
    cluster_of(two_nodes).lose_node(lost)
    go.touch()
    assert [future.result(30) for future in futures] == list(range(50))
    assert futures[49].node not in (None, lost)
    assert begun(notes) == dict.fromkeys(range(50), 1) | {1: 2}
    eventually(lambda: done == Counter(range(50)))


def test_large_result_of_a_lost_node_is_computed_again(two_nodes: xd.Executor, notes: Path) -> None:
    def make(place: int) -> bytes | int:
        note(notes, place)
        if place == 2 and (notes / "2").stat().st_size > 1:
            return b"again" * 100_000
        return b"x" * 500_000 if place == 4 else place

    futures = bundle(two_nodes, make, range(5))
    concurrent.futures.wait(futures, 30)
    lost = futures[4].node
    assert lost is not None
    cluster_of(two_nodes).lose_node(lost)
    assert two_nodes.submit(len, futures[4]).result(30) == 500_000
    assert futures[4].result(30) == b"x" * 500_000
    assert [future.result(30) for future in futures[:4]] == [0, 1, 2, 3]
    assert begun(notes) == dict.fromkeys(range(5), 1) | {4: 2}


def kill_node(place: int, notes: Path) -> int:
    """Ask the test to let the node of this call die; it is not there any more afterwards."""
    if place == MIDDLE:
        (notes / f"kill-{os.getpid()}").touch()
        time.sleep(60)
    return place


@pytest.mark.parametrize(("n_calls", "n_lost"), [(N, 4), (2000, 5)])
def test_call_that_kills_its_nodes_is_stopped_and_the_others_are_not(
    notes: Path, n_calls: int, n_lost: int
) -> None:
    shape = xd.NodeShape.declare(cores=1)
    with xd.Executor(nodes=[shape] * 7, kill_grace_s=0.1) as executor:
        futures = bundle(executor, kill_node, range(n_calls), [notes] * n_calls)
        killer = futures[MIDDLE]
        n_seen = 0
        while not killer.done():
            eventually(lambda: killer.done() or len(list(notes.iterdir())) > n_seen)  # noqa: B023  # called at once
            if len(list(notes.iterdir())) > n_seen:
                n_seen += 1
                eventually(killer.running)
                assert killer.node is not None
                cluster_of(executor).lose_node(killer.node)
        assert isinstance(killer.exception(30), NodeLost)
        assert n_seen == n_lost
        others = [place for place in range(n_calls) if place != MIDDLE]
        assert [futures[place].result(30) for place in others] == others
        check_books(executor)


# -- the end ----------------------------------------------------------------------------------


def test_closing_with_a_long_queue_is_quick(tmp_path: Path) -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=2)], kill_grace_s=0.3) as executor:
        running = executor.options(time="60s").submit(wait_for_file, tmp_path / "never")
        executor.options(cores=2).submit(abs, -1)
        futures = executor.options(cores=2).map(abs, range(100_000))
        eventually(running.running)
        start_s = time.monotonic()
        assert running.cancel()
        executor.shutdown(cancel_futures=True)
        assert time.monotonic() - start_s < 30
    assert all(future.done() for future in futures)


# -- all at once ------------------------------------------------------------------------------

N_CHAOTIC = 20_000


def behave(seed: int, number: int) -> int | bytes:
    rng = random.Random(seed * N_CHAOTIC + number)
    draw = rng.random()
    if draw < 0.02:
        raise ArithmeticError(number)
    if draw < 0.0215:
        os._exit(7)
    if draw < 0.023:
        return bytes(200_000)
    if draw < 0.024:
        time.sleep(0.05)
    return number


def verdict(future: xd.Future[int | bytes], number: int) -> str:
    """Say how a call ended, if that is as it should be."""
    try:
        value = future.result(60)
    except ArithmeticError as error:
        return "raised" if error.args == (number,) else "wrong"
    except TaskCrashed as error:
        return "crashed" if error.exit_code == 7 else "wrong"
    except CancelledError:
        return "cancelled"
    if isinstance(value, bytes):
        return "large" if value == bytes(200_000) else "wrong"
    return "well" if value == number else "wrong"


def wait_until_done(futures: Sequence[xd.Future[Any]], share: float) -> None:
    """Wait for a share of many calls; where they get stuck, say what the others wait for."""

    def is_done() -> bool:
        return sum(map(xd.Future.done, futures)) > share * len(futures)

    try:
        eventually(is_done, poll_s=0.1)  # each look keeps the cluster from the interpreter
    except TimeoutError:
        left = [one for one in futures if not one.done()]
        pytest.fail(f"{len(left)} are not done: {[one.explain() for one in left[:5]]}")


def test_every_call_of_many_ends_as_it_should() -> None:
    seed = 1
    rng = random.Random(seed)
    shape = xd.NodeShape.declare(cores=2)
    with xd.Executor(nodes=[shape, shape], kill_grace_s=0.1) as executor:
        cluster = cluster_of(executor)
        futures = xd.task(behave).map([seed] * N_CHAOTIC, range(N_CHAOTIC))
        cancelled = rng.sample(range(N_CHAOTIC), k=500)
        for share in (0.1, 0.4, 0.7):
            wait_until_done(futures, share)
            joined = cluster.add_node(shape)
            cluster.lose_node(rng.choice([name for name in cluster.shapes if name != joined]))
            for number in cancelled[:: rng.randrange(2, 4)]:
                futures[number].cancel()
        verdicts = [verdict(future, number) for number, future in enumerate(futures)]
        counts = Counter(verdicts)
        assert counts["wrong"] == 0
        assert counts["well"] > 0.9 * N_CHAOTIC
        assert {"raised", "crashed", "large"} <= set(counts)
        for number, word in enumerate(verdicts):
            if word != "cancelled":
                assert word == expected(seed, number), number
        check_books(executor)


def expected(seed: int, number: int) -> str:
    draw = random.Random(seed * N_CHAOTIC + number).random()
    if draw < 0.02:
        return "raised"
    if draw < 0.0215:
        return "crashed"
    return "large" if draw < 0.023 else "well"
