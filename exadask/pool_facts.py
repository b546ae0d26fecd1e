"""Read what a user writes of a pool: where it belongs in a `Pool`, and what it is.

A reader gets the name of a fact and its value. A place is a field of `Pool`, or a part of one, such
as ``shape.cores``; ``environment.X`` holds lines that come before those of ``setup``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exadask.cpulist import END_OF_IDS, parse_cpulist
from exadask.errors import InvalidQuantity, InvalidRequest, shown
from exadask.rank_launcher import check_launcher
from exadask.texts import is_writable
from exadask.units import parse_bytes, parse_seconds

Read = dict[str, Any]
Reader = Callable[[str, Any], Read]

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CORE_IDS = f'core ids such as "0,8-15", each below {END_OF_IDS}'


def pool_name(value: object) -> str:
    """Check the name of a pool.

    Raises
    ------
    InvalidRequest
        It is empty, no text, or has characters that cannot be in the name of a file or of a job.
    """
    text = value if isinstance(value, str) else ""
    if not text or not all(one.isalnum() or one in "-_." for one in text) or text[0] in "-.":
        raise InvalidRequest(
            f"a pool cannot be called {shown(value)}.", "Use letters, digits, '-', '_' and '.'."
        )
    return text


def near(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """Say which known word was meant, or which there are."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {found[0]!r}?" if found else f"Known are: {', '.join(known)}."


def text(key: str, value: object) -> Read:
    """Read a text of one line; None takes back what was said."""
    if value is not None and (
        not isinstance(value, str)
        or not value.strip()
        or len(value.splitlines()) != 1
        or not is_writable(value)
    ):
        raise InvalidQuantity(key, value, "a text of one line")
    return {key: value}


def word(key: str, value: object) -> Read:
    """Read a single word; None takes back what was said."""
    if value is not None and (not isinstance(value, str) or not _WORD.fullmatch(value)):
        raise InvalidQuantity(key, value, "one word of letters, digits, '-', '_' and '.'")
    return {key: value}


def rank_launcher(place: str) -> Reader:
    """Make a reader of a command that starts ranks; None takes back what was said."""

    def read(key: str, value: object) -> Read:
        found = text(key, value)[key]
        check_launcher(found, key)
        return {place: found}

    return read


def flag(key: str, value: object) -> Read:
    """Read true or false."""
    if not isinstance(value, bool):
        raise InvalidQuantity(key, value, "true or false")
    return {key: value}


def seconds(key: str, value: Any) -> Read:
    """Read a duration, for the field that is called as the fact with ``_s``."""
    return {f"{key}_s": parse_seconds(value, name=key)}


def memory(place: str) -> Reader:
    """Make a reader of an amount of memory."""
    return lambda key, value: {place: parse_bytes(value, name=key)}


def count(place: str, *, least: int, end: int = 2**31) -> Reader:
    """Make a reader of a whole number."""
    return lambda key, value: {place: _whole(value, key, least=least, end=end)}


def nodes(key: str, value: object) -> Read:
    """Read a number of nodes, or ``[least, most]``."""
    least, most = node_range(value, key)
    return {"min_nodes": least if isinstance(value, (list, tuple)) else most, "max_nodes": most}


def node_range(value: object, key: str) -> tuple[int, int]:
    """Read ``[least, most]``; a number alone is the most, and 1 the least.

    Raises
    ------
    InvalidQuantity
        It is neither, or there are none.
    """
    if not isinstance(value, (list, tuple)):
        if not isinstance(value, int):
            raise InvalidQuantity(key, value, "a whole number, or [least, most]")
        return 1, _whole(value, key, least=1)
    if len(value) != 2:
        raise InvalidQuantity(key, value, "a number of nodes, or [least, most]")
    least, most = (_whole(one, key, least=1) for one in value)
    if least > most:
        raise InvalidQuantity(key, value, f"[least, most]: {least} is more than {most}")
    return least, most


