"""Every wrong call, and what it is told: at once, with the value given and what to do."""

from __future__ import annotations

import concurrent.futures
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import exadask as xd
from exadask.errors import (
    CommandFailed,
    DependencyFailed,
    ExecutorClosed,
    ImpossibleRequest,
    InvalidQuantity,
    InvalidRequest,
    NotSerializable,
)

pytestmark = pytest.mark.timeout(60)

AT_ONCE_S = 10.0
SHAPE = xd.NodeShape.declare(cores=4, gpus=2, memory="8GiB")

# The calls below are wrong on purpose, so nothing here shall check their types.
task: Any = xd.task
command: Any = xd.command
declare: Any = xd.NodeShape.declare
new_executor: Any = xd.Executor
as_completed: Any = xd.as_completed
wait: Any = xd.wait


class World(NamedTuple):
    """What the calls may use: an open executor, a closed one, another open one."""

    ex: Any
    closed: Any
    other: Any
    of_closed: Any


class Case(NamedTuple):
    """A wrong call, the error that it must raise, and words that its message must hold."""

    name: str
    call: Callable[[World], object]
    error: type[BaseException]
    words: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with xd.Executor(nodes=[SHAPE]) as closed:
        of_closed = closed.submit(abs, -1)
        of_closed.result(30)
    with xd.Executor(nodes=[SHAPE]) as other, xd.Executor(nodes=[SHAPE]) as ex:
        yield World(ex, closed, other, of_closed)


def add(left: int, right: int) -> int:
    return left + right


def fail() -> None:
    raise LookupError("no such thing")


class Callback:
    """Can be called, but is a class."""


def given_option(name: str, value: object) -> Callable[[World], object]:
    return lambda world: world.ex.options(**{name: value})


WHOLE = "a whole number, at least 1"
GPUS = "a share of one between 0.001 and 1"
BYTES = "an amount of memory such as"
POSITIVE_BYTES = "more than zero bytes"
SECONDS = "a duration such as"
POSITIVE_SECONDS = "longer than zero, and finite"
CLASSES = "Give an exception class, or a tuple of them."

QUANTITIES: list[tuple[str, object, str]] = [
    *(("cores", value, WHOLE) for value in (0, -1, 1.5, "4", True, None, math.nan, math.inf)),
    *(("gpus", value, GPUS) for value in (-1, 1.5, 0.0001, "one", True, None, math.nan)),
    *(("memory", value, BYTES) for value in ("12 parsecs", "", "1e", "-1GiB", True, math.nan)),
    *(("memory", value, BYTES) for value in (1j, b"1GiB")),
    *(("memory", value, POSITIVE_BYTES) for value in (-1, 0, 2**64, math.inf, "9000000 TiB")),
    *(("time", value, SECONDS) for value in ("yesterday", "-5m", "", "5 parsecs", math.nan, True)),
    *(("time", value, POSITIVE_SECONDS) for value in (0, -1, math.inf, "0s")),
]
KINDS: list[tuple[str, object, str]] = [
    *(("retries", value, "a whole number, at least 0") for value in (-1, 1.5, True, "2", None)),
    *(("retry_on", value, CLASSES) for value in (ValueError("one"), "ValueError", (), (1,), int)),
    *(("priority", value, "Give a whole number.") for value in ("high", 1.5, None, True)),
    *(("env", value, "Give a dict of names and texts.") for value in (["A"], "A=1", 4)),
    *(("setup", value, "Give a function without arguments.") for value in (4, "load")),
    *(("isolation", value, "Give 'process' or 'thread'.") for value in ("container", None)),
    *(("name", value, "Give a text that is not empty.") for value in (4, "", "  ")),
]
OPTIONS = [
    *(
        Case(f"{name}={value!r}", given_option(name, value), InvalidQuantity, (repr(value), words))
        for name, value, words in QUANTITIES
    ),
    *(
        Case(f"{name}={value!r}", given_option(name, value), InvalidRequest, (repr(value), words))
        for name, value, words in KINDS
    ),
    *(
        Case(f"env={env!r}", given_option("env", env), InvalidRequest, words)
        for env, words in [
            ({"A": 1}, ("env['A']=1", "Give a text: '1'")),
            ({"A": "x\0"}, ("env['A']=", "Give a text")),
            ({1: "x"}, ("the name 1", "Names are texts")),
            ({"A=B": "x"}, ("'A=B'", "without '='")),
            ({"": "x"}, ("the name ''", "not empty")),
            ({"A\0": "x"}, (repr("A\0"), "Names are texts")),
        ]
    ),
    *(
        Case(f"unknown option {name}", given_option(name, 1), InvalidRequest, (repr(name), hint))
        for name, hint in [
            ("core", "Did you mean 'cores'?"),
            ("gpu", "Did you mean 'gpus'?"),
            ("mem", "Did you mean 'memory'?"),
            ("retry", "Did you mean"),
            ("nodes", "nodes= is for programs with ranks: @xd.mpi"),
            ("colour", "Known are: cores, gpus, memory"),
        ]
    ),
]

