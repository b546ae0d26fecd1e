"""What a function does, and what it is given, as digests that hold in every process.

A digest says the same of equal values, whatever their identity, the order of a set or of a dict, or
the process: pickling does not, since it writes down which objects are the same, and neither does
`joblib.hash`, which besides knows nothing of functions, of futures, and of files. So values are
described here: containers by their parts, arrays by their content, other objects by what they would
be rebuilt from (`object.__reduce_ex__`).

Of a function it counts what it does: its instructions, constants and defaults, what it has
captured, and what it refers to in the user's own modules, and so on from there. Comments,
docstrings, line numbers and file names do not count, and neither does what it asks for. What
belongs to other packages counts by its name and the package's version. What is looked up by a name
made at run time (``getattr(module, name)``) is not seen.
"""

from __future__ import annotations

import collections
import copyreg
import enum
import functools
import hashlib
import marshal
import math
import operator
import os
import pickle
import reprlib
import sys
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from exadask.errors import UnhashableValue
from exadask.files import File
from exadask.journal.bytecode import meaning_of, names_in
from exadask.journal.modules import behind_imports, compiled_file, is_own, version_of
from exadask.runtime.parcel import is_plain
from exadask.tasks import Task, name_of

__all__ = ["arguments_fingerprint", "function_fingerprint"]

_SIZE = 16
_SCALARS = frozenset({int, float, complex, bool, type(None), str, bytes, type(...)})
_CALLABLE_KINDS = (
    *(types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType),
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType),
)
_NOT_OF_A_CLASS = frozenset(
    {"__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__firstlineno__"}
    | {"__static_attributes__", "__annotations__", "__abstractmethods__", "_abc_impl"}
    | {"__annotate_func__", "__annotations_cache__", "__slotnames__"}
    | {"_value2member_map_"}  # of enums; of flags it grows with use
)
# What Python writes into each module: it says where the code is, not what it does.
_NOT_OF_A_MODULE = frozenset(
    {"__name__", "__file__", "__doc__", "__spec__", "__loader__", "__package__", "__path__"}
    | {"__cached__", "__builtins__"}
)
_first: Callable[[tuple[Any, ...]], Any] = operator.itemgetter(0)
_LONGEST_WAY = 12  # steps to a value, in an error message

FutureDigest = Callable[[object], "bytes | None"]
# How one comes to a value: from what, the step, and what to fill in. Spelled only for an error.
_Way = tuple[Any, str, object]


def function_fingerprint(function: Callable[..., Any], *, version: str = "") -> bytes:
    """Name what a function does [16 bytes].

    Parameters
    ----------
    function : callable
        A function, a method, a task, or anything else that can be called.
    version : str
        What its user calls this version of it.

    Raises
    ------
    UnhashableValue
        It refers to something that cannot be described.

    Examples
    --------
    >>> function_fingerprint(lambda x: x + 1) == function_fingerprint(lambda x: x + 1)
    True
    >>> function_fingerprint(lambda x: x + 1) == function_fingerprint(lambda x: x + 2)
    False
    """
    name = function.name if isinstance(function, Task) else name_of(function)
    describer = _Describer(name)
    digest = describer.of(function, (None, "the function", None))
    return describer.with_code(_joined(b"function", version.encode(), digest))


def arguments_fingerprint(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str, future: FutureDigest
) -> bytes:
    """Name what a call is given [16 bytes].

    Parameters
    ----------
    args, kwargs
        Its arguments.
    name : str
        The task, for error messages.
    future : callable
        Gives what stands for an object whose value is not there yet; None for any other object.

    Raises
    ------
    UnhashableValue
        An argument cannot be described.

    Examples
    --------
    >>> first = arguments_fingerprint(({"a": 1, "b": 2},), {}, "f", lambda one: None)
    >>> first == arguments_fingerprint(({"b": 2, "a": 1},), {}, "f", lambda one: None)
    True
    """
    if all(map(is_plain, args)) and (not kwargs or all(map(is_plain, kwargs.values()))):
        given = (args, sorted(kwargs.items())) if kwargs else args  # no list is plain
        return hashlib.blake2b(marshal.dumps(given, 2), digest_size=_SIZE).digest()
    describer = _Describer(name, future)
    digests = [
        describer.of(one, (None, "argument {}", place)) for place, one in enumerate(args, start=1)
    ]
    for key in sorted(kwargs):
        digests += [_scalar(key), describer.of(kwargs[key], (None, "argument {!r}", key))]
    return describer.with_code(_joined(b"arguments", str(len(args)).encode(), *digests))


