"""Equal values have equal names however they were built, different ones different names."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exadask.journal.fingerprint import arguments_fingerprint

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
_KEYS = _SCALARS | st.tuples(_SCALARS, _SCALARS)
_ARRAYS = st.builds(
    lambda numbers, kind: np.array(numbers, dtype=kind),
    st.lists(st.integers(0, 100), max_size=4),
    st.sampled_from(["i4", "i8", "f8", ">f8", "c16"]),
)
_VALUES = st.recursive(
    _SCALARS | _ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.sets(_KEYS, max_size=4)
        | st.frozensets(_KEYS, max_size=4)
    ),
    max_leaves=12,
)


def name(*args: Any, **kwargs: Any) -> bytes:
    return arguments_fingerprint(args, kwargs, "f", lambda one: None)


def rebuilt(value: Any, rng: random.Random) -> Any:
    """Build an equal value of new parts, in another order where there is none."""
    if isinstance(value, (list, tuple)):
        return type(value)(rebuilt(one, rng) for one in value)
    if isinstance(value, dict):
        items = [(key, rebuilt(one, rng)) for key, one in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, (set, frozenset)):
        parts = list(value)
        rng.shuffle(parts)
        return type(value)(parts)
    if isinstance(value, np.ndarray):
        return np.repeat(value, 2)[::2]
    return copy.deepcopy(value)


def spelled(value: Any) -> Any:
    """Write a value down so that equal texts mean equal values, slowly and plainly."""
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [spelled(one) for one in value]
    if isinstance(value, dict):
        return "dict", sorted(repr((spelled(key), spelled(one))) for key, one in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(repr(spelled(one)) for one in value)
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.tolist()
    return type(value).__name__, repr(value)


@settings(max_examples=150, deadline=None)
@given(_VALUES, st.randoms(use_true_random=False))
def test_equal_values_are_equal(value: Any, rng: random.Random) -> None:
    other = rebuilt(value, rng)
    assert name(value) == name(other)
    assert name(1, value, x=other) == name(1, other, x=value)
    assert name(pickle.loads(pickle.dumps(value, 5))) == name(value)


@settings(max_examples=300, deadline=None)
@given(_VALUES, _VALUES)
@example(1, True)
@example(0.0, -0.0)
@example([1], (1,))
@example({1}, frozenset({1}))
@example({}, set())
@example("a", b"a")
@example({(1, 2): 3}, {1: (2, 3)})
def test_different_values_differ(one: Any, other: Any) -> None:
    assert (name(one) == name(other)) == (spelled(one) == spelled(other))
    assert (name([one]) == name([other])) == (spelled(one) == spelled(other))


@settings(max_examples=100, deadline=None)
@given(st.lists(_VALUES, max_size=3), st.dictionaries(st.sampled_from("abc"), _VALUES, max_size=3))
def test_place_of_an_argument_counts(args: list[Any], kwargs: dict[str, Any]) -> None:
    whole = name(*args, **kwargs)
    assert whole == name(*args, **dict(reversed(kwargs.items())))
    assert whole != name(args, **kwargs)
    assert whole != name(*args, None, **kwargs)
    assert whole != name(*args, kwargs)
    assert whole != name(*args, **kwargs, d=None)
    if len(args) > 1 and spelled(args[0]) != spelled(args[1]):
        assert whole != name(args[1], args[0], *args[2:], **kwargs)
