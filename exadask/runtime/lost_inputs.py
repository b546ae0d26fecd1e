"""Calls that fail because an input of theirs has no value: which one, and why."""

from __future__ import annotations

from collections.abc import Sequence

from exadask.errors import ClusterLost, DependencyFailed
from exadask.runtime.call import Call
from exadask.runtime.job import TaskFailed


def is_lost(call: Call) -> bool:
    """Whether a call that is done has no result."""
    return not call.has_value and (call.remote is None or call.error is not None)


def dependency_failed(call: Call, lost: Call) -> DependencyFailed:
    """Say which input has no result, and why."""
    error = lost.error
    if isinstance(error, DependencyFailed):
        chain, text = (lost.kind.name, *error.chain), error.root_error
    elif isinstance(error, TaskFailed):
        chain, text = (lost.kind.name,), error.failure.summary
    else:
        why = "it was cancelled, or its data is lost"
        chain, text = (lost.kind.name,), f"{type(error).__name__}: {error}" if error else why
    failed = DependencyFailed(call.kind.name, chain, text)
    failed.__cause__ = error.__cause__ if isinstance(error, DependencyFailed) else error
    return failed


def translated(error: BaseException, call: Call) -> BaseException:
    """Say it of the input, if it was the input that failed."""
    if isinstance(error, TaskFailed) and error.key == call.key:
        return error
    names = [one.kind.name if isinstance(one, Call) else str(one.key) for one in call.inputs]
    if not names:
        return error
    if isinstance(error, TaskFailed):
        chain, text = (error.name,), error.failure.summary
    elif isinstance(error, ClusterLost):
        chain, text = (names[0],), "it was cancelled, or its data is lost"
    else:
        chain, text = (_failed_input(call, names),), f"{type(error).__name__}: {error}"
    failed = DependencyFailed(call.kind.name, chain, text)
    failed.__cause__ = error
    return failed


def _failed_input(call: Call, names: Sequence[str]) -> str:
    """Name the input that failed, where it was no task of ours."""
    for one, name in zip(call.inputs, names, strict=True):
        future = one.remote if isinstance(one, Call) else one
        if future is not None and future.status == "error":
            return name
    return names[0]
