"""How a call ended, packed for its way to the user: a value, an exception, or why there is none."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from exadask.errors import NotSerializable, RemoteError, TaskCrashed
from exadask.runtime.diagnosis import explain_unpicklable
from exadask.runtime.job import Failure
from exadask.runtime.kind import Kind, qualified_name
from exadask.runtime.parcel import Packer, Parcel

_RUNTIME_FOLDER = str(Path(__file__).parent)


def pack_result(value: object, kind: Kind) -> Parcel | Failure:
    """Pack what a task returned; if that cannot be, say why."""
    try:
        return Packer().pack(value)
    except Exception as error:  # the user's objects decide what pickling raises
        where, reason = explain_unpicklable(value, "the result", error)
        what = f"the result of task {kind.name!r} ({type(value).__name__})"
        return failure_of(NotSerializable(what, where, reason), kind, may_retry=False)


def failure_of(error: BaseException, kind: Kind, *, may_retry: bool = True) -> Failure:
    """Pack an exception, so that it arrives as itself or at least as its text."""
    own = _without_our_frames(error.__traceback__)
    error.__traceback__ = None
    text = "".join(traceback.format_exception(type(error), error, own))
    summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    return Failure(
        exception=_packed_exception(error, kind, summary, text),
        summary=summary,
        traceback=text,
        may_retry=may_retry and kind.may_retry(error),
        error=type(error).__name__,
    )


def _packed_exception(error: BaseException, kind: Kind, summary: str, text: str) -> Parcel:
    try:
        parcel = Packer().pack(error)
        rebuilt = parcel.load()
    except Exception:  # the user's exception cannot travel: its text does
        rebuilt = None
    if type(rebuilt) is type(error):
        return parcel
    message = summary.partition(": ")[2]
    return Packer().pack(RemoteError(kind.name, qualified_name(type(error)), message, text))


def exit_failure(kind: Kind, node: str, error: KeyboardInterrupt | SystemExit) -> Failure:
    """Turn exit() in a task into an error: as itself it would end the user's own program."""
    if isinstance(error, KeyboardInterrupt):
        crash = TaskCrashed(kind.name, "SIGINT", None, "", node)
    else:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        tail = "" if isinstance(error.code, int) or error.code is None else str(error.code)
        crash = TaskCrashed(kind.name, None, code, tail, node)
    return failure_of(crash, kind)


def _without_our_frames(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_RUNTIME_FOLDER):
        tb = tb.tb_next
    return tb
