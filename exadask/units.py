"""The one place where "8GiB" becomes bytes and "2h" becomes seconds, and back."""

from __future__ import annotations

import math
import operator
import re
from fractions import Fraction

from exadask.errors import InvalidQuantity

_BYTES_PER_UNIT = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES_PATTERN = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)")
_SECONDS_PATTERN = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|min|s|m|h|d)\s*")
_COST_PATTERN = re.compile(
    r"([0-9]*\.?[0-9]+)\s*(?:node[- ]?)?"
    r"(h|hours?|m|mins?|minutes?|s|secs?|seconds?)?",
    re.IGNORECASE | re.ASCII,  # or else "\u017f" is an "s"
)
_CLOCK_PATTERN = re.compile(r"(?:([0-9]+)-)?([0-9]+):([0-5][0-9]):([0-5][0-9])")
_MOST_CHARACTERS = 100  # so that no text takes long to read


def parse_bytes(value: int | float | str, *, name: str = "memory") -> int:
    """Turn an amount of memory into bytes.

    Parameters
    ----------
    value : int, float or str
        A number of bytes, or a number with a unit: ``kB MB GB TB`` (powers of 1000),
        ``KiB MiB GiB TiB`` (powers of 1024). Upper and lower case are the same.
    name : str
        What the amount is for; it appears in the error.

    Returns
    -------
    int
        The amount [bytes], >= 1.

    Raises
    ------
    InvalidQuantity
        The value is not an amount of memory, or is not positive.

    Examples
    --------
    >>> parse_bytes("1.5 GiB")
    1610612736
    >>> parse_bytes(4096)
    4096
    """
    if isinstance(value, str):
        match = _matched(_BYTES_PATTERN, value)
        unit = match.group(2).lower() if match else None
        if match is None or unit not in _BYTES_PER_UNIT:
            raise InvalidQuantity(name, value, 'an amount of memory such as "512MiB" or "8GB"')
        # Not as a float: 2.3 times 1000 is less than 2300 there, and 2**53 + 1 is 2**53.
        amount: Fraction | int | float = Fraction(match.group(1)) * _BYTES_PER_UNIT[unit]
    else:
        number = number_of(value)
        if number is None:
            raise InvalidQuantity(name, value, 'an amount of memory such as "512MiB", or bytes')
        amount = number
    if not 1 <= amount < 2**63:
        raise InvalidQuantity(name, value, "more than zero bytes, and less than 8 EiB")
    return int(amount)


def parse_seconds(value: int | float | str, *, name: str = "time") -> float:
    """Turn a duration into seconds.

    Parameters
    ----------
    value : int, float or str
        A number of seconds; numbers with units (``ms s m min h d``), one after the other;
        or a batch system's clock, ``[D-]HH:MM:SS``.
    name : str
        What the duration is for; it appears in the error.

    Returns
    -------
    float
        The duration [s], > 0 and finite.

    Raises
    ------
    InvalidQuantity
        The value is not a duration, or is not positive.

    Examples
    --------
    >>> parse_seconds("1h30m")
    5400.0
    >>> parse_seconds("1-00:00:10")
    86410.0
    """
    wanted = 'a duration such as "90s", "5m", "1h30m" or "02:00:00"'
    if isinstance(value, str):
        seconds = _seconds_from_text(value.strip())
        if seconds is None:
            raise InvalidQuantity(name, value, wanted)
    else:
        seconds = _number(value, name, wanted)
    if not 0 < seconds < math.inf:
        raise InvalidQuantity(name, value, "a duration longer than zero, and finite")
    return seconds


def parse_node_seconds(value: int | float | str, *, name: str = "budget") -> float:
    """Turn a cost of allocations into node-seconds.

    Parameters
    ----------
    value : int, float or str
        A number of node-hours, or a number with a unit: "100 node-hours", "90 node-minutes".
    name : str
        What it is for; it appears in the error.

    Returns
    -------
    float
        The cost [node-seconds], > 0 and finite.

    Raises
    ------
    InvalidQuantity
        The value is not a cost, or is not positive.

    Examples
    --------
    >>> parse_node_seconds("1.5 node-hours")
    5400.0
    """
    wanted = 'node-hours, such as "100 node-hours"'
    per_unit = 3600.0
    if isinstance(value, str):
        match = _matched(_COST_PATTERN, value)
        if match is None:
            raise InvalidQuantity(name, value, wanted)
        per_unit = _SECONDS_PER_UNIT[(match.group(2) or "h")[0].lower()]
        number = float(match.group(1))
    else:
        number = _number(value, name, wanted)
    if not 0 < number * per_unit < math.inf:
        raise InvalidQuantity(name, value, f"more than zero {wanted}")
    return number * per_unit


def render_bytes(n_bytes: int | float) -> str:
    """Write an amount of memory for a human.

    Examples
    --------
    >>> render_bytes(1610612736)
    '1.5 GiB'
    >>> render_bytes(12)
    '12 B'
    """
    amount = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1000:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} TiB" if abs(amount) < 1000 else f"{amount:.0f} TiB"


def render_seconds(seconds: float) -> str:
    """Write a duration for a human.

    Examples
    --------
    >>> render_seconds(5400)
    '1h30m'
    >>> render_seconds(0.25)
    '0.25s'
    """
    if 0 < seconds < 0.001:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def number_of(value: object) -> int | float | None:
    """Take Python's numbers and NumPy's integers.

    Returns
    -------
    int, float or None
        The number; None if it is none, or truth, or not a number (NaN).

    Examples
    --------
    >>> number_of(4), number_of("4"), number_of(True)
    (4, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return None if math.isnan(value) else value
    try:
        return operator.index(value)  # type: ignore[arg-type]  # tried: it need not have one
    except Exception:  # its class is not ours
        return None


def _number(value: object, name: str, wanted: str) -> float:
    number = number_of(value)
    if number is None:
        raise InvalidQuantity(name, value, wanted)
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    text = text.strip()
    return pattern.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None


def _seconds_from_text(text: str) -> float | None:
    if len(text) > _MOST_CHARACTERS:
        return None
    clock = _CLOCK_PATTERN.fullmatch(text)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text):
        return float(text)
    total, position = 0.0, 0
    while position < len(text):
        part = _SECONDS_PATTERN.match(text, position)
        if part is None:
            return None
        total += float(part.group(1)) * _SECONDS_PER_UNIT[part.group(2)]
        position = part.end()
    return total if text else None
