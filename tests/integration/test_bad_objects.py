"""Things that cannot travel, and functions that misbehave: each ends with a clear error."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import shutil
import socket
import sqlite3
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import exadask as xd
from exadask.errors import DependencyFailed, NotSerializable, RemoteError, TaskCrashed

pytestmark = pytest.mark.timeout(60)

LOCK = threading.Lock()


class Refused(NamedTuple):
    """A call whose function, argument or result cannot travel, and where the culprit is."""

    name: str
    call: tuple[Any, ...]
    words: tuple[str, ...]


def deep_list(depth: int = 50_000) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def shallow_again(nested: list[Any]) -> None:
    """Take a deep list apart: freeing it in one go may overflow the stack."""
    while nested:
        nested = nested.pop()


def closure_over(value: object) -> Callable[[], object]:
    return lambda: value


def numbers() -> Any:
    return (number for number in range(3))


class Holder:
    """Holds something."""

    def __init__(self, content: object) -> None:
        self.content = content


class Loaded:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return raising, (ZeroDivisionError, "while loading")


def raising(kind: type[BaseException], *args: object) -> None:
    raise kind(*args)


def module_with_lock() -> types.ModuleType:
    module = types.ModuleType("made_here")
    module.lock = threading.Lock()  # type: ignore[attr-defined]  # that is what makes it bad
    return module


ADVICE = ("cannot send", "to another process", "Make it inside the task")
REFUSED = [
    Refused("a lock", (id, LOCK), ("argument 1 of task 'id'", "(a lock)")),
    Refused("a generator", (sum, numbers()), ("argument 1", "(a generator)")),
    Refused("a lambda's default", (lambda lock=LOCK: lock,), ("function 'lambda'", "default")),
    Refused("a closure", (closure_over(LOCK),), ("closure variable 'value'", "(a lock)")),
    Refused(
        "deep in an argument",
        (id, {"a": [1, {"b": (LOCK,)}]}),
        ("argument 1['a'][1]['b'][0] (a lock)",),
    ),
    Refused("in a set", (id, {LOCK}), ("argument 1 -> element (a lock)",)),
    Refused("in an attribute", (id, Holder([LOCK])), ("argument 1.content[0] (a lock)",)),
    Refused("in a partial", (functools.partial(id, LOCK),), ("arguments of the partial", "lock")),
    Refused("in a method's object", (Holder(LOCK).__repr__,), ("lock",)),
    Refused("a thread", (id, threading.Thread()), ("argument 1._started", "(a lock)")),
    Refused(
        "the second argument",
        (max, 1, [LOCK]),
        ("argument 2[0] (a lock)",),
    ),
]


@pytest.mark.parametrize("one", REFUSED, ids=lambda one: one.name)
def test_what_cannot_travel_is_named_with_its_place(ex: xd.Executor, one: Refused) -> None:
    with pytest.raises(NotSerializable) as caught:
        ex.submit(*one.call)
    message = str(caught.value)
    assert [word for word in (*ADVICE, *one.words) if word not in message] == [], message


def test_open_things_cannot_travel(ex: xd.Executor, tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("wb") as file:
        for thing, kind in ((left, "socket"), (file, "BufferedWriter")):
            with pytest.raises(NotSerializable, match=rf"argument 1 \(a {kind}\)"):
                ex.submit(id, thing)
    database = sqlite3.connect(":memory:")
    with pytest.raises(NotSerializable, match=r"argument db\['main'\] \(a Connection\)"):
        ex.submit(dict, db={"main": database})
    database.close()


def test_deeply_nested_argument_is_named_as_such(ex: xd.Executor) -> None:
    nested = deep_list()
    try:
        with pytest.raises(NotSerializable, match=r"argument 1.* nested too deeply"):
            ex.submit(len, nested)
    finally:
        shallow_again(nested)


def test_future_beside_a_lock_is_not_blamed(ex: xd.Executor) -> None:
    future = ex.submit(abs, -1)
    with pytest.raises(NotSerializable) as caught:
        ex.submit(len, [future, LOCK])
    assert "argument 1[1] (a lock)" in str(caught.value)


def test_setup_that_cannot_travel_names_its_task(ex: xd.Executor) -> None:
    with pytest.raises(NotSerializable, match=r"setup function of task 'id'.* 'value'"):
        ex.options(setup=closure_over(LOCK)).submit(id)


def test_list_that_contains_itself_travels(ex: xd.Executor) -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert ex.submit(lambda item: item[0] is item, circle).result(30)
    back: Any = ex.submit(lambda: circle).result(30)
    assert back[0] is back


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (numbers, ("'numbers' (generator)", "the result (a generator)")),
        (lambda: {"a": [threading.Lock()]}, ("(dict)", "the result['a'][0] (a lock)")),
        (module_with_lock, ("'module_with_lock' (module)", "(a lock)")),
        (deep_list, ("'deep_list' (list)", "the result")),
    ],
    ids=["a generator", "a lock inside", "a module with a lock", "a deep list"],
)
def test_result_that_cannot_travel(
    ex: xd.Executor, function: Callable[[], object], words: tuple[str, ...]
) -> None:
    future = ex.options(retries=3).submit(function)
    with pytest.raises(NotSerializable) as caught:
        future.result(30)
    message = str(caught.value)
    assert [word for word in ("the result of task", *words) if word not in message] == [], message
    assert future.attempts == 1, "another attempt would not help"


def test_module_made_at_run_time_travels(ex: xd.Executor) -> None:
    module = ex.submit(lambda: types.ModuleType("made_there")).result(30)
    assert module.__name__ == "made_there"


def test_result_that_cannot_be_unpickled_arrives_as_remote_error(ex: xd.Executor) -> None:
    future = ex.submit(Loaded)
    with pytest.raises(RemoteError, match="ZeroDivisionError: while loading") as caught:
        future.result(30)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_argument_that_cannot_be_unpickled_fails_its_task_alone(ex: xd.Executor) -> None:
    future = ex.submit(id, Loaded())
    with pytest.raises(ZeroDivisionError, match="while loading"):
        future.result(30)


class BadInit(Exception):
    """Its arguments do not rebuild it."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")


