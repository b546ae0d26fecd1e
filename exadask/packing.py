"""From a function and its arguments to a job that can travel."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from exadask.errors import InvalidRequest, NotSerializable
from exadask.future import Future
from exadask.runtime.diagnosis import explain_unpicklable, refusal
from exadask.runtime.job import Job, Setup, Surroundings, qualified_name
from exadask.runtime.parcel import Packer, Parcel
from exadask.tasks import Task


class TaskPacker:
    """Packs the calls of one task; its function only once.

    Parameters
    ----------
    task : Task
        The task.
    segment_bytes : int
        Buffers from this size go to shared memory [bytes].

    Raises
    ------
    NotSerializable
        The function or its setup cannot be sent to another process.
    """

    def __init__(self, task: Task[Any, Any], segment_bytes: int) -> None:
        self._task, self._segment_bytes = task, segment_bytes
        packer = Packer(_is_future, segment_bytes)
        function = _Underlying(task) if task.is_importable else task.function
        self._function = _packed(function, packer, "function", task.name)
        self._futures = packer.futures
        self._setup = _packed_setup(task)
        self._surroundings = _surroundings()

    def job(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Job, list[Any]]:
        """Pack one call.

        Returns
        -------
        (Job, list)
            The call, and the futures whose values it needs, in order.

        Raises
        ------
        NotSerializable
            An argument cannot be sent to another process.
        """
        packer = Packer(_is_future, self._segment_bytes)
        packer.futures.extend(self._futures)
        task, options = self._task, self._task.options
        job = Job(
            key=f"{task.name}-{uuid.uuid4().hex}",
            name=task.name,
            function=self._function,
            arguments=_packed_arguments((tuple(args), dict(kwargs)), packer, task.name),
            request=options.request,
            surroundings=self._surroundings,
            env=options.env,
            setup=self._setup,
            isolation=options.isolation,
            retry_on=_names_of(options.retry_on),
        )
        return job, packer.futures


class _Underlying:
    """The function below a task that travels by its name; a slot supplies the setup's state."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.task.function(*args, **kwargs)


def _is_future(candidate: object) -> bool:
    if isinstance(candidate, Future):
        return True
    kind = type(candidate)
    return kind.__name__ == "Future" and kind.__module__ == "distributed.client"


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
    return Packer(_is_future).pack(value)


def _packed_setup(task: Task[Any, Any]) -> Setup | None:
    if task.options.setup is None:
        return None
    parcel = _packed(task.options.setup, Packer(), "setup function of task", task.name)
    head = parcel.head if isinstance(parcel.head, bytes) else bytes(parcel.head.view())
    return Setup(key=hashlib.blake2b(head, digest_size=16).hexdigest(), function=parcel)


def _names_of(kinds: tuple[type[BaseException], ...] | None) -> tuple[str, ...] | None:
    return None if kinds is None else tuple(qualified_name(kind) for kind in kinds)


def _surroundings() -> Surroundings:
    try:
        cwd = os.getcwd()  # noqa: PTH109  # per task: keep it cheap
    except FileNotFoundError as error:
        raise InvalidRequest(
            "the current directory has been deleted, so tasks cannot start in it.",
            "Change to another one: os.chdir(...).",
        ) from error
    return Surroundings(cwd=cwd, sys_path=tuple(entry or cwd for entry in sys.path))
