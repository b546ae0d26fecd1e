"""What travels with a function, watched, so that it is packed again only when it has changed.

Functions of ``__main__``, lambdas and closures travel by value: with their code, their defaults,
the globals their code names, and so on through every function found there. To pack that takes
30 to 100 us, to see that it is still the same about one. What can change in place and unseen (a
list, an instance, a class of ``__main__``) cannot be watched: then there is no answer but to pack.
"""

from __future__ import annotations

import datetime as dt
import dis
import enum
import functools
import logging
import operator
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import cloudpickle

from exadask.tasks import Task

_MISSING: Any = object()
_MAIN = ("__main__", "__mp_main__")
_CONSTANT = frozenset(
    {
        *(type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes),
        *(range, re.Pattern, dt.date, dt.timedelta),
        *(pathlib.PurePosixPath, pathlib.PosixPath),
    }
)
_NAMELESS = (type(None), type(...), type(NotImplemented))  # classes that cloudpickle knows
_KNOWN_NAMES = 4096
_BASE_GLOBALS = ("__package__", "__name__", "__path__", "__file__")  # cloudpickle adds them
_GLOBAL_OPS = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")

_Parts = Callable[[Any], tuple[Any, ...]]
_function_parts: _Parts = operator.attrgetter(
    *("__code__", "__defaults__", "__kwdefaults__", "__annotations__", "__dict__"),
    *("__name__", "__qualname__", "__module__", "__doc__"),
)
_partial_parts: _Parts = operator.attrgetter("func", "args", "keywords", "__dict__")
_name_parts: _Parts = operator.attrgetter("__module__", "__qualname__")
_task_parts: _Parts = operator.attrgetter("function", "options")


