"""Calls on their way: what a task of Dask's tells becomes what the calls in it are told."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distributed import Future as DaskFuture

from exadask.runtime.call import Call, Observer, Passed, Record, Seat, new_key
from exadask.runtime.gateway import Submission
from exadask.runtime.job import (
    Bundle,
    Data,
    Failure,
    Job,
    Kept,
    Report,
    TaskFailed,
    Usage,
    WithInputs,
    WithKeywords,
)
from exadask.runtime.kind import Kind
from exadask.runtime.lost_inputs import translated
from exadask.runtime.parcel import Parcel

if TYPE_CHECKING:
    from exadask.runtime.bundling import Bundler, CallLane

_CALL_S = 5e-6  # what a call costs a slot beside the time of its function
_NOTABLE_S = 5e-3  # a call of a map that lasts so long is written down by itself
_UNSEEN_S = 0.1  # news from a slot are not older
_FEW_SUSPECTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftTask:
    """A task in the cluster, for another process to observe.

    Parameters
    ----------
    work : Job, Bundle or Data
        What it is, without what only the cluster needs.
    calls : tuple of Call or None
        The calls in it that are not done; None where one is.
    is_placed : bool
        Whether it runs.
    seat : Seat
        Where.
    n_failed : int
        Attempts that ended in an exception, of a call that travels alone.
    """

    work: Job | Bundle | Data
    calls: tuple[Call | None, ...]
    is_placed: bool
    seat: Seat
    n_failed: int = 0

    def taken_over(self, bundler: Bundler, lane: CallLane) -> Submission:
        """Observe it from now on."""
        lane.joined(is_placed=self.is_placed)
        if isinstance(self.work, Bundle):
            return BundleTask.of_left(bundler, lane, self).submission
        return SingleTask.of_left(bundler, lane, self).submission


class SingleTask:
    """A call that is a task of its own."""

    def __init__(self, bundler: Bundler, lane: CallLane, call: Call) -> None:
        self._bundler, self._lane, self._call = bundler, lane, call
        self._is_placed = self._is_over = False
        self._n_failed = 0
        self._seat = Seat("")
        call.place = self
        arguments = call.arguments
        if not isinstance(arguments, Parcel):
            pair = arguments if type(arguments) is WithKeywords else (arguments, {})
            arguments = Parcel(pickle.dumps(tuple(pair), 5))
        work: Job | Data
        if call.kind.is_data:
            work = Data(key=call.key, kind=call.kind, value=arguments.shared_as(call.key))
        else:
            work = Job(
                key=call.key, kind=call.kind, arguments=arguments, checkpoint=call.checkpoint
            )
        self.submission = Submission(
            work=work,
            observer=self,
            inputs=(*_functions([call.kind]), *map(_input, call.inputs)),
            retries=call.kind.retries - call.n_retried,
        )

    @classmethod
    def of_left(cls, bundler: Bundler, lane: CallLane, left: LeftTask) -> SingleTask:
        """Go on with one that another process has sent."""
        self, call = cls.__new__(cls), left.calls[0]
        assert call is not None, "nobody would observe it"
        self._bundler, self._lane, self._call = bundler, lane, call
        self._is_placed, self._is_over = left.is_placed, False
        self._n_failed, self._seat = left.n_failed, left.seat
        call.place = self
        if left.is_placed and call.observer is not None:
            call.observer.placed(call, left.seat.node)
        self.submission = Submission(work=left.work, observer=self)
        return self

    def left(self) -> LeftTask | None:
        """Describe it for another process; None if nobody observes it."""
        call, work = self._call, self.submission.work
        if call.observer is None or self._is_over:
            return None
        return LeftTask(
            work=work.emptied(),
            calls=(call,),
            is_placed=self._is_placed,
            seat=self._seat,
            n_failed=self._n_failed,
        )

    def placed(self, seat: Seat) -> None:
        """Take the news that it starts on a node."""
        self._seat = seat
        if not self._is_placed:
            self._is_placed = True
            self._lane.placed()
            self._bundler.pump_soon()
        self._bundler.note_placed(self._call, seat, is_single=True)

    def reported(self, report: Report) -> None:
        """Take the report of an attempt."""
        call = self._call
        if call.observer is None:
            return
        if report.problem is not None:
            self._n_failed += 1
        call.observer.reported(call, report)
        record, observer = self._bundler.record, call.observer
        if record is not None and report.value is None:
            record.reported(call, report, self._seat)
        estimate = self._bundler.estimates.of(call.function)
        if report.usage is not None:
            estimate.measured(report.usage.wall_s + _CALL_S)
        if report.value is not None:
            self._end()
            estimate.weighed(is_heavy=False)
            if report.stdout is None or report.stderr is None:  # the rest of it is there
                call.remote = self.submission.future
            self._bundler.finish_here(call, Parcel(report.value), is_told=False)
            if record is not None:
                record.done(call, report, self._seat, observer)

    def progressed(self, items: Sequence[bytes], returned: Sequence[int]) -> None:
        """Take results, and what will not be run."""
        raise AssertionError("a call that travels alone has no parts")

    def dissolved(self, *, is_suspect: bool) -> None:
        """Take the news that it is gone with its node."""
        raise AssertionError("a call that travels alone is placed again by itself")

    def finished(self) -> None:
        """Take the news that its result is in the cluster."""
        self._end()
        call = self._call
        if call.observer is not None:
            self._bundler.estimates.of(call.function).weighed(is_heavy=True)
            call.remote = self.submission.future
            self._bundler.finish_there(call)

    def failed(self, error: BaseException) -> None:
        """Take the news that it has no result."""
        self._end()
        call = self._call
        if call.observer is None:
            return
        is_its_own = isinstance(error, TaskFailed) and error.key == call.key
        if is_its_own and _climbs(self._bundler, call, error.failure):  # type: ignore[attr-defined]  # it is its own
            call.n_retried += max(0, self._n_failed - 1)  # those that Dask has counted
        else:
            self._bundler.fail(call, translated(error, call))

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._lane.ended(was_placed=self._is_placed)
            self._bundler.pump_soon()


class BundleTask:
    """A bundle that was sent."""

    def __init__(self, bundler: Bundler, lane: CallLane, calls: list[Call]) -> None:
        self._bundler, self._lane = bundler, lane
        self.calls: list[Call | None] = list(calls)
        self._n_left = len(calls)
        self._is_placed = self._is_over = False
        self._seat = Seat("")
        self.key = new_key(lane.kind.name)
        kinds: dict[Kind, int] = {}
        shared: dict[Call, int] = {}
        for index, call in enumerate(calls):
            call.place, call.index = self, index
            if call.kind not in kinds:
                kinds[call.kind] = len(kinds)
        bundle = Bundle(
            key=self.key,
            kinds=tuple(kinds),
            calls=pickle.dumps(
                [_entry(call, shared) if call.inputs else call.arguments for call in calls], 5
            ),
            count=len(calls),
            kind_of=tuple(kinds[call.kind] for call in calls) if len(kinds) > 1 else None,
            expected_s=max(bundler.estimates.of(kind.source).mean_s for kind in kinds),
            bound_s=lane.limit_s(calls),
        )
        inputs = (*_functions(kinds), *map(_input, shared))
        self.submission = Submission(work=bundle, observer=self, inputs=inputs)

    @classmethod
    def of_left(cls, bundler: Bundler, lane: CallLane, left: LeftTask) -> BundleTask:
        """Go on with one that another process has sent."""
        self = cls.__new__(cls)
        self._bundler, self._lane, self.calls = bundler, lane, list(left.calls)
        self._is_placed, self._is_over, self._seat = left.is_placed, False, left.seat
        self.key = left.work.key
        for index, call in enumerate(self.calls):
            if call is not None:
                call.place, call.index = self, index
        self._n_left = sum(call is not None for call in self.calls)
        self.submission = Submission(work=left.work, observer=self)
        return self

    def left(self) -> LeftTask | None:
        """Describe it for another process; None if nobody observes it."""
        work = self.submission.work
        assert isinstance(work, Bundle)
        if self._is_over or not self._n_left:
            return None
        return LeftTask(
            work=work.emptied(),
            calls=tuple(self.calls),
            is_placed=self._is_placed,
            seat=self._seat,
        )

    def drop(self, call: Call) -> None:
        """Take a call out."""
        self.calls[call.index] = None
        self._n_left -= 1
        if self._n_left == 0 and not self._is_placed:
            self._bundler.gateway.cancel(self.key)
        else:
            self._bundler.gateway.drop(self.key, call.index)

    def placed(self, seat: Seat) -> None:
        """Take the news that it starts on a node."""
        self._seat = seat
        if not self._is_placed:
            self._is_placed = True
            self._lane.placed()
            self._bundler.pump_soon()
        self._note_current(0)

    def reported(self, report: Report) -> None:
        """Take the report of an attempt; whether all of it failed is still to be told."""
        self._end()

    def progressed(self, items: Sequence[bytes], returned: Sequence[int]) -> None:
        """Take results, and what will not be run."""
        calls, seat, finish = self.calls, self._seat, self._bundler.finish_here
        if not calls:  # all has failed
            return
        record = self._bundler.record
        wall_s, count, place = 0.0, 0, -1
        alike = None if record is None else _Alike(record, seat)
        kind: Kind | None = None
        for packed in items:
            place, cpu_s, call_s, peak_bytes, outcome, out, err = pickle.loads(packed)
            call = calls[place]
            if call is None or (observer := call.observer) is None:
                continue
            calls[place] = None
            count += 1
            if call.kind is not kind:
                self._measured(kind, wall_s, count - 1)
                kind, wall_s, count = call.kind, 0.0, 1
            wall_s += call_s + _CALL_S
            is_special = type(outcome) is Failure or type(outcome) is Kept
            is_told = observer.wants_reports or (
                alike is not None and (call_s > _NOTABLE_S or is_special or call.digest is not None)
            )
            if is_told:
                report = Report(
                    seat.node,
                    Usage(cpu_s, call_s, peak_bytes),
                    out if type(out) is bytes else None,
                    err if type(err) is bytes else None,
                    problem=outcome.problem if type(outcome) is Failure else None,
                )
                observer.reported(call, report)
                if record is not None and is_special:
                    record.reported(call, report, seat)
            elif alike is not None:
                alike.add(call.kind, observer, cpu_s, call_s, peak_bytes)
            if is_special:
                self._take(call, outcome)
            else:
                finish(call, outcome, is_told=False)
                if is_told and record is not None:
                    record.done(call, report, seat, observer)
            if type(out) is tuple or type(err) is tuple:  # the rest of it is with the bundle
                call.remote, call.place = self.submission.future, (self.key, call.index)
            self._n_left -= 1
        self._measured(kind, wall_s, count)
        if alike is not None:
            alike.tell()
        self._put_back([calls[index] for index in returned])
        self._note_current(place + 1)

    def dissolved(self, *, is_suspect: bool) -> None:
        """Take the news that it is gone with its node."""
        self._end()
        if is_suspect:
            undone = [call for call in self.calls if call is not None]
            self._part(undone[: self._n_suspects()])
        self._put_back(self.calls, is_lost=True)

    @staticmethod
    def _part(suspects: Sequence[Call]) -> None:
        """Let calls, one of which ran when the node died, travel alone; many first in small parts.

        Thousands of short calls that all travelled alone would take longer than all others.
        """
        n_suspects = len(suspects)
        is_last = n_suspects <= _FEW_SUSPECTS or suspects[0].most_together is not None
        for call in suspects:
            if is_last:
                call.is_single = True
            else:
                call.most_together = math.isqrt(n_suspects)

    def finished(self) -> None:
        """Take the news that its result is in the cluster."""
        self._end()
        self._put_back(self.calls)

    def failed(self, error: BaseException) -> None:
        """Take the news that it has no result."""
        self._end()
        for call in self.calls:
            if call is not None:
                self._bundler.fail(call, error)
        self.calls = []

    def _take(self, call: Call, outcome: Failure | Kept) -> None:
        """Pass on an end that is not just a small result."""
        bundler = self._bundler
        if isinstance(outcome, Kept):
            call.remote = self.submission.future
            bundler.estimates.of(call.function).weighed(is_heavy=True)
            bundler.finish_there(call)
        elif _climbs(bundler, call, outcome):
            return
        elif outcome.may_retry and call.n_retried < call.kind.retries:
            call.n_retried += 1
            bundler.put_back(self._lane, [call])
        else:
            bundler.fail(call, TaskFailed(call.key, call.kind.name, outcome))

    def _n_suspects(self) -> int:
        """Say how many of the calls whose end is not known may have begun already."""
        work = self.submission.work
        assert isinstance(work, Bundle)
        is_known = work.expected_s == work.expected_s  # it is a number
        return math.ceil(_UNSEEN_S / max(work.expected_s, _CALL_S)) if is_known else work.count

    def _measured(self, kind: Kind | None, wall_s: float, count: int) -> None:
        if kind is not None and count:
            self._bundler.estimates.of(kind.source).measured(wall_s, count=count)

    def _put_back(self, calls: Sequence[Call | None], *, is_lost: bool = False) -> None:
        back = [call for call in calls if call is not None]
        for call in back:
            self.calls[call.index] = None
        self._n_left -= len(back)
        if back:
            if self._bundler.record is not None:
                self._bundler.record.put_back(back, is_lost=is_lost)
            self._bundler.put_back(self._lane, back)

    def _note_current(self, index: int) -> None:
        """Tell the call that runs now so."""
        if index < len(self.calls):
            call = self.calls[index]
            if call is not None:
                self._bundler.note_placed(call, self._seat, is_single=False)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._lane.ended(was_placed=self._is_placed)
            self._bundler.pump_soon()


class _Alike:
    """Short calls of a map, of which nobody wants to know singly: they are written down together.

    Parameters
    ----------
    record : Record
        Where they are written down.
    seat : Seat
        Where they ran.
    """

    def __init__(self, record: Record, seat: Seat) -> None:
        self._record, self._seat = record, seat
        self._kind: Kind | None = None
        self._observer: Observer | None = None
        self._n_calls, self._cpu_s, self._wall_s, self._peak_bytes = 0, 0.0, 0.0, 0

    def add(
        self, kind: Kind, observer: Observer, cpu_s: float, wall_s: float, peak_bytes: int
    ) -> None:
        """Count a call."""
        if kind is not self._kind or observer is not self._observer:
            self.tell()
            self._kind, self._observer = kind, observer
        self._n_calls += 1
        self._cpu_s += cpu_s
        self._wall_s += wall_s
        if peak_bytes > self._peak_bytes:
            self._peak_bytes = peak_bytes

    def tell(self) -> None:
        """Write down those that were counted since this was called last."""
        if self._kind is not None and self._observer is not None and self._n_calls:
            usage = Usage(self._cpu_s, self._wall_s, self._peak_bytes)
            passed = Passed(self._kind, self._observer, self._seat, self._n_calls, usage)
            self._record.passed(passed)
        self._n_calls, self._cpu_s, self._wall_s, self._peak_bytes = 0, 0.0, 0.0, 0


def _climbs(bundler: Bundler, call: Call, failure: Failure) -> bool:
    """Place a call one rung up, if it was ended at a limit of its own and that helps."""
    return failure.is_limit and bundler.climb(call, failure.error)


def _functions(kinds: Iterable[Kind]) -> list[Parcel | DaskFuture]:
    """Give the functions that are in the cluster already."""
    return [_input(kind.data) for kind in kinds if kind.data is not None]


def _entry(call: Call, shared: dict[Call, int]) -> WithInputs:
    """Write down a call with inputs; those that it shares with others get a number."""
    assert isinstance(call.arguments, Parcel), "arguments with futures among them are packed"
    inputs: list[Parcel | int] = []
    for one in call.inputs:
        if isinstance(one, Call) and one.kind.is_data:
            inputs.append(shared.setdefault(one, len(shared)))
        else:
            small = _input(one)
            assert isinstance(small, Parcel), "what is large travels alone"
            inputs.append(small)
    return WithInputs(call.arguments, tuple(inputs))


def _input(one: Call | DaskFuture) -> Parcel | DaskFuture:
    """Give the value of an input, or what Dask knows it by."""
    if not isinstance(one, Call):
        return one
    if not one.has_value:
        assert one.remote is not None, "an input has neither a value nor a place"
        return one.remote
    return one.value if isinstance(one.value, Parcel) else Parcel(pickle.dumps(one.value, 5))