DECORATORS = [
    Case("task on a class", lambda _: task(Callback), InvalidRequest, ("Callback", "a function")),
    Case("task() on a class", lambda _: task(cores=2)(Callback), InvalidRequest, ("Callback",)),
    Case("task on a number", lambda _: task(4), InvalidRequest, ("got 4", "@task(cores=2)")),
    Case("task() on a number", lambda _: task(cores=2)(4), InvalidRequest, ("on 4",)),
    Case("task with a text", lambda _: task("cores=2"), InvalidRequest, ("'cores=2'", "by name")),
    Case("task: bad option", lambda _: task(cores=0), InvalidQuantity, ("cores=0",)),
    Case(
        "with_options: bad option",
        lambda _: task(add).with_options(memory="lots"),
        InvalidQuantity,
        ("memory='lots'", BYTES),
    ),
]

SUBMITTING = [
    Case(
        "submit(f(x))",
        lambda world: world.ex.submit(add(1, 2)),
        InvalidRequest,
        ("submit() got 3", "submit(f, x), not submit(f(x))"),
    ),
    Case("submit(None)", lambda world: world.ex.submit(None), InvalidRequest, ("got None",)),
    Case("submit()", lambda world: world.ex.submit(), TypeError, ("'fn'",)),
    Case(
        "options().submit(4)",
        lambda world: world.ex.options().submit(4),
        InvalidRequest,
        ("got 4",),
    ),
    Case("submit(fn=...)", lambda world: world.ex.submit(fn=add), TypeError, ("'fn'",)),
    Case(
        "an argument is missing",
        lambda world: world.ex.submit(add, 1).result(30),
        TypeError,
        ("add() missing 1 required positional argument: 'right'",),
    ),
    Case(
        "an argument too many",
        lambda world: task(add).submit(1, 2, 3).result(30),
        TypeError,
        ("add() takes 2 positional arguments but 3 were given",),
    ),
    Case(
        "an unknown argument",
        lambda world: world.ex.submit(add, 1, wrong=2).result(30),
        TypeError,
        ("unexpected keyword argument 'wrong'",),
    ),
    Case("map(4, [1])", lambda world: list(world.ex.map(4, [1])), InvalidRequest, ("got 4",)),
    Case("map(f, 5)", lambda world: list(world.ex.map(abs, 5)), TypeError, ("not iterable",)),
    Case("task.map(5)", lambda world: task(abs).map(5), TypeError, ("not iterable",)),
    Case("task.map()", lambda world: task(abs).map(), InvalidRequest, ("nothing to map over",)),
    Case(
        "options().map(f)",
        lambda world: world.ex.options().map(abs),
        InvalidRequest,
        ("nothing to map over", "at least one iterable"),
    ),
    Case(
        "chunksize=0",
        lambda world: world.ex.map(abs, [1], chunksize=0),
        ValueError,
        ("chunksize=0", ">= 1"),
    ),
    *(
        Case(
            f"impossible {name}={value}",
            lambda world, name=name, value=value: (  # type: ignore[misc]  # bound in this loop
                world.ex.options(**{name: value}).submit(add, 1, 2)
            ),
            ImpossibleRequest,
            ("'add'", text, "the largest node has 4 cores, 2 GPUs, 8 GiB of memory"),
        )
        for name, value, text in [
            ("cores", 5, "5 cores"),
            ("cores", 10**9, "cores"),
            ("gpus", 3, "3 GPUs"),
            ("memory", "9GiB", "9 GiB"),
            ("memory", 2**62, "TiB"),
        ]
    ),
    Case(
        "impossible map",
        lambda world: task(cores=5)(add).map([1], [2]),
        ImpossibleRequest,
        ("5 cores", "4 cores"),
    ),
]