class Captures:
    """What travels with a function by value, to notice when it must be packed again.

    Made by `Captures.of`, before the function is packed: a change in between is then noticed.
    """

    def __init__(self) -> None:
        self._registry = cloudpickle.list_registry_pickle_by_value()
        self._n_modules = len(sys.modules)
        self._lookups: list[tuple[Callable[..., Any], str, Any]] = []
        self._parts: list[tuple[_Parts, Any, tuple[Any, ...]]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._empty: list[Mapping[str, Any]] = []
        self._mappings: list[tuple[Mapping[str, Any], list[str], list[Any]]] = []
        self._submodules: list[tuple[types.CodeType, list[types.ModuleType], list[str]]] = []

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Captures | None:
        """Find what travels with a function, or with a task's function and its setup.

        Parameters
        ----------
        function : callable
            A function, class or `Task`.

        Returns
        -------
        Captures or None
            None: something in it may change unnoticed, so that it must be packed at every call.
        """
        captures = cls()
        search = _Search(captures)
        try:
            if not (search.task(function) if isinstance(function, Task) else search(function)):
                return None
            search.finish()
        except Exception:  # the user's objects decide what it raises to look at them
            return None
        return captures

    def are_unchanged(self) -> bool:
        """Whether packing the function now would give the same bytes; a few identity checks."""
        same = operator.is_
        try:
            for get, name, value in self._lookups:
                if get(name, _MISSING) is not value:
                    return False
            for parts_of, thing, parts in self._parts:
                if not all(map(same, parts_of(thing), parts)):
                    return False
            for cell, value in self._cells:
                if cell.cell_contents is not value:
                    return False
            if any(self._empty):
                return False
            for mapping, names, values in self._mappings:
                if list(mapping) != names or not all(map(same, mapping.values(), values)):
                    return False
        except (ValueError, RuntimeError):  # a cell was emptied, a mapping changes right now
            return False
        if self._n_modules != len(sys.modules) and not self._have_same_submodules():
            return False
        return bool(cloudpickle.list_registry_pickle_by_value() == self._registry)

    def _have_same_submodules(self) -> bool:
        """Whether no import has added to the modules that the code can reach through packages."""
        n_modules = len(sys.modules)
        for code, packages, known in self._submodules:
            if _submodules(code, packages) != known:
                return False
        self._n_modules = n_modules
        return True


class _Search:
    """Adds all that a value brings along to captures; says whether all of it can be watched."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._seen: dict[int, Any] = {id(one): one for one in _NAMELESS}  # so no id comes twice
        self._looked_up: set[tuple[int, str]] = set()
        self._packages: list[tuple[types.CodeType, list[types.ModuleType]]] = []

    def __call__(self, value: Any) -> bool:
        if type(value) in _CONSTANT or id(value) in self._seen:
            return True  # if it was seen and cannot be watched, the whole search is false anyway
        self._seen[id(value)] = value
        if issubclass(type(value), (type, types.FunctionType)):  # list[int] says that it is a class
            return self._by_name(value, value.__qualname__) or self._function(value)
        return self._contents(value) or self._object(value)

    def finish(self) -> None:
        """Note the submodules: only now, because it takes long where there are many modules."""
        for code, packages in self._packages:
            self._captures._submodules.append((code, packages, _submodules(code, packages)))

    def task(self, task: Task[Any, Any]) -> bool:
        """Watch what is packed of a task that is submitted: its function, and its setup."""
        self._look_at(_task_parts, task)
        setup_is_watched = self(task.options.setup)
        qualname = getattr(task, "__qualname__", "?")  # a partial has none
        return setup_is_watched and (self._by_name(task, qualname) or self(task.function))

    def _by_name(self, value: Any, qualname: str) -> bool:
        """Watch the way from a module to a value, if other processes find the value there."""
        home = value.__module__
        if home in _MAIN or not isinstance(home, str):
            return False
        found: Any = sys.modules.get(home)
        self._look_up(sys.modules, home)
        if found is None or _is_registered(found.__name__, self._captures._registry):
            return False
        for part in qualname.split("."):
            space = vars(found)
            self._look_up(space, part)
            if part not in space:
                return False
            found = getattr(found, part)
        if isinstance(value, types.FunctionType):  # of classes, only some can be renamed
            self._look_at(_name_parts, value)
        return found is value

    def _function(self, function: object) -> bool:
        """Watch a function that travels by value."""
        if not isinstance(function, types.FunctionType):
            return False
        parts = self._look_at(_function_parts, function)
        space, code = function.__globals__, function.__code__
        for name in (*_BASE_GLOBALS, *_global_names(code)):
            self._look_up(space, name)
        named = [space[name] for name in _global_names(code) if name in space]
        cells = function.__closure__ or ()
        enclosed = [cell.cell_contents for cell in cells]
        self._captures._cells += zip(cells, enclosed, strict=True)
        packages = [one for one in (*named, *enclosed) if isinstance(one, types.ModuleType)]
        if packages:
            self._packages.append((code, packages))
        _, defaults, keyword_defaults, annotations, attributes, *names = parts
        mappings = [one for one in (keyword_defaults, annotations, attributes) if one is not None]
        base = (space.get(name) for name in _BASE_GLOBALS)
        return self._all((*base, *named, *enclosed, defaults, *names)) and all(
            self._mapping(one) for one in mappings
        )

    def _contents(self, value: object) -> bool:
        """Watch what is in a value that cannot change itself, or that shows when it does."""
        match value:
            case tuple() | frozenset() if type(value) in (tuple, frozenset):
                return self._all(value)
            case types.ModuleType():
                self._look_up(sys.modules, value.__name__)
                is_there = value.__name__ in sys.modules
                return is_there and not _is_registered(value.__name__, self._captures._registry)
            case functools.partial() if type(value) is functools.partial:
                function, args, keywords, attributes = self._look_at(_partial_parts, value)
                is_watched = self._all((function, args))
                return is_watched and self._mapping(keywords) and self._mapping(attributes)
            case enum.Enum():
                return self._all((type(value), value._value_))
            case types.MethodDescriptorType() | types.WrapperDescriptorType():
                return self(value.__objclass__)
            case logging.Logger() if type(value) in (logging.Logger, logging.RootLogger):
                self._look_up(vars(value), "name")  # all that travels of it
                return self(value.name)
            case Task() if not value.is_importable:
                return self._task_by_value(value)
        return _is_numpy_number(value) or self._annotation(value)

    def _task_by_value(self, task: Task[Any, Any]) -> bool:
        """Watch a task that a function refers to, with all that is said about it."""
        names = (one.name for one in fields(task.options) if one.name != "request")  # a constant
        options = [getattr(task.options, name) for name in names]
        parts, annotations = vars(task), vars(task).get("__annotations__", {})
        is_watched = self._mapping(parts, but=(task.options, annotations))
        return is_watched and self._mapping(annotations) and self._all(options)

    def _annotation(self, value: Any) -> bool:
        """Watch the parts of ``list[int]``, ``int | None``, ``Optional[Path]``."""
        is_generic = isinstance(value, (types.GenericAlias, types.UnionType))
        if not is_generic and not (type(value).__module__ == "typing" and _has_args(value)):
            return False
        origin, metadata = getattr(value, "__origin__", None), getattr(value, "__metadata__", ())
        return self._all((origin, *value.__args__, *metadata))

    def _object(self, value: Any) -> bool:
        """Watch an object that its own class packs by its name: ``numpy.exp``, ``math.sin``."""
        # To ask an object how it is packed may take long, or do something: only what has a name.
        has_name = isinstance(getattr(value, "__name__", None), str)
        is_any = type(value).__module__ == "typing"  # which has none before Python 3.11
        if isinstance(value, types.MethodType) or not (has_name or is_any):
            return False
        reduce = cloudpickle.Pickler.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(5) if reduce is None else reduce(value)
        return isinstance(reduced, str) and self._by_name(value, reduced)

    def _mapping(self, mapping: Mapping[str, Any], but: tuple[object, ...] = ()) -> bool:
        """Watch all of a dict: names, values, and their order; look into all values but some."""
        if not mapping:
            self._captures._empty.append(mapping)
            return True
        if any(type(name) is not str for name in mapping):
            return False
        values = list(mapping.values())
        self._captures._mappings.append((mapping, list(mapping), values))
        return all(any(value is one for one in but) or self(value) for value in values)

    def _all(self, values: Iterable[object]) -> bool:
        return all(self(value) for value in values)

    def _look_up(self, mapping: Mapping[str, Any], name: str) -> None:
        if (id(mapping), name) not in self._looked_up:
            self._looked_up.add((id(mapping), name))
            entry = (mapping.get, name, mapping.get(name, _MISSING))
            self._captures._lookups.append(entry)

    def _look_at(self, parts_of: _Parts, thing: Any) -> tuple[Any, ...]:
        parts = parts_of(thing)
        self._captures._parts.append((parts_of, thing, parts))
        return parts


@functools.lru_cache(_KNOWN_NAMES)  # what cannot be watched is searched again at every call
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Name the globals that code names, that of functions within included; as cloudpickle does."""
    return tuple(dict.fromkeys(_named(code)))


def _named(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_OPS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named(constant)


def _submodules(code: types.CodeType, packages: Iterable[types.ModuleType]) -> list[str]:
    """Name the imported modules that code can reach through packages: they travel by name too."""
    attributes = set(code.co_names)
    prefixes = [f"{one.__name__}." for one in packages if getattr(one, "__package__", None)]
    return sorted(
        name
        for name in list(sys.modules)
        for prefix in prefixes
        if name.startswith(prefix) and attributes.issuperset(name[len(prefix) :].split("."))
    )


def _is_registered(module: str, registry: set[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in registry)


def _is_numpy_number(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value).__module__ != "numpy":
        return False
    return isinstance(value, (numpy.number, numpy.bool_))


def _has_args(value: object) -> bool:
    return isinstance(getattr(value, "__args__", None), tuple)
