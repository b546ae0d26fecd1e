"""Amounts of memory and durations, as users write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exadask.errors import InvalidQuantity
from exadask.units import parse_bytes, parse_seconds, render_bytes, render_seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1GiB", 2**30), ("1 gb", 10**9), ("512", 512), (".5KiB", 512), ("2TiB", 2**41), (7, 7)],
)
def test_memory_is_understood(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("90", 90), ("5m", 300), ("1h30m", 5400), ("1h 30min", 5400), ("250ms", 0.25)),
        *(("02:00:00", 7200), ("1-00:00:10", 86410), (1.5, 1.5), ("2d", 172800)),
    ],
)
def test_time_is_understood(text: str | float, expected: float) -> None:
    assert parse_seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["", "12 parsecs", "GiB", "-1", -1, 0, True, None, [], "1e9"])
def test_nonsense_is_refused_with_the_value(value: object) -> None:
    parsers: tuple[Callable[..., float], ...] = (parse_bytes, parse_seconds)
    for parse in parsers:
        with pytest.raises(InvalidQuantity, match="is not valid: give") as caught:
            parse(value, name="thing")
        assert f"thing={value!r}" in str(caught.value)


@given(st.integers(min_value=1, max_value=2**62))
def test_rendered_memory_reads_back_nearly_the_same(n_bytes: int) -> None:
    assert parse_bytes(render_bytes(n_bytes)) == pytest.approx(n_bytes, rel=1e-3)


@given(st.floats(min_value=0.001, max_value=10**7))
def test_rendered_time_reads_back_nearly_the_same(seconds: float) -> None:
    assert parse_seconds(render_seconds(seconds)) == pytest.approx(seconds, rel=0.05)
