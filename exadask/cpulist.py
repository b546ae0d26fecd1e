"""The kernel's way to list CPUs."""

from __future__ import annotations


def parse_cpulist(text: str) -> tuple[int, ...]:
    """Read a list such as ``0-2,8``.

    Examples
    --------
    >>> parse_cpulist("0-2,8")
    (0, 1, 2, 8)
    """
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)