class _Describer:
    """Describes objects, each once.

    Parameters
    ----------
    task : str
        The task, for error messages.
    future : callable
        Gives what stands for a future.
    """

    def __init__(self, task: str, future: FutureDigest = lambda _: None) -> None:
        self._task, self._future = task, future
        self._known: dict[int, tuple[bytes, object]] = {}  # with the object, so that ids stay valid
        # Objects that contain each other cannot be described one before the other. Those that are
        # not complete yet lie on a stack, and one refers to another by how far below it lies; when
        # the outermost of them is complete, all are (Tarjan, SIAM J. Comput. 1 (1972) 146).
        self._stack: list[object] = []
        self._places: dict[int, int] = {}
        self._reach: float = math.inf  # the lowest place that was referred to
        self._n_called: Counter[str] = Counter()
        self._code_queue: deque[tuple[Any, bytes, _Way]] = deque()

    def of(self, value: Any, way: _Way) -> bytes:
        """Describe a value."""
        kind = type(value)
        if kind in _SCALARS:
            return _scalar(value)
        number, place = id(value), len(self._stack)
        if number in self._known:
            return self._known[number][0]
        if number in self._places:
            there = self._places[number]
            self._reach = min(self._reach, there)
            return _joined(b"cycle", str(place - there).encode())
        before, self._reach = self._reach, math.inf
        reach = math.inf
        self._stack.append(value)
        self._places[number] = place
        try:
            digest = self._described(value, kind, way)
            reach = self._reach
        except RecursionError as error:
            raise self._refused(way, "it is nested too deeply") from error
        finally:
            self._reach = before
            if reach >= place:  # nothing in it refers to what is around it
                for one in self._stack[place:]:
                    del self._places[id(one)]
                del self._stack[place:]
        if reach >= place:
            self._known[number] = digest, value
        else:
            self._reach = min(before, reach)
        return digest

    def with_code(self, digest: bytes) -> bytes:
        """Add what the functions and classes do that were met, and those that they use."""
        described = []
        while self._code_queue:
            value, name, way = self._code_queue.popleft()
            is_class = isinstance(value, type)
            parts = self._class_parts(value, way) if is_class else self._function_parts(value, way)
            described.append(_joined(b"means", name, *parts))
        return _joined(b"with code", digest, *sorted(described))

    def _own_code(self, value: Any, way: _Way) -> bytes:
        """Give a function or class of the user's own a name, and see to it that it is described.

        They refer to each other in cycles and in long chains, so that each is described alone.
        """
        name = f"{value.__module__}:{value.__qualname__}"
        self._n_called[name] += 1
        self._code_queue.append((value, f"{name}:{self._n_called[name]}".encode(), way))
        return _joined(b"code of", self._code_queue[-1][1])

    def _refused(self, way: _Way, reason: str) -> UnhashableValue:
        return UnhashableValue(self._task, _spelled(way), reason)

    def _described(self, value: Any, kind: type, way: _Way) -> bytes:
        stands_for = self._future(value)
        if stands_for is not None:
            return _joined(b"future", stands_for)
        if kind is tuple or kind is list:
            return self._sequence(value, kind, way)
        if kind is dict:
            return self._mapping(value, way)
        if kind is set or kind is frozenset:
            return self._set(value, way)
        if _is_array(value):
            return self._array(value, way)
        if isinstance(value, File):
            return _joined(b"file", value.digest())
        if isinstance(value, types.FunctionType):
            return self._function(value, way)
        if isinstance(value, type):
            is_code = is_own(value.__module__) and compiled_file(value.__module__) is None
            return self._own_code(value, way) if is_code else _foreign(value)
        if isinstance(value, types.ModuleType):
            return _joined(b"module", value.__name__.encode(), version_of(value.__name__))
        if isinstance(value, enum.Enum):  # pickle may say its name alone, as in Python 3.11.2
            parts = (self.of(one, way) for one in (kind, value._name_, value._value_))
            return _joined(b"enum", *parts)
        known = self._callable(value, kind, way)
        return self._object(value, way) if known is None else known

    # -- data -------------------------------------------------------------------------------

    def _sequence(self, value: Any, kind: type, way: _Way) -> bytes:
        tag = kind.__name__.encode()
        if all(type(one) in _SCALARS for one in value):  # a million numbers at once
            return _joined(tag + b" of plain", marshal.dumps(tuple(value), 2))
        parts = [self.of(one, (way, "[{}]", index)) for index, one in enumerate(value)]
        return _joined(tag, *parts)

    def _mapping(self, value: Mapping[Any, Any], way: _Way, step: str = "[{!r}]") -> bytes:
        if all(type(key) in _SCALARS and type(one) in _SCALARS for key, one in value.items()):
            pairs = sorted(marshal.dumps(pair, 2) for pair in value.items())
            return _joined(b"dict of plain", *pairs)
        items = [(self.of(key, (way, ", key {!r}", key)), key, one) for key, one in value.items()]
        items.sort(key=_first)
        parts = [digest + self.of(one, (way, step, key)) for digest, key, one in items]
        return _joined(b"dict", *parts)

    def _set(self, value: Iterable[Any], way: _Way) -> bytes:
        parts = sorted(self.of(one, (way, ", element {!r}", one)) for one in value)
        return _joined(b"set" if isinstance(value, set) else b"frozenset", *parts)

    def _array(self, value: Any, way: _Way) -> bytes:
        dtype = value.dtype
        form = f"{type(value).__name__} {value.shape} {dtype.kind}".encode()
        if dtype.hasobject or dtype.kind == "T":  # a text of any length lies elsewhere
            content = self.of(value.ravel().tolist(), way)
            return _joined(b"array", form, str(dtype).encode(), content)
        # `str` says all of a dtype, fields included, except the order of bytes of a plain one.
        form += f" {dtype.str} {dtype}".encode()
        digest = hashlib.blake2b(digest_size=_SIZE)
        if dtype.char in "gG":  # there is padding in each number, of any content
            digest.update(repr(value.ravel().tolist()).encode())
        elif value.nbytes:
            numpy = sys.modules["numpy"]
            digest.update(numpy.ascontiguousarray(value).reshape(-1).view("u1"))
        return _joined(b"array", form, digest.digest())

    def _object(self, value: Any, way: _Way) -> bytes:
        """Describe an object by what pickle would rebuild it from."""
        if isinstance(value, types.MappingProxyType):
            return _joined(b"proxy", self.of(dict(value), way))
        if isinstance(value, (set, frozenset)):  # pickle would write its order down
            state = self._state(getattr(value, "__dict__", {}), way)
            return _joined(b"set of", self.of(type(value), way), self._set(value, way), state)
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            made_of = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception as error:  # the user's objects decide what this raises
            reason = str(error).strip() or type(error).__name__
            raise self._refused(_named_way(way, value), reason) from error
        if isinstance(made_of, str):
            return self._global(value, made_of, way)
        make, args, state, items, pairs, *more = (*tuple[Any, ...](made_of), None, None, None)
        parts = [self.of(make, way), self.of(args, way), self._state(state, way)]
        if items is not None:
            parts += [b"items", self.of(list(items), way)]
        if pairs is not None:
            is_ordered = isinstance(value, collections.OrderedDict)
            parts += [b"pairs", self.of(list(pairs) if is_ordered else dict(pairs), way)]
        return _joined(b"object", *parts, *(self.of(one, way) for one in more if one is not None))

    def _state(self, state: Any, way: _Way) -> bytes:
        if type(state) is dict:
            return self._mapping(state, way, ".{}")
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:  # of slots
            return _joined(b"slots", self.of(state[0], way), self._mapping(state[1], way, ".{}"))
        return self.of(state, way)

    def _global(self, value: Any, name: str, way: _Way) -> bytes:
        """Describe what pickle would look up by its name."""
        module = getattr(value, "__module__", None) or type(value).__module__
        if _at(module, name) is not value:
            module = pickle.whichmodule(value, name)  # type: ignore[attr-defined]  # not in the stubs
            if _at(module, name) is not value:
                raise self._refused(_named_way(way, value), f"no module has it as {name!r}")
        return _joined(b"global", module.encode(), name.encode(), version_of(module))

    # -- code -------------------------------------------------------------------------------

    def _callable(self, value: Any, kind: type, way: _Way) -> bytes | None:
        """Describe what is neither a function nor a class and can be called, or stands for it."""
        if isinstance(value, Task):
            options = (value.function, value.options.setup, value.options.env)
            return _joined(b"task", self._sequence(options, tuple, way))
        if isinstance(value, types.CodeType):
            return _joined(b"code", meaning_of(value))
        if isinstance(value, functools.partial):
            inner = (value.func, value.args, value.keywords)
            return _joined(b"partial", self.of(inner, way))
        if isinstance(value, (staticmethod, classmethod)):
            return _joined(kind.__name__.encode(), self.of(value.__func__, way))
        if isinstance(value, property):
            return _joined(b"property", self.of((value.fget, value.fset, value.fdel), way))
        if isinstance(value, functools.cached_property):  # has a lock, before Python 3.12
            return _joined(b"cached property", self.of(value.func, way))
        if isinstance(value, (types.MethodType, *_CALLABLE_KINDS)):
            return self._method(value, way)
        if isinstance(value, type(os.environ)):  # it is other on each node
            return _joined(b"environment")
        # What other packages make of a user's function: functools.lru_cache, numba.jit, jax.jit.
        wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
        if isinstance(wrapped, types.FunctionType) and not is_own(kind.__module__):
            return _joined(b"wrapper", self.of(kind, way), self.of(wrapped, way))
        return None

    def _method(self, value: Any, way: _Way) -> bytes:
        """Describe what is bound to an object, or written in C."""
        owner = getattr(value, "__self__", None)
        # random.randint is bound to a generator whose state is always another one.
        name = getattr(value, "__name__", "")
        homes = (getattr(value, "__module__", None), type(owner).__module__)
        home = next((one for one in homes if one and _at(one, name) is value), None)
        if home is None and isinstance(value, types.MethodType):
            return _joined(b"method", self.of((value.__func__, owner), way))
        if home is None and owner is not None and not isinstance(owner, types.ModuleType):
            return _joined(b"builtin", name.encode(), self.of(owner, way))
        return _foreign(value, home)

    def _function(self, function: types.FunctionType, way: _Way) -> bytes:
        # Not its __module__: functools.wraps gives it that of the function within.
        if is_own(_home_of(function), function.__globals__):
            return self._own_code(function, way)
        if _at(function.__module__, function.__qualname__) is function and not is_own(
            function.__module__
        ):
            return _foreign(function)
        # What a decorator of another package made of a user's function.
        parts = [_foreign(function, _home_of(function)), meaning_of(function.__code__)]
        captured = {**_captured(function), "__wrapped__": getattr(function, "__wrapped__", None)}
        for key, value in sorted(captured.items()):
            try:
                parts += [key.encode(), self.of(value, (way, ", which wraps {!r}", key))]
            except UnhashableValue:  # a lock or a cache of the decorator's own
                continue
        return _joined(b"decorated", *parts)

    def _function_parts(self, function: types.FunctionType, way: _Way) -> list[bytes]:
        way, code = (way, "", None), function.__code__
        captured = _captured(function)
        parts = [
            meaning_of(code),
            self.of(function.__defaults__, (way, ", default", None)),
            self.of(function.__kwdefaults__, (way, ", default", None)),
        ]
        space, names = function.__globals__, names_in(code)
        used = {name: space[name] for name in names.loaded if name in space}
        for name, value in [*used.items(), *captured.items()]:
            _add_members(used, name, value, names.attributes)
        for name, value in (*sorted(captured.items()), *sorted(used.items(), key=_first)):
            if name not in _NOT_OF_A_MODULE:
                parts += [name.encode(), self.of(value, (way, ", which uses {!r}", name))]
        package = space.get("__package__") or ""
        for name, content in behind_imports(names.imported, package):
            parts += [b"import", name.encode(), content]
        return parts

    def _class_parts(self, kind: type, way: _Way) -> list[bytes]:
        parts = [self.of(base, (way, ", base", None)) for base in (type(kind), *kind.__bases__)]
        for key, value in sorted(vars(kind).items()):
            if key not in _NOT_OF_A_CLASS and not isinstance(value, types.GetSetDescriptorType):
                is_slot = isinstance(value, types.MemberDescriptorType)
                parts += [key.encode(), b"" if is_slot else self.of(value, (way, ".{}", key))]
        return parts


