"""Calls that go from one process to another while they wait and run.

What a process knows of its calls is written into a file: those that are not done with their
arguments, those that are done and can still be asked for with their results, and which tasks of the
cluster they are. Another process reads it, and takes the news of those tasks from then on; nothing
starts anew. See `exadask.runtime.deputies` for who tells whom what.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import Future as DaskFuture

from exadask.core.bundling import Estimates
from exadask.errors import (
    ClusterLost,
    ClusterUnreachable,
    Detached,
    InvalidRequest,
    NotSerializable,
)
from exadask.future import Future
from exadask.runtime.call import Call
from exadask.runtime.kind import Kind
from exadask.runtime.sent import BundleTask, LeftTask, SingleTask

if TYPE_CHECKING:
    from exadask.runtime.bundling import Bundler
    from exadask.runtime.run_folder import RunFolder

_PATIENCE_S = 120.0
_AT_ONCE = 1000
# What is of this process alone.
_OF_PROCESS = (
    *("observer", "dependents", "settle", "check"),
    *("n_missing", "number", "journal", "submitted"),
)


class _Known(NamedTuple):
    """All that a process knows, but for the calls themselves, which follow one by one."""

    kept: Any
    open: list[Call]
    sent: list[LeftTask]
    estimates: Estimates
    version: int = 1


class Handover:
    """Gives what this process has to another, or takes it from there.

    Parameters
    ----------
    bundler : Bundler
        Has the calls.
    run : RunFolder
        The run of the standing scheduler.

    Attributes
    ----------
    is_giving : bool
        Whether the other side may have some of it already.
    """

    def __init__(self, bundler: Bundler, run: RunFolder) -> None:
        self._bundler, self._gateway, self._run = bundler, bundler.gateway, run
        self._kept: Any = None
        self.is_giving = False
        self._given: concurrent.futures.Future[str | None] = concurrent.futures.Future()
        self._written: concurrent.futures.Future[str | None] = concurrent.futures.Future()
        for op, react in (
            ("exadask-handover", self._on_handover),
            ("exadask-adopted", self._on_adopted),
            ("exadask-written", self._on_written),
            ("exadask-taken", self._on_taken),
        ):
            self._gateway.listen(op, react)
        self._gateway.on_lost = self._on_lost

    # -- giving -----------------------------------------------------------------------------

    def keep(self, futures: Any) -> None:
        """Choose the futures that are found again, in any arrangement of plain containers.

        Raises
        ------
        InvalidRequest
            There is no future in it, or one of another executor; or services run.
        NotSerializable
            There is something else in it that cannot be sent to another process.
        """
        serving = [one for one in self._bundler.unfinished() if one in self._bundler.background]
        if serving:
            raise InvalidRequest(
                "services that this session has started still run, and cannot be left.",
                "End them first: server.cancel().",
            )
        writer = _Writer(io.BytesIO())
        try:
            writer.dump(futures)
        except Exception as problem:  # whatever the object's own pickling raises
            raise NotSerializable(
                f"a {type(futures).__name__}",
                "what was to be left",
                f"{type(problem).__name__}: {problem}",
            ) from problem
        if writer.gateways != {self._bundler}:
            what = "a future of another executor" if writer.gateways else "no future"
            raise InvalidRequest(
                f"there is {what} in the {type(futures).__name__} that was to be left.",
                "Give a list, a dict or the like of this executor's futures; without an argument "
                "all that are not done are left.",
            )
        self._kept = futures

    def leave(self, name: str) -> None:
        """Give all calls to a deputy; blocks.

        Raises
        ------
        InvalidRequest
            The name is no name, or is used.
        ClusterUnreachable
            The deputy does not come, or the scheduler is gone.
        """
        self._gateway.ask("exadask_leave", name=name, client=self._gateway.client.id)
        error = self._patiently(self._given, f"nobody has taken {name!r}")
        if error is not None:
            raise self._complaint(name, error)
        self._gateway.run(self._say_goodbye(name))

    def wait_until_given(self) -> str | None:
        """Block until another process has taken it all; gives what went wrong, or None."""
        return self._given.result()

    async def _say_goodbye(self, name: str) -> None:
        self._bundler.record = None  # what is not done has not failed
        for call in reversed(self._bundler.freeze()):  # none fails for want of its inputs
            self._bundler.fail(call, self._detached(call, name))

    def _detached(self, call: Call, name: str) -> Detached:
        return Detached(call.kind.name, str(self._run.path), name)

    def _on_handover(self, name: str) -> None:
        """Send nothing more, and let the news go to who has asked."""
        self._bundler.freeze()
        # Once before there is no way back: most of what can go wrong does so now.
        if self._write(name):
            self.is_giving = True
            self._gateway.tell("exadask-adopt", name=name)
        else:
            self._bundler.thaw()

    def _on_adopted(self, name: str) -> None:
        """Write down what is known: no news come any more."""
        for call in self._bundler.freeze():
            if not isinstance(call.observer, Future):  # of a loop: nobody could find its result
                self._bundler.give_up(call, self._detached(call, name))
        if self._write(name):
            self._gateway.tell("exadask-written", name=name, error=None)

    def _write(self, name: str) -> bool:
        try:
            _write(self._run.left_as(name), self._known())
        except Exception as problem:  # whatever pickling or the disk has to say, both sides hear it
            error = f"it cannot be written to {self._run.left}: {type(problem).__name__}: {problem}"
            self._gateway.tell("exadask-written", name=name, error=error)
            return False
        return True

    def _on_taken(self, name: str, error: str | None) -> None:
        _settle(self._given, error)

    def _on_lost(self) -> None:
        for waiting in (self._given, self._written):
            _settle(waiting, "the connection to the scheduler broke")

    def _known(self) -> _Known:
        observers = [one.observer for one in self._gateway.submissions()]
        sent = [one.left() for one in observers if isinstance(one, (SingleTask, BundleTask))]
        return _Known(
            kept=self._kept,
            open=self._bundler.freeze(),
            sent=[one for one in sent if one is not None],
            estimates=self._bundler.estimates,
        )

    # -- taking -----------------------------------------------------------------------------

    def take(self, name: str | None, *, is_deputy: bool = False) -> Any:
        """Take calls from another process; gives the futures that it kept. Blocks.

        Raises
        ------
        InvalidRequest
            Nothing of that name can be had.
        ClusterUnreachable
            Its holder does not answer, or what it wrote cannot be read.
        """
        gateway = self._gateway
        if name is None:
            left = gateway.ask("exadask_left")
            if not left:
                raise InvalidRequest(
                    f"nothing is left at {self._run.path}.", "A session leaves with: detach()."
                )
            name = str(left[-1][0])
        gateway.loop.call_soon_threadsafe(gateway.hold)
        try:
            asked = {"name": name, "client": gateway.client.id, "is_deputy": is_deputy}
            if gateway.ask("exadask_take", **asked):
                error = self._patiently(self._written, f"the holder of {name!r} is silent")
                if error is not None:
                    raise self._complaint(name, error)
            path = self._run.left_as(name)
            reader = _Reader(self._bundler)
            try:
                known = reader.read(path)
            except Exception as problem:  # whatever unpickling has to say
                why = f"{path} cannot be read: {type(problem).__name__}: {problem}"
                raise self._complaint(name, why) from problem
            gateway.run(self._take_over(known, reader))
            self._kept = known.kept
            gateway.ask("exadask_taken", **asked)
        finally:
            gateway.loop.call_soon_threadsafe(gateway.resume)
        return known.kept

    async def _take_over(self, known: _Known, reader: _Reader) -> None:
        found = await self._gateway.want([*reader.keys, *(one.work.key for one in known.sent)])
        reader.settle(found)
        self._bundler.estimates.learn(known.estimates)
        sent = [one for one in known.sent if one.work.key in found]
        for one in self._bundler.take_over(known.open, sent):
            one.future = found[one.key]

    def _on_written(self, name: str, error: str | None) -> None:
        _settle(self._written, error)

    @staticmethod
    def _patiently(waiting: concurrent.futures.Future[str | None], what: str) -> str | None:
        try:
            return waiting.result(_PATIENCE_S)
        except concurrent.futures.TimeoutError:
            return f"{what} for {_PATIENCE_S:g} s"

    def _complaint(self, name: str, error: str) -> ClusterUnreachable:
        run, path = self._run.path, self._run.left_as(name)
        advice = f"See {self._run.scheduler_log}."
        if path.exists():
            advice = f"What was written is in {path}: exadask.attach({str(run)!r}, {name!r})."
        return ClusterUnreachable(str(run), error, advice)


def _settle(waiting: concurrent.futures.Future[str | None], error: str | None) -> None:
    if not waiting.done():
        waiting.set_result(error)


# -- the file -----------------------------------------------------------------------------------


def _write(path: Path, known: _Known) -> None:
    """Write all of it or nothing."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    draft = path.with_suffix(".draft")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            writer = _Writer(file)
            writer.dump(known)
            n_written = 0
            # There are more calls meanwhile; however long a chain of them is, no stack is deep.
            while n_written < len(writer.calls):
                some = writer.calls[n_written : n_written + _AT_ONCE]
                writer.dump([_state_of(call) for call in some])
                n_written += len(some)
            file.flush()
            os.fsync(fd)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _state_of(call: Call) -> dict[str, Any]:
    state = {name: value for name, value in vars(call).items() if name not in _OF_PROCESS}
    if not isinstance(call.place, tuple):  # where its output is may stay
        state.pop("place", None)
    return {**state, "_key": call.key}


