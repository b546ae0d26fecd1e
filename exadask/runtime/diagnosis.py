"""Find, in something that cannot be pickled, the part to blame."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

_MAX_DEPTH = 8


def explain_unpicklable(
    value: object,
    name: str,
    error: BaseException,
    pack: Callable[[object], object] = cloudpickle.dumps,
) -> tuple[str, str]:
    """Find the innermost part of an object that pickling refuses.

    Parameters
    ----------
    value : object
        What could not be pickled.
    name : str
        What to call it, for example ``"argument 2"``.
    error : BaseException
        What pickling it raised.
    pack : callable
        How it is pickled.

    Returns
    -------
    (str, str)
        The way to the part, and the reason in one line.

    Examples
    --------
    >>> import threading
    >>> lock = threading.Lock()
    >>> where, reason = explain_unpicklable({"a": [1, lock]}, "argument 0", TypeError())
    >>> where
    "argument 0['a'][1] (a lock)"
    """
    path, blamed, seen = name, value, {id(value)}
    for _ in range(_MAX_DEPTH):
        for step, part in _parts(blamed):
            if id(part) in seen:
                continue
            seen.add(id(part))
            refused = refusal(part, pack)
            if refused is not None:
                path, blamed, error = path + step, part, refused
                break
        else:
            break
    if isinstance(error, RecursionError) or "recursion" in str(error):
        return path, "it is nested too deeply to be pickled"
    first_line = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return f"{path} (a {type(blamed).__name__})", f"{type(error).__name__}: {first_line[0]}"


def refusal(part: object, pack: Callable[[object], object]) -> BaseException | None:
    """Give what pickling an object raises, or None if it can be pickled."""
    try:
        pack(part)
    except Exception as error:  # the user's objects decide what pickling raises
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f" -> key {key!r}", key
            yield f"[{key!r}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield " -> element", item
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield " -> function of the partial", value.func
        yield " -> arguments of the partial", (value.args, value.keywords)
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type):
        for attribute, item in value.__dict__.items():
            yield f".{attribute}", item


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    code = function.__code__
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" -> closure variable {variable!r} of {function.__name__}", cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
    yield " -> default values", (function.__defaults__, function.__kwdefaults__)
    for variable in code.co_names:
        if variable in function.__globals__:
            item = function.__globals__[variable]
            if not isinstance(item, types.ModuleType):
                yield f" -> global variable {variable!r} of {function.__name__}", item