class WithLock(Exception):
    """Has an attribute that cannot travel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class BadReduce(Exception):
    """Cannot be pickled at all."""

    def __reduce__(self) -> Any:
        raise OSError("no")


class BadText(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise OSError("no text")


class NotAnException(BaseException):
    """Not below Exception."""


@pytest.mark.parametrize(
    ("kind", "args", "text"),
    [
        (BadInit, (1, 2), "BadInit: 1 and 2"),
        (WithLock, ("locked",), "WithLock: locked"),
        (BadReduce, ("lost",), "BadReduce: lost"),
    ],
)
def test_exception_that_cannot_be_rebuilt_arrives_as_text(
    ex: xd.Executor, kind: type[BaseException], args: tuple[object, ...], text: str
) -> None:
    with pytest.raises(RemoteError) as caught:
        ex.submit(raising, kind, *args).result(30)
    assert text in str(caught.value)
    assert "raise kind(*args)" in caught.value.traceback
    assert caught.value.type_name.endswith(kind.__name__)


@pytest.mark.parametrize(
    "error",
    [
        NotAnException("bare"),
        GeneratorExit("generator"),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError("cancelled"),
        concurrent.futures.CancelledError(),
        TimeoutError("late"),
        MemoryError(),
        ValueError("x" * 10**6),
        ValueError("half a character: \ud800"),
        DependencyFailed("mine", ("other",), "said the user"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_arrives_as_itself(ex: xd.Executor, error: BaseException) -> None:
    future = ex.submit(raising, type(error), *error.args)
    with pytest.raises(type(error)) as caught:
        future.result(30)
    assert caught.value.args == error.args
    assert not future.cancelled()


def test_exception_that_cannot_be_printed_arrives_as_itself(ex: xd.Executor) -> None:
    future = ex.submit(raising, BadText, "words")
    error = future.exception(30)
    assert type(error) is BadText
    assert error.args == ("words",)


def test_endless_recursion_arrives_as_itself(ex: xd.Executor) -> None:
    def again() -> None:
        again()

    with pytest.raises(RecursionError):
        ex.submit(again).result(30)


@pytest.mark.parametrize(
    ("function", "args", "signal", "exit_code", "text"),
    [
        (sys.exit, (3,), None, 3, "must not call exit()"),
        (sys.exit, ("out of paper",), None, 1, "out of paper"),
        (sys.exit, (), None, 0, "must not call exit()"),
        (os._exit, (7,), None, 7, "exit code 7"),
        (raising, (KeyboardInterrupt,), "SIGINT", None, "killed by SIGINT"),
        (os.abort, (), "SIGABRT", None, "Fatal Python error: Aborted"),
    ],
)
def test_task_that_ends_its_process(
    ex: xd.Executor,
    function: Callable[..., object],
    args: tuple[object, ...],
    signal: str | None,
    exit_code: int | None,
    text: str,
) -> None:
    with pytest.raises(TaskCrashed) as caught:
        ex.submit(function, *args).result(30)
    assert (caught.value.signal, caught.value.exit_code) == (signal, exit_code)
    assert text in str(caught.value)


def test_large_result(ex: xd.Executor) -> None:
    result = ex.submit(bytes, 10**8).result(60)
    assert len(result) == 10**8


@pytest.mark.parametrize("name", ["été 🦆", "half \ud800", "new\nline", "n" * 10_000])
def test_odd_name(ex: xd.Executor, name: str) -> None:
    future = ex.options(name=name).submit(abs, -1)
    assert future.result(30) == 1
    assert future.name == name


def test_setup_that_raises_fails_its_task_with_that(ex: xd.Executor) -> None:
    def broken() -> None:
        raise LookupError("no weights")

    with pytest.raises(LookupError, match="no weights"):
        ex.options(setup=broken).submit(id).result(30)


def test_state_that_cannot_travel_stays_in_the_slot(ex: xd.Executor) -> None:
    future = ex.options(setup=threading.Lock).submit(lambda lock: lock.acquire())
    assert future.result(30) is True


def test_environment_that_no_process_can_have(ex: xd.Executor) -> None:
    future = ex.options(env={"PYTHONHOME": "/none"}).submit(abs, -1)
    with pytest.raises(TaskCrashed, match="/none"):
        future.result(30)
    assert ex.submit(abs, -2).result(30) == 2


@pytest.mark.parametrize("value", ["\ud800", "x" * 3_000_000], ids=["surrogate", "3 MB"])
def test_process_that_cannot_be_started_is_not_blamed_on_an_input(
    ex: xd.Executor, value: str
) -> None:
    with pytest.raises(Exception, match=r"(?i)env|argument list") as caught:
        ex.options(env={"A": value}).submit(abs, -1).result(30)
    assert not isinstance(caught.value, DependencyFailed)


def in_one_slot(
    ex: xd.Executor, first: Callable[[], object], then: Callable[[], object]
) -> xd.Future[object]:
    """Run two functions in the same process, one after the other; give the second's future."""
    environment = {"ONE_SLOT": f"{time.monotonic()}"}
    options = ex.options(env=environment)
    before = options.submit(os.getpid).result(30)
    options.submit(first).result(30)
    future = options.submit(then)
    future.result(30)
    assert options.submit(os.getpid).result(30) == before
    return future