def _captured(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # it is assigned later
            continue
    return found


def _add_members(used: dict[str, Any], name: str, value: object, attributes: Iterable[str]) -> None:
    """Add what is used of a module of the user's own, or of a function with attributes."""
    if isinstance(value, types.ModuleType):
        if not is_own(value.__name__, vars(value)) or compiled_file(value.__name__) is not None:
            return
    elif not isinstance(value, types.FunctionType):
        return
    for attribute in attributes:
        full, member = f"{name}.{attribute}", vars(value).get(attribute)
        if member is not None and full not in used:
            used[full] = member
            _add_members(used, full, member, attributes)


def _foreign(value: Any, home: str | None = None) -> bytes:
    """Describe something of another package by its name."""
    owner = getattr(value, "__objclass__", None)
    module = home or getattr(value, "__module__", None) or getattr(owner, "__module__", "")
    name = getattr(value, "__qualname__", None) or value.__name__
    return _joined(b"foreign", str(module).encode(), name.encode(), version_of(str(module)))


def _home_of(function: types.FunctionType) -> str:
    return str(function.__globals__.get("__name__") or function.__module__)


def _at(module: str | None, name: str) -> object:
    """Give what a module has under a dotted name, or None."""
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found


def _scalar(value: Any) -> bytes:
    return hashlib.blake2b(b"plain" + marshal.dumps(value, 2), digest_size=_SIZE).digest()


def _joined(tag: bytes, *parts: bytes) -> bytes:
    """Hash parts so that it is clear where each ends."""
    lengths = b",".join([b"%d" % len(part) for part in (tag, *parts)])
    return hashlib.blake2b(b"".join((lengths, b":", tag, *parts)), digest_size=_SIZE).digest()


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    return type(value) is numpy.ndarray or isinstance(value, numpy.generic)


def _named_way(way: _Way, value: object) -> _Way:
    return way, " (a {})", type(value).__name__


def _spelled(way: _Way) -> str:
    """Say how one comes to a value, the innermost steps only if there are many."""
    steps = []
    before: Any = way
    while before is not None:
        before, step, part = before
        named = part if "!r" not in step else reprlib.repr(part)
        steps.append(step.replace("!r", "").format(named))
    steps.reverse()
    if len(steps) > _LONGEST_WAY:
        steps = [steps[0], " ... ", *steps[-_LONGEST_WAY:]]
    return "".join(steps)