class _Writer(pickle.Pickler):
    """Writes numbers for calls, keys for what is in the cluster, and calls for futures."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=5)
        self.calls: list[Call] = []
        self.gateways: set[Any] = set()
        self._numbers: dict[Call, int] = {}

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        kind = type(obj)
        if kind is Call:
            return ("call", self._number(obj))
        if kind is Future:
            self.gateways.add(obj._gateway)
            return ("future", self._number(obj._call), obj.memory())
        if kind is DaskFuture:
            return ("data", obj.key)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Kind:  # with its function, wherever that is kept
            return Kind.__new__, (Kind,), (obj.function, *obj.__getstate__()[1:])
        return NotImplemented

    def _number(self, call: Call) -> int:
        number = self._numbers.get(call)
        if number is None:
            number = self._numbers[call] = len(self.calls)
            self.calls.append(call)
        return number


class _Reader:
    """Makes calls and futures of what was written.

    Parameters
    ----------
    bundler : Bundler
        Whose they are from now on.

    Attributes
    ----------
    keys : list of str
        What is to be kept in the cluster.
    """

    def __init__(self, bundler: Bundler) -> None:
        self._bundler = bundler
        self.keys: list[str] = []
        self._calls: dict[int, Call] = {}
        self._futures: dict[int, Future[Any]] = {}
        self._is_open: set[Call] = set()

    def read(self, path: Path) -> _Known:
        """Read it; `settle` makes it whole."""
        with path.open("rb") as file:
            unpickler = _Unpickler(file, self)
            known: _Known = unpickler.load()
            n_read = 0
            while n_read < len(self._calls):
                states = unpickler.load()
                for number, state in enumerate(states, n_read):
                    vars(self.call(number)).update(state)
                n_read += len(states)
        for call in known.open:
            call.observer = self.future(call)
        self._is_open = set(known.open)
        return known

    def settle(self, found: dict[str, DaskFuture]) -> None:
        """Put what is in the cluster in its place, and tell futures what is known."""
        for call in self._calls.values():
            if type(call.remote) is _Data:
                call.remote = found.get(call.remote.key)
                if call.remote is None and not call.has_value and call not in self._is_open:
                    gone = "its result has gone with the process that had it"
                    call.error = ClusterLost(call.kind.name, gone)
            if call.inputs:
                call.inputs = tuple(
                    found.get(one.key, one) if type(one) is _Data else one for one in call.inputs
                )
        for future in self._futures.values():
            if future._call not in self._is_open:
                future.catch_up()

    def call(self, number: int) -> Call:
        """Give a call by its number."""
        if number not in self._calls:
            self._calls[number] = Call.__new__(Call)
        return self._calls[number]

    def future(self, call: Call, memory: Any = None) -> Future[Any]:
        """Give the future of a call."""
        future = self._futures.get(id(call))
        if future is None:
            future = self._futures[id(call)] = Future(self._bundler, call)
        if memory is not None:
            future.recall(memory)
        return future


class _Data(NamedTuple):
    """What is in the cluster, until it is known whether it still is."""

    key: str


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, reader: _Reader) -> None:
        super().__init__(file)
        self._reader = reader

    def persistent_load(self, pid: Any) -> Any:
        what, *rest = pid
        if what == "call":
            return self._reader.call(rest[0])
        if what == "future":
            return self._reader.future(self._reader.call(rest[0]), rest[1])
        self._reader.keys.append(rest[0])
        return _Data(rest[0])
