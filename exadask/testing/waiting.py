"""Wait for what other processes do, without guessing how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_S = 0.01


def eventually(
    predicate: Callable[[], object], *, timeout_s: float = 30.0, poll_s: float = _POLL_S
) -> None:
    """Wait until something is so.

    Parameters
    ----------
    predicate : callable
        Asked again and again, until what it returns counts as true.
    timeout_s : float
        How long to wait at most [s].
    poll_s : float
        How long to wait before asking again [s].

    Raises
    ------
    TimeoutError
        It has not become so in time.

    Examples
    --------
    >>> eventually(lambda: True)
    """
    deadline_s = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{predicate!r} was still not true after {timeout_s:g} s")
        time.sleep(poll_s)