FUTURES = [
    Case("as_completed([4])", lambda _: list(as_completed([4])), InvalidRequest, ("got 4",)),
    Case("as_completed(4)", lambda _: list(as_completed(4)), TypeError, ("not iterable",)),
    Case(
        "as_completed(future)",
        lambda world: list(as_completed(world.of_closed)),
        TypeError,
        ("not iterable",),
    ),
    Case(
        "as_completed of a standard future",
        lambda _: list(as_completed([concurrent.futures.Future()])),
        InvalidRequest,
        ("not a future of exadask", "submit() or map()"),
    ),
    Case("wait([4])", lambda _: wait([4]), InvalidRequest, ("wait() got 4", "submit() or map()")),
    Case("wait([None])", lambda _: wait([None]), InvalidRequest, ("wait() got None",)),
    Case(
        "pickle a future",
        lambda world: pickle.dumps(world.of_closed),
        NotSerializable,
        ("the future of task 'abs'", "belongs to its executor"),
    ),
    Case(
        "future of a closed executor",
        lambda world: world.ex.submit(abs, world.of_closed),
        InvalidRequest,
        ("'abs'", "another executor", "Pass its result() instead"),
    ),
    Case(
        "future of another executor",
        lambda world: world.ex.submit(sum, [world.other.submit(abs, -1)]),
        InvalidRequest,
        ("'sum' got the future of 'abs'", "Pass its result() instead"),
    ),
    Case(
        "Dask future of another cluster",
        lambda world: world.ex.submit(abs, world.other.client.submit(abs, -1)),
        InvalidRequest,
        ("Dask future", "another cluster", "Executor.client"),
    ),
    Case(
        "a failed future",
        lambda world: world.ex.submit(abs, world.ex.submit(fail)).result(30),
        DependencyFailed,
        ("abs <- fail", "LookupError", "no such thing", "Repair 'fail'"),
    ),
    Case(
        "a failed future deep in an argument",
        lambda world: world.ex.submit(len, {"a": [(world.ex.submit(fail),)]}).result(30),
        DependencyFailed,
        ("len <- fail", "no such thing"),
    ),
    Case(
        "a failed future two tasks before",
        lambda world: world.ex.submit(str, world.ex.submit(abs, world.ex.submit(fail))).result(30),
        DependencyFailed,
        ("str <- abs <- fail", "no such thing", "Repair 'fail'"),
    ),
    Case(
        "a cancelled future",
        lambda world: world.ex.submit(abs, cancelled(world.ex)).result(30),
        DependencyFailed,
        ("abs <- sleep", "cancelled"),
    ),
]


def cancelled(ex: xd.Executor) -> Any:
    future = ex.submit(time.sleep, 60)
    assert future.cancel()
    return future


EXECUTORS = [
    Case("nodes=[]", lambda _: new_executor(nodes=[]), InvalidRequest, ("nodes is empty", "one")),
    Case("nodes='4'", lambda _: new_executor(nodes="4"), InvalidRequest, ("nodes='4'", "a list")),
    Case("nodes=4", lambda _: new_executor(nodes=4), InvalidRequest, ("nodes=4", "a list")),
    Case("nodes=[4]", lambda _: new_executor(nodes=[4]), InvalidRequest, ("contains 4", "declare")),
    Case(
        "nodes=shape",
        lambda _: new_executor(nodes=SHAPE),
        InvalidRequest,
        ("4 cores", "Give a list"),
    ),
    Case(
        "an unknown setting",
        lambda _: new_executor(nodes=[SHAPE], reserve_afterr_s=3),
        InvalidRequest,
        ("'reserve_afterr_s'", "'reserve_after_s'"),
    ),
    *(
        Case(
            f"{name}={value!r}",
            lambda _, name=name, value=value: new_executor(nodes=[SHAPE], **{name: value}),  # type: ignore[misc]  # bound in this loop
            InvalidRequest,
            ("The settings cannot be used", f"{name}={value!r}", words),
        )
        for name, value, words in [
            ("kill_grace_s", "soon", SECONDS),
            ("poll_interval_s", 0, POSITIVE_SECONDS),
            ("segment_bytes", 0, POSITIVE_BYTES),
            ("inline_bytes", "few", BYTES),
        ]
    ),
    Case("declare(cores=0)", lambda _: declare(cores=0), InvalidQuantity, ("cores=0", WHOLE)),
    Case("declare(gpus=-1)", lambda _: declare(cores=1, gpus=-1), InvalidQuantity, ("gpus=-1",)),
    Case("declare(gpus=0.5)", lambda _: declare(cores=1, gpus=0.5), InvalidQuantity, ("gpus=0.5",)),
    Case(
        "declare(memory='much')",
        lambda _: declare(cores=1, memory="much"),
        InvalidQuantity,
        ("memory='much'", BYTES),
    ),
    *(
        Case(f"{name} after shutdown", call, ExecutorClosed, ("after shutdown", "with Executor()"))
        for name, call in [
            ("submit", lambda world: world.closed.submit(abs, -1)),
            ("map", lambda world: list(world.closed.map(abs, [1]))),
            ("options().submit", lambda world: world.closed.options(cores=1).submit(abs, -1)),
            ("options().map", lambda world: world.closed.options(cores=1).map(abs, [1])),
            ("client", lambda world: world.closed.client),
        ]
    ),
]

