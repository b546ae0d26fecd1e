"""From a function and its arguments to a call that can travel."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from exadask.captures import Captures
from exadask.errors import InvalidRequest, NotSerializable
from exadask.future import Future
from exadask.runtime.board import MAX_CALLS
from exadask.runtime.call import Call
from exadask.runtime.diagnosis import explain_unpicklable, refusal
from exadask.runtime.job import WithKeywords
from exadask.runtime.kind import Kind, Setup, Surroundings, data_kind, qualified_name
from exadask.runtime.parcel import Packer, Parcel, is_plain
from exadask.tasks import Task, TaskOptions, innermost

_PLAIN = TaskOptions()
_MOST_KINDS = 4096
_PATH_MAX = 4096


_getcwd = ctypes.PyDLL(None).getcwd  # as opposed to CDLL it keeps the interpreter's lock
_getcwd.restype = ctypes.c_void_p
_getcwd.argtypes = (ctypes.c_char_p, ctypes.c_size_t)


class Kinds:
    """Packs functions: each once, as long as nothing changes that travels with it.

    Not thread-safe.

    Parameters
    ----------
    segment_bytes : int
        Buffers from this size go to shared memory [bytes].
    """

    def __init__(self, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._known: dict[int, TaskPacker] = {}
        self._kinds: dict[bytes, Kind] = {}
        self._sys_path = list(sys.path)
        self._surroundings = _surroundings()
        self._folder = _Folder()

    def packer(self, function: Any) -> TaskPacker:
        """Give what packs the calls of a task, or of another callable, as it is now.

        Raises
        ------
        NotSerializable
            The function or its setup cannot be sent to another process.
        InvalidRequest
            It cannot be called, or the current directory is gone.
        """
        if not self._folder.is_same() or sys.path != self._sys_path:
            self._folder = _Folder()
            self._surroundings, self._sys_path = _surroundings(), list(sys.path)
            self._known.clear()
            self._kinds.clear()
        known = self._known.get(id(function))  # it keeps its function alive: the id is no other's
        if known is not None and known.is_current():
            return known
        task = as_task(function)
        fresh = TaskPacker(task, self._surroundings, self._segment_bytes)
        fresh.kind = self._interned(fresh.kind)
        if fresh.is_watched:
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            self._known[id(function)] = fresh
        return fresh

    def data(self, value: object) -> Call:
        """Pack a value that calls share.

        Raises
        ------
        NotSerializable
            It cannot be sent to another process.
        InvalidRequest
            There are futures in it.
        """
        packer = Packer(is_future, self._segment_bytes)
        parcel = _packed(value, packer, "value", "broadcast")
        if packer.futures:
            raise InvalidRequest(
                f"broadcast() got a value with {len(packer.futures)} futures in it.",
                "Give it their result(), or give the futures to the tasks themselves.",
            )
        return Call(data_kind(self._surroundings), parcel)

    def _interned(self, kind: Kind) -> Kind:
        """Give the kind that was packed before, if this is the same."""
        if not kind.digest:
            return kind
        known = self._kinds.get(kind.digest)
        if known is not None and known.is_same(kind):
            return known
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind.digest] = kind
        return kind


class TaskPacker:
    """Packs the calls of one task; its function only once.

    Parameters
    ----------
    task : Task
        The task.
    surroundings : Surroundings
        Where the user's code lives.
    segment_bytes : int
        Buffers from this size go to shared memory [bytes].

    Attributes
    ----------
    task : Task
        The task.
    kind : Kind
        What all calls have in common.
    possible_on : object
        The nodes on which it is known that the task can run.

    Raises
    ------
    NotSerializable
        The function or its setup cannot be sent to another process.
    """

    def __init__(
        self, task: Task[Any, Any], surroundings: Surroundings, segment_bytes: int
    ) -> None:
        self.task, self._segment_bytes = task, segment_bytes
        self.possible_on: object = None
        options = task.options
        packer = Packer(is_future, segment_bytes)
        self._captures = Captures.of(task)
        function = _Underlying(task) if task.is_importable else task.function
        self.kind = Kind(
            name=task.name,
            function=_packed(function, packer, "function", task.name),
            source=_source_of(task),
            request=options.request,
            surroundings=surroundings,
            env=options.env,
            setup=_packed_setup(task),
            isolation=options.isolation,
            retry_on=_names_of(options.retry_on),
            priority=options.priority,
            retries=options.retries,
            pool=options.pool,
            bundle=None if options.bundle is None else min(options.bundle, MAX_CALLS),
            memo=options.memo,
            rungs=options.rungs,
            checkpoint=options.checkpoint,
            notice_s=options.notice_s,
        )
        self._futures = packer.futures
        if self._futures:
            self.kind.digest = b""  # it is another function with each of their values

    @property
    def is_watched(self) -> bool:
        """Whether a change of the function would be noticed."""
        return self._captures is not None and not self._futures

    def is_current(self) -> bool:
        """Whether the function, packed now, would be the same."""
        return self._captures is not None and self._captures.are_unchanged()

    def calls(
        self, arguments: Iterable[tuple[Any, ...]], input_of: Callable[[Any, str], Any]
    ) -> Iterator[Call]:
        """Pack calls as they are asked for, with as little as can be for each."""
        kind = self.kind
        for args in arguments:
            for one in args:
                if type(one) is not int and not is_plain(one):
                    break
            else:
                if not self._futures:
                    yield Call(kind, args)
                    continue
            yield self.call(args, {}, input_of)

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], input_of: Callable[[Any, str], Any]
    ) -> Call:
        """Pack one call.

        Parameters
        ----------
        args, kwargs
            The function's arguments.
        input_of : callable
            Gives, for a future among them and the task's name, what its value comes from.

        Raises
        ------
        NotSerializable
            An argument cannot be sent to another process.
        """
        if _are_plain(args, kwargs) and not self._futures:
            return Call(self.kind, WithKeywords(args, kwargs) if kwargs else args)
        packer = Packer(is_future, self._segment_bytes)
        packer.futures.extend(self._futures)
        parcel = _packed_arguments((args, kwargs), packer, self.kind.name)
        call = Call(
            self.kind, parcel, tuple(input_of(one, self.kind.name) for one in packer.futures)
        )
        if self._futures or not parcel.is_light:
            call.is_single = True
        return call


def as_task(function: Any) -> Task[Any, Any]:
    """Make a callable a task without options, unless it is a task.

    Raises
    ------
    InvalidRequest
        It cannot be called.
    """
    if isinstance(function, Task):
        return function
    if not callable(function):
        raise InvalidRequest(
            f"submit() got {function!r}, which cannot be called.",
            "Give the function first and its arguments after it: submit(f, x), not submit(f(x)).",
        )
    return Task(function, _PLAIN)


class _Underlying:
    """The function below a task that travels by its name; a slot supplies the setup's state."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.task.function(*args, **kwargs)


