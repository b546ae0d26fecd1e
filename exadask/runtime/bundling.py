"""The client's side of bundles: calls go in, tasks of Dask's go out, results come back one by one.

`exadask.core.bundling` decides how many calls travel together. A call that travels alone is a task
of its own in the cluster; its key, retries and data are Dask's. Several together are one task, and
what Dask would do for each is done here: retries, dependents, cancelling. Either way a call whose
inputs are not done yet waits here, and inputs that are small travel with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distributed import Future as DaskFuture

from exadask.core.bundling import Estimates, Lane, Pace
from exadask.core.events import Offer
from exadask.errors import ClusterLost
from exadask.runtime.call import LEAST_WINDOW, Call, Observer, Record, Seat
from exadask.runtime.gateway import DaskGateway, Submission
from exadask.runtime.job import Report, Stream
from exadask.runtime.kind import Kind, data_kind
from exadask.runtime.lost_inputs import dependency_failed, is_lost
from exadask.runtime.sent import BundleTask, LeftTask, SingleTask

_WINDOW_S = 0.002
_CALLS_PER_SLOT = 1024
_MOST_WINDOW = 2**20
_BACKLOG_INTERVAL_S = 0.5
_BACKGROUND_S = 0.05


class Bundler:
    """Sends calls through a gateway, several together where that is faster.

    `submit`, `cancel` and what blocks may be called on any thread, everything else on the
    gateway's loop; observers are called there.

    Parameters
    ----------
    gateway : DaskGateway
        The way to the scheduler.
    pace : Pace, optional
        The bounds of bundles.

    Attributes
    ----------
    record : Record or None
        Who writes down what becomes of calls.
    background : set of Observer
        Those whose calls end only when they are told to: services.
    """

    lends = False

    def __init__(self, gateway: DaskGateway, pace: Pace | None = None) -> None:
        self.gateway, self.pace = gateway, pace or Pace()
        self.estimates = Estimates()
        self._lanes: dict[object, CallLane] = {}
        self._busy: dict[CallLane, None] = {}
        self._open: dict[Call, None] = {}
        self._incoming: deque[Sequence[Call]] = deque()
        self._is_flush_due = self._is_pump_due = self._is_frozen = False
        self._last_flush_s = 0.0
        self._idle = threading.Event()
        self._backlog_timer: asyncio.TimerHandle | None = None
        self.record: Record | None = None
        self.background: set[Observer] = set()
        gateway.on_slots = self._on_slots

    @property
    def offers(self) -> Sequence[Offer]:
        """Nodes on which tasks can run; empty if that is not known."""
        return self.gateway.offers

    # -- on any thread ----------------------------------------------------------------------

    def submit(self, call: Call, observer: Observer) -> None:
        """Hand over a call; returns at once."""
        call.observer = observer
        self._open[call] = None
        if self.record is not None:
            self.record.submitted((call,), observer)
        self._incoming.append((call,))
        self._flush_soon()

    def submit_all(self, calls: Sequence[Call], observer: Observer) -> None:
        """Hand over several calls of one kind, none of which has inputs; returns at once."""
        for call in calls:
            call.observer = observer
        self._open.update(dict.fromkeys(calls))
        if self.record is not None:
            self.record.submitted(calls, observer)
        self._incoming.append(calls)
        self._flush_soon()

    def cancel(self, call: Call) -> None:
        """End a call, whether it waits or runs."""
        self.gateway.loop.call_soon_threadsafe(self.cancel_now, call)

    def forget(self, call: Call) -> None:
        """Let go of a call: what it keeps in the cluster goes with it."""

    def fetch(self, call: Call) -> Any:
        """Bring a result here; blocks."""
        return self.gateway.run(self.fetch_async(call), "fetch a large result")

    def explain(self, call: Call) -> str:
        """Say what a call waits for; blocks."""
        return self.gateway.run(self.explain_async(call))

    def output(self, call: Call, stream: Stream) -> bytes:
        """Bring what a call has written; blocks."""
        work = self.output_async(call, stream)
        return self.gateway.run(work, "fetch what a task has written")

    def window(self) -> int:
        """Say how many calls keep the cluster busy, whatever they are [calls]."""
        slots = max((lane.n_slots for lane in self._lanes.values()), default=0)
        return min(_MOST_WINDOW, max(LEAST_WINDOW, _CALLS_PER_SLOT * slots))

    def unfinished(self) -> list[Observer]:
        """Give the observers of all calls that are not done, each once."""
        return list(dict.fromkeys(one for call in list(self._open) if (one := call.observer)))

    def wait_until_idle(self) -> None:
        """Block until all calls are done; those in the background are ended after all others."""
        while self._open:
            self._idle.clear()
            if self.background.issuperset(self.unfinished()):
                for one in self.background:
                    one.cancel()
            if self._open:
                self._idle.wait(_BACKGROUND_S if self.background else None)

    def lend(self) -> bool:
        """Lend nothing: this is no task."""
        return False

    def reclaim(self) -> None:
        """Nothing was lent."""

    def reclaim_soon(self) -> None:
        """Nothing was lent."""

    # -- on the loop ------------------------------------------------------------------------

    async def fetch_async(self, call: Call) -> Any:
        """Bring a result here."""
        if call.has_value:
            return call.value
        return await self.gateway.gather(call.remote, call.kind.name)

    async def explain_async(self, call: Call) -> str:
        """Say what a call waits for."""
        self.settle()
        match call.place:
            case SingleTask():
                return await self.gateway.explain(call.key)
            case BundleTask() as sent:
                where = await self.gateway.explain(sent.key)
                return f"{where}; call {call.index + 1} of {len(sent.calls)} that travel together"
        names = sorted(one.kind.name for one in _missing(call))
        if not names:
            ahead = call.kind.lane.position(call)
            return f"waiting: {ahead} calls go before it, not sent yet"
        return f"waiting for {len(names)} of its inputs: {', '.join(names[:5])}"

    async def output_async(self, call: Call, stream: Stream) -> bytes:
        """Bring what a call has written."""
        match call.place:
            case BundleTask() as sent:
                return await self.gateway.output(sent.key, stream, call.index)
            case (str() as key, index):
                return await self.gateway.output(key, stream, index)
        return await self.gateway.output(call.key, stream, None)

    def settle(self) -> None:
        """Send all that can be sent of what was submitted before."""
        if self._incoming:
            self._flush()

    def freeze(self) -> list[Call]:
        """Send nothing more; gives the calls that are not done, as they were submitted."""
        self._is_frozen = True
        self.settle()
        return [call for call in self._open if not isinstance(call.observer, _Nobody)]

    def thaw(self) -> None:
        """Send again what can be sent."""
        self._is_frozen = False
        self.pump_soon()

    def take_over(self, calls: Sequence[Call], sent: Sequence[LeftTask]) -> list[Submission]:
        """Go on with calls of another process; they have their observers.

        Parameters
        ----------
        calls : sequence of Call
            Those that are not done, in the order of their submission.
        sent : sequence of LeftTask
            Tasks in the cluster in which some of them are.

        Returns
        -------
        list of Submission
            Those tasks, which somebody must keep in the cluster.
        """
        self._open.update(dict.fromkeys(calls))
        if self.record is not None:
            for call in calls:
                assert call.observer is not None, "it is not done"
                self.record.submitted((call,), call.observer)
        submissions = [one.taken_over(self, self._lane_of(one.work.kind)) for one in sent]
        self.gateway.observe(submissions)
        for call in calls:
            if call.place is None:
                self._enter(call)
        self.pump_soon()
        return submissions

    def close(self, reason: str) -> None:
        """Fail what is not done."""
        self.gateway.close(reason)
        for call in list(self._open):
            self.fail(call, ClusterLost(call.kind.name, reason))
        if self._backlog_timer is not None:
            self._backlog_timer.cancel()

    def cancel_now(self, call: Call) -> None:
        """End a call, whether it waits or runs."""
        place, observer = call.place, call.observer
        if observer is None:
            return
        self._close_call(call)
        if self.record is not None:
            self.record.failed(call, None, observer)
        self._drop(call, place)
        self._resolve(call)

    def give_up(self, call: Call, error: BaseException) -> None:
        """End a call, and tell its observer why."""
        place = call.place
        self.fail(call, error)
        self._drop(call, place)

    # -- what tasks tell --------------------------------------------------------------------

    def note_placed(self, call: Call, seat: Seat, *, is_single: bool) -> None:
        """Tell the observer of a call that it runs."""
        observer = call.observer
        if observer is None:
            return
        observer.placed(call, seat.node)
        is_worth_it = is_single or observer.wants_reports
        if self.record is not None and is_worth_it and not call.kind.is_data:
            self.record.placed(call, seat)

    def expect(self, call: Call, observer: Observer) -> None:
        """Let calls wait for one that is never sent: `finish_here` or `lose` will be told of it."""
        call.observer = observer
        self._open[call] = None

    def lose(self, call: Call, error: BaseException) -> None:
        """Let calls that wait for this one fail, and those that come."""
        call.error, call.has_value = error, False
        self.fail(call, error, is_told=False)

    def finish_here(self, call: Call, value: object, *, is_told: bool = True) -> None:
        """Tell the observer of a call its result."""
        observer = call.observer
        if observer is None:
            return
        call.value, call.has_value = value, True  # before it looks done to other threads
        call.observer = call.place = None
        call.arguments = _NOTHING
        del self._open[call]
        if not self._open:
            self._tell_if_idle()
        observer.finished(call)
        if is_told and self.record is not None:
            self.record.finished(call, observer)
        if call.dependents is not None:
            self._resolve(call)

    def finish_there(self, call: Call) -> None:
        """Tell the observer of a call that its result is in the cluster."""
        observer = call.observer
        if observer is None:
            return
        self._close_call(call)
        observer.finished(call)
        if self.record is not None and not call.kind.is_data:
            self.record.finished(call, observer)
        self._resolve(call)

    def fail(self, call: Call, error: BaseException, *, is_told: bool = True) -> None:
        """Tell the observer of a call that there will be no result."""
        if call.observer is None:
            return
        self._fail_alone(call, error, is_told=is_told)
        self._resolve(call)

    def put_back(self, lane: CallLane, calls: Sequence[Call]) -> None:
        """Queue calls again that were sent and did not run to their end."""
        for call in calls:
            call.place = None
        lane.give_back(calls)
        self._busy[lane] = None
        self.pump_soon()

    def climb(self, call: Call, error: str) -> bool:
        """Queue a call again one rung up its ladder, if that helps and there is a node for it."""
        higher = call.kind.higher(error)
        if higher is None:
            return False
        offers = self.gateway.offers
        if offers and not any(one.fits(higher.request, higher.pool) for one in offers):
            return False
        call.climb(higher)
        if self.record is not None:
            self.record.put_back([call], is_lost=False)
        self._queue(call)
        self.pump_soon()
        return True

    def pump_soon(self) -> None:
        """Look soon whether more can be sent."""
        if not self._is_pump_due and self._busy and not self._is_frozen:
            self._is_pump_due = True
            self.gateway.loop.call_soon(self._pump)

    def _drop(self, call: Call, place: object) -> None:
        """Take a call out of where it waits or runs."""
        call.is_dropped = True
        if isinstance(place, SingleTask):
            self.gateway.cancel(call.key)
        elif isinstance(place, BundleTask):
            place.drop(call)
        else:
            self.pump_soon()  # a lane where nothing is wanted any more is a false backlog

    def _fail_alone(self, call: Call, error: BaseException, *, is_told: bool = True) -> None:
        """Tell the observer of a call that there will be no result, and nobody else."""
        observer = call.observer
        assert observer is not None, "it is done"
        call.error = error
        self._close_call(call)
        observer.failed(call, error)
        if is_told and self.record is not None:
            self.record.failed(call, error, observer)

    def _close_call(self, call: Call) -> None:
        call.observer = call.place = None
        call.arguments, call.inputs = _NOTHING, ()
        self._open.pop(call, None)
        self._tell_if_idle()

    def _resolve(self, done: Call) -> None:
        """Queue the calls that waited for one that is done; fail them if it has no result."""
        stack = [done]
        while stack:
            one = stack.pop()
            waiting, one.dependents = one.dependents, None
            for call in waiting or ():
                if call.observer is None:
                    continue
                if not (one.has_value or one.remote is not None):
                    self._fail_alone(call, dependency_failed(call, one))
                    stack.append(call)
                    continue
                call.n_missing -= 1
                if call.n_missing == 0:
                    self._queue(call)
                    self.pump_soon()

    def _tell_if_idle(self) -> None:
        if not self._open:
            self._idle.set()

    # -- sending ----------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self.gateway.loop.call_soon_threadsafe(self._schedule_flush)

    def _schedule_flush(self) -> None:
        wait_s = self._last_flush_s + _WINDOW_S - time.monotonic()
        if wait_s > 0:
            self.gateway.loop.call_later(wait_s, self._flush)
        else:
            self._flush()

    def _flush(self) -> None:
        self._is_flush_due = False
        self._last_flush_s = time.monotonic()
        incoming = self._incoming
        while incoming:
            calls = incoming.popleft()
            lane = calls[0].kind.lane
            if lane is not None and not calls[0].inputs:
                lane.add_all(calls)  # those that are cancelled are skipped when their turn comes
                self._busy[lane] = None
                continue
            for call in calls:
                if call.observer is not None:
                    self._enter(call)
        self._pump()

    def _enter(self, call: Call) -> None:
        """Queue a call, unless it has to wait for an input."""
        self._keep_function_of(call.kind)
        for one in call.inputs:
            if isinstance(one, Call) and one.observer is None and is_lost(one):
                self.fail(call, dependency_failed(call, one))
                return
        missing = _missing(call)
        for one in missing:
            if one.dependents is None:
                one.dependents = []
            one.dependents.append(call)
        call.n_missing = len(missing)
        if not missing:
            self._queue(call)

    def _keep_function_of(self, kind: Kind) -> None:
        """Send a function that is large ahead, so that it goes to each node once."""
        function, is_here = kind.function, self.gateway.is_within_process
        if kind.data is None and not (is_here or function.is_light or kind.is_data):
            kind.data = Call(data_kind(kind.surroundings), function)
            kind.data.observer = _Nobody()
            self._open[kind.data] = None
            self._queue(kind.data)

    def _queue(self, call: Call) -> None:
        if call.settle is not None and call.settle():
            if self.record is not None:
                self.record.reused(call)
            self.finish_here(call, call.value, is_told=False)
            return
        if call.inputs and not all(map(_is_handy, call.inputs)):
            call.is_single = True  # Dask brings what is large
        lane = call.kind.lane
        if lane is None:
            lane = call.kind.lane = self._lane_of(call.kind)
        lane.add(call)
        self._busy[lane] = None

    def _lane_of(self, kind: Kind) -> CallLane:
        setup = kind.setup.key if kind.setup else None
        ours = (kind.request, kind.priority, kind.pool)
        key = (*ours, kind.env, setup, kind.surroundings, kind.isolation)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = CallLane(self.pace, self.estimates, kind, len(self._lanes))
        return lane

    def _pump(self) -> None:
        """Send what the lanes let go."""
        self._is_pump_due = False
        if self._is_frozen:
            return
        batch: list[Submission] = []
        for lane in list(self._busy):
            while (calls := lane.next_bundle()) is not None:
                is_single = len(calls) == 1
                sent = (
                    SingleTask(self, lane, calls[0]) if is_single else BundleTask(self, lane, calls)
                )
                batch.append(sent.submission)
            if not len(lane):
                del self._busy[lane]
        self.gateway.send(batch)
        if self._busy and self._backlog_timer is None:
            self._tell_backlog()

    def _tell_backlog(self) -> None:
        """Let the scheduler know what waits here: it may ask for nodes, and says how many fit."""
        self._backlog_timer = None
        lanes = []
        for lane in self._busy:
            wish = asdict(lane.kind.request)
            lanes.append([lane.number, lane.kind.pool, lane.n_bundles(), wish])
        self.gateway.tell("exadask-backlog", lanes=lanes)
        if lanes:
            loop = self.gateway.loop
            self._backlog_timer = loop.call_later(_BACKLOG_INTERVAL_S, self._tell_backlog)

    def _on_slots(self, slots: Sequence[Sequence[int]]) -> None:
        numbers = {lane.number: lane for lane in self._lanes.values()}
        for number, count in slots:
            if number in numbers:
                numbers[number].n_slots = count
        self.pump_soon()


class CallLane(Lane[Call]):
    """A lane of calls that ask for the same."""

    def __init__(self, pace: Pace, estimates: Estimates, kind: Kind, number: int) -> None:
        super().__init__(pace, estimates)
        self.kind, self.number = kind, number


class _Nobody:
    """Who observes what exadask itself keeps in the cluster: calls that need it notice enough."""

    wants_reports = False

    def placed(self, call: Call, node: str) -> None:
        pass

    def reported(self, call: Call, report: Report) -> None:
        pass

    def finished(self, call: Call) -> None:
        pass

    def failed(self, call: Call, error: BaseException) -> None:
        pass

    def cancel(self) -> bool:
        return False

    def running(self) -> bool:
        return False


_NOTHING: tuple[Any, ...] = ()


def _is_handy(one: Call | DaskFuture) -> bool:
    """Whether an input can travel with a bundle: it is small, or many calls have it in common."""
    return isinstance(one, Call) and (one.has_value or one.kind.is_data)


def _missing(call: Call) -> list[Call]:
    """Name the inputs of a call that are not done, each once, its function among them."""
    inputs = (*call.inputs, call.kind.data)
    calls = (one for one in inputs if isinstance(one, Call) and one.observer is not None)
    return list(dict.fromkeys(calls))
