"""The kernel's way to list CPUs."""

from __future__ import annotations

import re
from collections.abc import Iterable

END_OF_IDS = 2**20
"""What no id reaches: Linux knows a few thousand CPUs, the largest machines ten thousand nodes."""

_PART = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?")


def parse_cpulist(text: str) -> tuple[int, ...]:
    """Read a list such as ``0-2,8``.

    Parameters
    ----------
    text : str
        Ids and ranges of ids, both ends included; empty: none.

    Returns
    -------
    tuple of int
        The ids, in the order of the list.

    Raises
    ------
    ValueError
        The text is no such list, or names ids that no machine has: nothing is allocated for them.

    Examples
    --------
    >>> parse_cpulist("0-2,8")
    (0, 1, 2, 8)
    """
    found: list[int] = []
    for part in text.split(","):
        if not part.strip():
            continue
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is no id and no range of ids such as '0-7'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part.strip()!r} ends before it begins")
        if last >= END_OF_IDS or len(found) + last - first >= END_OF_IDS:
            raise ValueError(f"{part.strip()!r} goes beyond {END_OF_IDS - 1}, the last id allowed")
        found.extend(range(first, last + 1))
    return tuple(found)


def render_cpulist(ids: Iterable[int]) -> str:
    """Write ids as such a list, as short as can be.

    Examples
    --------
    >>> render_cpulist((0, 1, 2, 3, 8, 10, 11))
    '0-3,8,10-11'
    """
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