def is_future(candidate: object) -> bool:
    """Whether an object stands for a value to come: a future of exadask's or of Dask's."""
    if isinstance(candidate, Future):
        return True
    kind = type(candidate)
    return kind.__name__ == "Future" and kind.__module__ == "distributed.client"


def _are_plain(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return all(map(is_plain, args)) and (not kwargs or all(map(is_plain, kwargs.values())))


def _source_of(task: Task[Any, Any]) -> str:
    """Say where the code of a task was written; code of one place lasts about as long."""
    function = innermost(task.function)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    return f"{task.origin} {place} {task.options.request}"


def _packed(value: Any, packer: Packer, role: str, name: str) -> Parcel:
    try:
        return packer.pack(value)
    except NotSerializable:
        raise
    except Exception as error:  # the user's objects decide what pickling raises
        path, reason = explain_unpicklable(value, f"{role} {name!r}", error, _pack)
        raise NotSerializable(f"the {role} of task {name!r}", path, reason) from error


def _packed_arguments(
    arguments: tuple[tuple[Any, ...], dict[str, Any]], packer: Packer, name: str
) -> Parcel:
    try:
        return packer.pack(arguments)
    except NotSerializable:
        raise
    except Exception as error:  # the user's objects decide what pickling raises
        args, kwargs = arguments
        places = [*enumerate(args, start=1), *kwargs.items()]
        blamed = next((one for one in places if refusal(one[1], _pack) is not None), places[0])
        path, reason = explain_unpicklable(blamed[1], f"argument {blamed[0]}", error, _pack)
        raise NotSerializable(f"argument {blamed[0]} of task {name!r}", path, reason) from error


def _pack(value: object) -> Parcel:
    return Packer(is_future).pack(value)


def _packed_setup(task: Task[Any, Any]) -> Setup | None:
    if task.options.setup is None:
        return None
    parcel = _packed(task.options.setup, Packer(), "setup function of task", task.name)
    head = parcel.head if isinstance(parcel.head, bytes) else bytes(parcel.head.view())
    return Setup(key=hashlib.blake2b(head, digest_size=16).hexdigest(), function=parcel)


def _names_of(kinds: tuple[type[BaseException], ...] | None) -> tuple[str, ...] | None:
    return None if kinds is None else tuple(qualified_name(kind) for kind in kinds)


class _Folder:
    """The current directory, to notice cheaply that it is another one.

    `os.getcwd` lets other threads run; between two of many submissions that costs 20 times as much
    as the question itself.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_PATH_MAX)
        self._first = self._now()

    def is_same(self) -> bool:
        """Whether it is the one that it was at first."""
        return self._now() == self._first

    def _now(self) -> bytes:
        if _getcwd(self._buffer, _PATH_MAX) is None:  # it is gone, or its name is too long
            return _cwd().encode()
        return self._buffer.value


def _surroundings() -> Surroundings:
    cwd = _cwd()
    return Surroundings(cwd=cwd, sys_path=tuple(entry or cwd for entry in sys.path))


def _cwd() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  # per task: keep it cheap
    except FileNotFoundError as error:
        raise InvalidRequest(
            "the current directory has been deleted, so tasks cannot start in it.",
            "Change to another one: os.chdir(...).",
        ) from error
