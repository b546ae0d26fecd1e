"""What the code of a function says, wherever it is written.

Line numbers, file names, comments and docstrings do not count, nor does the padding that the
interpreter adds.
"""

from __future__ import annotations

import bisect
import dis
import functools
import hashlib
import marshal
import types
from dataclasses import dataclass
from typing import Any

_SIZE = 16
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type(...))
_PADDING = frozenset({"EXTENDED_ARG", "CACHE", "NOP", "RESUME", "PRECALL"})
_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
_CONSTANTS = frozenset(dis.hasconst)
_NAMES = frozenset(dis.hasname)
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_STORES = frozenset({"STORE_NAME", "STORE_GLOBAL", "DELETE_NAME", "DELETE_GLOBAL"})
# What the body of a class notes about where it stands; the last in no certain order.
_NOTES = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
_HAS_DOCSTRING = 0x4000000  # inspect.CO_HAS_DOCSTRING, since Python 3.13


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What code names of the world around it, that of functions within included.

    Parameters
    ----------
    loaded : tuple of str
        Globals.
    attributes : tuple of str
        Attributes of anything.
    imported : tuple of (str, int, tuple of str)
        Modules, how many packages up they are (0: an absolute name), and what is taken of them.
    """

    loaded: tuple[str, ...]
    attributes: tuple[str, ...]
    imported: tuple[tuple[str, int, tuple[str, ...]], ...]


@functools.lru_cache(4096)
def meaning_of(code: types.CodeType) -> bytes:
    r"""Name what code does [16 bytes].

    Examples
    --------
    >>> one, other = compile("f(1)", "a.py", "exec"), compile("# Why.\nf(1)", "b.py", "exec")
    >>> meaning_of(one) == meaning_of(other)
    True
    """
    return hashlib.blake2b(marshal.dumps(_spelled(code), 2), digest_size=_SIZE).digest()


@functools.lru_cache(4096)
def names_in(code: types.CodeType) -> Names:
    """Find what code names.

    Examples
    --------
    >>> names_in(compile("math.sin(x)", "a.py", "eval"))
    Names(loaded=('math', 'x'), attributes=('sin',), imported=())
    """
    loaded, attributes = set[str](), set[str]()
    imported = set[tuple[str, int, tuple[str, ...]]]()
    codes = [code]
    while codes:
        one = codes.pop()
        codes += [const for const in one.co_consts if isinstance(const, types.CodeType)]
        kept = _instructions(one)
        for index, instruction in enumerate(kept):
            name, value = instruction.opname, instruction.argval
            if name in _LOADS:
                loaded.add(value)
            elif name == "IMPORT_NAME":
                level, taken = (before.argval for before in kept[index - 2 : index])
                imported.add((value, level, tuple(taken or ())))
            elif instruction.opcode in _NAMES and name not in _STORES:
                attributes.add(value)
    return Names(
        loaded=tuple(sorted(loaded)),
        attributes=tuple(sorted(attributes)),
        imported=tuple(sorted(imported)),
    )


def _spelled(code: types.CodeType) -> tuple[Any, ...]:
    """Write code down in what `marshal` knows."""
    kept = _instructions(code)
    offsets = [one.offset for one in kept]

    def place(offset: int) -> int:
        return bisect.bisect_left(offsets, offset)

    described = []
    for one in kept:
        argument: Any = one.arg
        if one.opcode in _JUMPS:
            argument = place(one.argval)
        elif one.opcode in _CONSTANTS:
            argument = _constant(one.argval)
        elif isinstance(one.argval, str):
            argument = one.argval
        described.append((one.opname, argument))
    handlers = []
    if getattr(code, "co_exceptiontable", b""):  # Python 3.11 and later
        handlers = [
            (place(one.start), place(one.end), place(one.target), one.depth, one.lasti)
            for one in dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]  # 3.11
        ]
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    names = (code.co_varnames, code.co_freevars, code.co_cellvars)
    return counts, names, code.co_flags & ~_HAS_DOCSTRING, described, handlers


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    kept = list[dis.Instruction]()
    for one in dis.get_instructions(code):
        if one.opname in _PADDING:
            continue
        if one.opname == "STORE_NAME" and one.argval in _NOTES and kept:
            kept.pop()  # what is stored
            continue
        kept.append(one)
    return kept


def _constant(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, types.CodeType):
        return "code", _spelled(value)
    if isinstance(value, tuple):
        return "tuple", [_constant(one) for one in value]
    if isinstance(value, frozenset):  # which has no certain order
        return "frozenset", sorted(marshal.dumps(_constant(one), 2) for one in value)
    return "other", repr(value)  # a slice, since Python 3.14
