"""Values that nobody should give, and somebody will: for the tests that give them."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from exadask.errors import ExadaskError

T = TypeVar("T")


class Unspeakable:
    """Raises whatever is done with it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = object.__hash__

    def __index__(self) -> int:
        raise RuntimeError("no index")


class Wild:
    """Says that it is an integer, and is none."""

    def __index__(self) -> int:
        return "4"  # type: ignore[return-value]  # that is what is wrong with it


HUGE = 10**5000
"""More digits than Python writes."""

OBJECTS: tuple[Any, ...] = (
    *(None, True, False, b"1GiB", bytearray(b"4"), 1j, int, float, str, object(), len),
    *(Decimal(4), Decimal("nan"), Fraction(1, 3), Path("4"), [], [1], (), {}, {"a": 1}, {1}),
    *(np.int64(4), np.float32(4), np.bool_(True), np.array([1, 2]), np.array(4), np.nan),
    *(math.inf, -math.inf, -0.0, 5e-324, 1.8e308, 2**20, 2**31, 2**63, 2**64, range(4)),
    *(Wild(), Unspeakable, Ellipsis),
)

TEXTS: st.SearchStrategy[str] = st.one_of(
    st.text(max_size=12),
    st.text(
        "0123456789.-+eE:_ ,\n\tkKmMgGtTiIbBsShHdDnN\u0663\uff14\u00bd\u017f\u212a\0\ud800",
        max_size=14,
    ),
    st.sampled_from(
        ("nan", "inf", "-inf", "1e9", "0x10", "1_000", "\u0663GiB", "\uff14", "\u00bd", "1 \u017f")
    ),
    st.integers(4290, 5000).map(lambda n: "9" * n),
)
"""Texts of any kind, and such as are nearly amounts."""

NUMBERS: st.SearchStrategy[Any] = st.one_of(
    *(st.integers(), st.integers(0, 2**40), st.floats()),
    *(st.sampled_from(OBJECTS), st.builds(Unspeakable), st.builds(lambda: HUGE)),
)
"""Numbers, and what is given in place of them."""

ANYTHING: st.SearchStrategy[Any] = st.one_of(TEXTS, NUMBERS)


def tried(
    call: Callable[[], T], refusal: type[Exception] = ExadaskError
) -> tuple[T | None, str | None]:
    """Give what a call returns and None, or None and the words in which it was refused."""
    try:
        return call(), None
    except refusal as error:
        return None, str(error)
