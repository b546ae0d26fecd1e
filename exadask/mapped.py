"""The results of ``Executor.map``: one observer for many calls, and no future for each of them."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from exadask.errors import ExecutorClosed
from exadask.future import Future, lent
from exadask.runtime.call import Call, Gateway, Observer
from exadask.runtime.job import Report
from exadask.runtime.parcel import Parcel

_LEAST_REFILL = 256
_AT_ONCE = 4096
_BREATH_S = 0.0005


class Mapped:
    """The calls of a map whose results have not been taken, in their order.

    Parameters
    ----------
    gateway : Gateway
        The way to the cluster.
    calls : iterator of Call
        Gives the calls as they are asked for.
    hand_over : callable
        Submits calls; raises `ExecutorClosed` if none are taken any more.
    window : int, optional
        How many calls may be submitted whose results have not been taken [calls].
    timeout : float, optional
        How long all of it may take, from now [s].
    """

    wants_reports = False

    def __init__(
        self,
        gateway: Gateway,
        calls: Iterator[Call],
        hand_over: Callable[[Sequence[Call], Observer], None],
        *,
        window: int | None,
        timeout: float | None,
    ) -> None:
        self._gateway, self._calls, self._window = gateway, calls, window
        self._hand_over = hand_over
        self._end_s = None if timeout is None else time.monotonic() + timeout
        self._pending: deque[Call] = deque()
        self._awaited: Call | None = None
        self._is_there = threading.Event()
        self._is_running = False
        self._problem: BaseException | None = None
        if window is not None:
            self._submit(window)
        while window is None and self._submit(_AT_ONCE):
            time.sleep(_BREATH_S)  # what is submitted goes on its way while the rest is packed
        if self._problem is not None and (window is None or not self._pending):
            raise self._problem

    def results(self) -> Iterator[Any]:
        """Give the results, and submit other calls in the place of those that were taken."""
        pending, window = self._pending, self._window
        refill = 0 if window is None else max(1, min(_LEAST_REFILL, window // 2))
        try:
            while pending:
                if refill and len(pending) <= window - refill:  # type: ignore[operator]
                    self._submit(refill)
                call = pending[0]
                if call.observer is not None:
                    self._wait_for(call)
                pending.popleft()
                yield call.value if self._is_plain(call) else self._loaded(call)
                if refill and not pending:
                    self._submit(refill)
            if self._problem is not None:
                raise self._problem
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the calls that are not done."""
        for call in self._pending:
            if call.observer is not None:
                self._gateway.cancel(call)

    def running(self) -> bool:
        """Whether a call has begun."""
        return self._is_running

    def placed(self, call: Call, node: str) -> None:
        """Take the news that a call starts."""
        self._is_running = True

    def reported(self, call: Call, report: Report) -> None:
        """Take the report of one attempt."""

    def finished(self, call: Call) -> None:
        """Take the news that a result exists."""
        if call is self._awaited:
            self._is_there.set()

    def failed(self, call: Call, error: BaseException) -> None:
        """Take the news that there is no result."""
        if call is self._awaited:
            self._is_there.set()

    def _submit(self, count: int) -> bool:
        """Submit the next calls; returns whether there may be more."""
        calls: list[Call] = []
        try:
            calls.extend(itertools.islice(self._calls, count))
        except BaseException as error:  # of the user's generator: what came before it counts
            self._problem = error
        try:
            self._hand_over(calls, self)
        except ExecutorClosed as error:  # results that are there are given first
            self._problem = error
            return False
        self._pending.extend(calls)
        return len(calls) == count

    def _wait_for(self, call: Call) -> None:
        self._is_there.clear()
        self._awaited = call
        if call.observer is None:
            return
        left_s = None if self._end_s is None else max(0.0, self._end_s - time.monotonic())
        with lent(self._gateway):
            if not self._is_there.wait(left_s):
                raise concurrent.futures.TimeoutError

    @staticmethod
    def _is_plain(call: Call) -> bool:
        return call.has_value and type(call.value) is not Parcel

    def _loaded(self, call: Call) -> Any:
        """Unpack a result, or raise what the call raised, as a future would."""
        future: Future[Any] = Future(self._gateway, call)
        if call.error is not None:
            future.failed(call, call.error)
        elif call.is_dropped:
            future.cancel()
        else:
            future.finished(call)
        return future.result()