COMMANDS = [
    *(
        Case(f"command({text!r})", lambda _, text=text: command(text), InvalidRequest, words)  # type: ignore[misc]  # bound in this loop
        for text, words in [
            ("", ("got ''", "Give the command as a text")),
            ("  ", ("got '  '", "Give the command as a text")),
            (5, ("got 5", "Give the command as a text")),
            (["ls", "-l"], ("['ls', '-l']", "Give the command as a text")),
            ("echo {", ("'echo {'", "{{ and }}")),
            ("echo }", ("'echo }'", "{{ and }}")),
            ("echo {0}", ("{0}", "not a name", "{{ and }}")),
            ("echo {}", ("{}", "not a name")),
            ("awk '{print $1}'", ("print $1", "{{ and }}")),
        ]
    ),
    Case("command: bad option", lambda _: command("ls", cores=0), InvalidQuantity, ("cores=0",)),
    Case("command: unknown option", lambda _: command("ls", core=1), InvalidRequest, ("'cores'",)),
    Case(
        "command: missing value",
        lambda _: command("cp {a} {b}").submit(a="x"),
        InvalidRequest,
        ("['a', 'b']", "Missing: ['b']"),
    ),
    Case(
        "command: unknown value",
        lambda _: command("cat {a}").submit(a="x", c="y"),
        InvalidRequest,
        ("'cat {a}'", "Unknown: ['c']"),
    ),
    Case(
        "command: value without a name",
        lambda _: command("cat {a}").submit("x"),
        InvalidRequest,
        ("values without names: ('x',)", "by name: a"),
    ),
    Case(
        "command: map over texts",
        lambda _: command("cat {a}").map(["x"]),
        InvalidRequest,
        ("got 'x'", "Give dicts"),
    ),
    Case(
        "command: map with a wrong name",
        lambda _: command("cat {a}").map([{"a": 1}, {"b": 1}]),
        InvalidRequest,
        ("Missing: ['a']", "Unknown: ['b']"),
    ),
    Case(
        "command: program not found",
        lambda world: command("no-such-program -x", directory="/tmp").submit().result(30),
        CommandFailed,
        ("exit code 127", "did not find the program", "no-such-program", "not found"),
    ),
    Case(
        "command: non-zero exit",
        lambda world: (
            command("echo out of paper >&2; exit 3", directory="/tmp").submit().result(30)
        ),
        CommandFailed,
        ("exit code 3", "out of paper", "check=False"),
    ),
    Case(
        "command: directory cannot be made",
        lambda world: command("ls", directory="/proc/self/none").submit().result(30),
        OSError,
        ("/proc/self/none",),
    ),
]

TABLE = [*OPTIONS, *DECORATORS, *SUBMITTING, *FUTURES, *EXECUTORS, *COMMANDS]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_wrong_call_is_refused_at_once_with_advice(world: World, case: Case) -> None:
    start_s = time.monotonic()
    with pytest.raises(case.error) as caught:
        case.call(world)
    assert time.monotonic() - start_s < AT_ONCE_S
    message = str(caught.value)
    assert [word for word in case.words if word not in message] == [], message


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("memory", 10**400, InvalidQuantity),
        ("time", 10**400, InvalidQuantity),
        ("cores", 10**400, (InvalidQuantity, ImpossibleRequest)),
        ("env", (1, 2), InvalidRequest),
    ],
    ids=["memory", "time", "cores", "env"],
)
def test_absurd_option_is_refused_like_any_other(
    world: World, name: str, value: object, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error, match=name):
        world.ex.options(**{name: value}).submit(abs, -1)


def test_impossible_request_gives_the_number_that_was_asked_for(world: World) -> None:
    with pytest.raises(ImpossibleRequest, match="1234567 cores"):
        world.ex.options(cores=1234567).submit(abs, -1)


def test_error_of_a_dependency_has_the_root_as_its_cause(world: World) -> None:
    future = world.ex.submit(abs, world.ex.submit(fail))
    with pytest.raises(DependencyFailed) as caught:
        future.result(30)
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.task == "abs"
    assert caught.value.chain == ("fail",)


def test_map_over_nothing_is_empty_as_in_the_standard_library(world: World) -> None:
    assert list(world.ex.map(abs)) == []
    assert list(world.ex.map(abs, [], [])) == []
    assert list(world.ex.map(abs, [], chunksize=3)) == []
    assert task(abs).map([]) == []


def test_task_without_an_executor_says_how_to_open_one() -> None:
    program = "import exadask as xd; xd.task(abs).submit(-1)"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == 1
    assert "NoActiveExecutor: no executor is open, so 'abs' has nowhere to run" in ended.stderr
    assert "with exadask.Executor() as ex:" in ended.stderr


def test_executor_is_as_good_as_new_after_all_of_that(world: World) -> None:
    assert list(world.ex.map(add, range(8), range(8))) == list(range(0, 16, 2))


def test_table_is_long_and_its_names_are_unique() -> None:
    names = [case.name for case in TABLE]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