def test_task_may_change_its_working_directory(ex: xd.Executor) -> None:
    def change() -> None:
        os.chdir("/")

    assert in_one_slot(ex, change, os.getcwd).result() == str(Path.cwd())


def test_task_may_change_its_module_path(ex: xd.Executor) -> None:
    def change() -> None:
        sys.path.insert(0, "/leak")

    assert in_one_slot(ex, change, lambda: "/leak" in sys.path).result() is False


def test_environment_that_a_task_changes_stays_changed_in_its_slot(ex: xd.Executor) -> None:
    def change() -> None:
        os.environ["CHANGED"] = "yes"

    assert in_one_slot(ex, change, lambda: os.environ.get("CHANGED")).result() == "yes"


def hide_stdout() -> None:
    sys.stdout = None


def close_stdout() -> None:
    sys.stdout.close()


def close_descriptor() -> None:
    os.close(1)


@pytest.mark.parametrize("misdeed", [hide_stdout, close_stdout, close_descriptor])
def test_next_task_has_its_stdout(ex: xd.Executor, misdeed: Callable[[], None]) -> None:
    options = ex.options(env={"MISDEED": misdeed.__name__})
    options.submit(misdeed).result(30)
    future = options.submit(lambda: print("heard"))  # noqa: T201  # that is the point
    future.result(30)
    assert future.stdout() == "heard\n"


def test_task_that_closes_every_descriptor_hurts_nobody_else(ex: xd.Executor) -> None:
    with pytest.raises(TaskCrashed):
        ex.submit(os.closerange, 3, 100).result(30)
    assert ex.submit(abs, -1).result(30) == 1


def test_function_that_deletes_its_working_directory(
    ex: xd.Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    future = ex.submit(lambda: shutil.rmtree(Path.cwd()))
    assert future.result(30) is None
    monkeypatch.chdir(tmp_path)
    assert ex.submit(os.getcwd).result(30) == str(tmp_path)


def test_submit_from_a_deleted_directory_says_so(
    ex: xd.Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    work.rmdir()
    with pytest.raises(Exception, match="current directory"):
        ex.submit(abs, -1)


def test_directory_that_goes_after_submit_fails_the_task(
    ex: xd.Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, go = tmp_path / "work", tmp_path / "go"
    work.mkdir()

    def wait_for_go() -> None:
        while not go.exists():
            time.sleep(0.01)

    busy = ex.options(cores=4).submit(wait_for_go)
    monkeypatch.chdir(work)
    future = ex.submit(abs, -1)
    monkeypatch.chdir(tmp_path)
    work.rmdir()
    go.touch()
    busy.result(30)
    with pytest.raises(xd.errors.InvalidRequest, match="cannot enter that folder"):
        future.result(30)
