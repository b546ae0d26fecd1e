"""The part to blame is found, wherever it hides, and named so that a user can find it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from exadask.runtime.diagnosis import explain_unpicklable

LOCK = threading.Lock()
FINE = [1, "two", {"three": 3}]


class Holder:
    """Holds something, and can print it."""

    def __init__(self, content: object) -> None:
        self.content = content

    def show(self) -> object:
        return self.content


class Slotted:
    """Has no ``__dict__`` to look into."""

    __slots__ = ("content",)

    def __init__(self, content: object) -> None:
        self.content = content


class Refuses:
    """Says itself why it cannot be pickled, in more than one line."""

    def __reduce__(self) -> Any:
        raise ValueError("the first line\nthe second line")


class Silent:
    """Says nothing."""

    def __reduce__(self) -> Any:
        raise ValueError


def explained(value: object, name: str = "it") -> tuple[str, str]:
    """Explain what is really refused."""
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return explain_unpicklable(value, name, error)
    raise AssertionError(f"{value!r} can be pickled")


def closure_over(value: object) -> Callable[[], object]:
    def inner() -> object:
        return value

    return inner


def uses_global() -> object:
    return LOCK


uses_global.__module__ = "__main__"  # so that it travels by value, as a script's functions do


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (LOCK, "it (a lock)"),
        ([1, LOCK], "it[1] (a lock)"),
        ((FINE, (LOCK,)), "it[1][0] (a lock)"),
        ({"a": FINE, "b": {"c": LOCK}}, "it['b']['c'] (a lock)"),
        ({3: LOCK}, "it[3] (a lock)"),
        ({LOCK}, "it -> element (a lock)"),
        (Holder([LOCK]), "it.content[0] (a lock)"),
        (Slotted(LOCK), "it (a Slotted)"),
        (Holder(LOCK).show, "it.__self__.content (a lock)"),
        (functools.partial(print, 1, LOCK), "it -> arguments of the partial[0][1] (a lock)"),
        (functools.partial(print, end=LOCK), "it -> arguments of the partial[1]['end'] (a lock)"),
        (closure_over(LOCK), "it -> closure variable 'value' of inner (a lock)"),
        (
            closure_over(Holder({"a": LOCK})),
            "it -> closure variable 'value' of inner.content['a'] (a lock)",
        ),
        (closure_over(closure_over(LOCK)), "closure variable 'value' of inner (a lock)"),
        (lambda lock=LOCK: lock, "it -> default values[0][0] (a lock)"),
        (lambda *, lock=LOCK: lock, "it -> default values[1]['lock'] (a lock)"),
        (uses_global, "it -> global variable 'LOCK' of uses_global (a lock)"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
def test_place_of_a_lock(value: object, where: str) -> None:
    found, reason = explained(value)
    assert found.endswith(where)
    assert "lock" in reason.lower() or "Slotted" in reason


def test_first_of_several_is_named() -> None:
    where, _ = explained([FINE, LOCK, LOCK], "argument 2")
    assert where == "argument 2[1] (a lock)"


def test_object_that_refuses_itself_is_named_with_the_first_line_of_why() -> None:
    assert explained([Refuses()]) == ("it[0] (a Refuses)", "ValueError: the first line")


def test_error_without_words_is_named_by_its_type() -> None:
    where, reason = explained({"a": Silent()})
    assert where == "it['a'] (a Silent)"
    assert "ValueError" in reason


def test_circle_ends() -> None:
    circle: list[object] = [1]
    circle.append(circle)
    circle.append(LOCK)
    where, reason = explained(circle)
    assert where.startswith("it")
    assert "lock" in reason


def test_depth_of_the_search_is_limited() -> None:
    nested: object = LOCK
    for _ in range(30):
        nested = [nested]
    where, reason = explained(nested)
    assert where == "it" + "[0]" * 8 + " (a list)"
    assert "lock" in reason


def test_key_of_a_dict_is_found() -> None:
    where, _ = explained({LOCK: 1})
    assert "key" in where


def test_depth_is_named_as_the_reason() -> None:
    nested: list[Any] = []
    for _ in range(5_000):
        nested = [nested]
    _, reason = explained(nested)
    while nested:
        nested = nested.pop()
    assert reason == "it is nested too deeply to be pickled"