def choice(choices: Sequence[str], place: str = "") -> Reader:
    """Make a reader of one of these words."""

    def read(key: str, value: object) -> Read:
        if not isinstance(value, str) or value not in choices:
            raise InvalidRequest(
                f"{key}={shown(value)} is not known.",
                near(value if isinstance(value, str) else "", choices),
            )
        return {place or key: value}

    return read


def batch(choices: Sequence[str]) -> Reader:
    """Make a reader of a batch system, or of ``psij:EXECUTOR``."""

    def read(key: str, value: object) -> Read:
        name, colon, executor = (value if isinstance(value, str) else "").partition(":")
        if colon and (name != "psij" or not _WORD.fullmatch(executor)):
            raise InvalidRequest(
                f"{key}={shown(value)} is not known.",
                "Only psij has executors: write 'psij:slurm'.",
            )
        return choice(choices)(key, name if colon else value) | {"psij_executor": executor or None}

    return read


def texts(key: str, value: object) -> Read:
    """Read a text or a list of texts, as lines; empty ones are left out."""
    return {key: _lines(value, key)}


def environment(render: Callable[[str], str]) -> Reader:
    """Make a reader of names, each of which becomes a line of the setup."""
    return lambda key, value: {
        f"environment.{key}": tuple(render(one) for one in _lines(value, key))
    }


def variables(key: str, value: object) -> Read:
    """Read a table of environment variables."""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str)
        and _VARIABLE.fullmatch(name)
        and isinstance(one, str)
        and is_writable(one)
        for name, one in value.items()
    ):
        raise InvalidQuantity(key, value, "a table of names of variables, and texts")
    return {key: tuple(sorted(value.items()))}


def core_ids(place: str) -> Reader:
    """Make a reader of core ids."""
    return lambda key, value: {place: _core_ids(value, key)}


def gpu_ids(place: str) -> Reader:
    """Make a reader of the names of GPUs; the vendors' variables separate them by commas."""

    def read(key: str, value: object) -> Read:
        found = _lines(value, key)
        if any("," in one or len(one.split()) != 1 for one in found):
            raise InvalidQuantity(key, value, 'a list with one name for each GPU, such as ["0.0"]')
        return {place: found}

    return read


def gpu_cores(place: str) -> Reader:
    """Make a reader of the cores of each GPU."""

    def read(key: str, value: object) -> Read:
        if not isinstance(value, (list, tuple)):
            raise InvalidQuantity(key, value, 'a list with the cores of each GPU, such as ["0-7"]')
        return {place: tuple(_core_ids(one, key) for one in value)}

    return read


def bins(place: str) -> Reader:
    """Make a reader of a site's rules: sizes, and how long allocations of them may last [s]."""
    wanted = '{nodes = [1, 8], walltime = "2h"}'

    def read(key: str, value: object) -> Read:
        if not isinstance(value, (list, tuple)):
            raise InvalidQuantity(key, value, f"a list of {wanted}")
        found = []
        for one in value:
            if not isinstance(one, Mapping) or one.keys() != {"nodes", "walltime"}:
                raise InvalidQuantity(key, one, wanted)
            least, most = node_range(one["nodes"], f"{key}.nodes")
            found.append((least, most, parse_seconds(one["walltime"], name=f"{key}.walltime")))
        return {place: tuple(found)}

    return read


def _whole(value: object, key: str, *, least: int, end: int = 2**31) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < end:
        raise InvalidQuantity(key, value, f"a whole number, at least {least} and less than {end}")
    return value


def _lines(value: object, key: str) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, (list, tuple)) or not all(
        isinstance(one, str) and is_writable(one) for one in lines
    ):
        raise InvalidQuantity(key, value, "a text, or a list of texts")
    return tuple(line for one in lines for line in one.splitlines() if line.strip())


def _core_ids(value: object, key: str) -> tuple[int, ...]:
    if isinstance(value, str):
        try:
            return parse_cpulist(value)
        except ValueError as error:
            raise InvalidQuantity(key, value, _CORE_IDS) from error
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < END_OF_IDS
        for one in value
    ):
        raise InvalidQuantity(key, value, _CORE_IDS)
    return tuple(value)
