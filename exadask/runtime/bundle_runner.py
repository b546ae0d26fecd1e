"""Runs the calls of a bundle in a child process, with as little as can be between two of them."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from typing import Any

from exadask import inside
from exadask.errors import InvalidRequest
from exadask.runtime.board import Board
from exadask.runtime.job import BundleDone, Failure, Item, RunBundle, WithKeywords
from exadask.runtime.kind import Kind
from exadask.runtime.metering import (
    ended_cpu_s,
    forget_peak,
    give_memory_back,
    has_children,
    highest_bytes,
    peak_bytes,
)
from exadask.runtime.outcomes import exit_failure, failure_of, pack_result
from exadask.runtime.parcel import Parcel, is_plain
from exadask.runtime.runner import Runner

_SHORT_S = 5e-5
"""A call that is faster has started no process, and its processor time is its wall time [s]."""
_WAITED_S = 1e-4
"""A call that starts a process waits for it to begin, at least so long [s]."""
_MEASURED_S = 0.05


class BundleRunner:
    """Runs many short calls one after the other, with as little as can be between two of them.

    Parameters
    ----------
    runner : Runner
        Knows functions and states.
    send : callable
        Sends the agent what does not fit on the board.
    """

    def __init__(self, runner: Runner, send: Callable[[Item], None]) -> None:
        self._runner, self._send = runner, send
        self._board: Board | None = None
        self._peak_bytes, self._ended_cpu_s = 0, 0.0

    def run(self, order: RunBundle) -> BundleDone:
        """Run the calls of a bundle, until it should not go on."""
        if order.board is not None:
            self._board = Board.attach(os.dup(order.board.fd))
        board = self._board
        assert board is not None, "the first bundle came without a board"
        calls = pickle.loads(order.bundle.calls)
        problem = self._settled(order, is_sure=True)
        self._ended_cpu_s = ended_cpu_s()
        self._measure()
        self._runner.streams.news()
        here = inside.Here(order.kind.request.time_s, order.left_s)
        with inside.entered(here):
            return self._run_calls(order, board, calls, problem, here)

    def _run_calls(
        self,
        order: RunBundle,
        board: Board,
        calls: list[Any],
        problem: Failure | None,
        here: inside.Here,
    ) -> BundleDone:
        bundle, streams, clock = order.bundle, self._runner.streams, time.monotonic
        began_s = measured_s = read_s = clock()
        cpu_s = time.process_time()
        for index in range(order.start, bundle.count):
            here.began_s = start_s = clock()
            if start_s - began_s > bundle.bound_s and index > order.start:
                return BundleDone(stop=index, has_children=False)
            if not board.begin(index, start_s, streams.out, streams.err):
                continue
            arguments, calls[index] = calls[index], None
            kind = bundle.kinds[bundle.kind_of[index]] if bundle.kind_of else bundle.kind
            outcome = problem or self._outcome(kind, arguments, order)
            end_s = clock()
            used_s = wall_s = end_s - start_s
            is_due = end_s - measured_s > _MEASURED_S
            may_have_children = is_due
            if wall_s > _SHORT_S:
                cpu_before_s, cpu_s = cpu_s, time.process_time()
                used_s = max(0.0, cpu_s - cpu_before_s - (start_s - read_s))
                read_s = end_s
                if is_due or wall_s - used_s > _WAITED_S:
                    may_have_children = True
                    used_s += self._ended_since()
            if is_due:
                if wall_s > _MEASURED_S or highest_bytes() > self._peak_bytes:
                    self._measure()
                measured_s = clock()
            problem = self._settled(order, is_sure=is_due)
            item = (index, used_s, wall_s, self._peak_bytes, outcome, *streams.news())
            is_last = self._pass_on(item, order.inline_bytes)
            if is_last or (may_have_children and has_children()):
                return BundleDone(stop=index + 1, has_children=has_children())
        return BundleDone(stop=bundle.count, has_children=has_children())

    def _measure(self) -> None:
        """Look at the memory, which is too slow for every call."""
        self._peak_bytes = peak_bytes()
        forget_peak()
        give_memory_back(self._peak_bytes)

    def _ended_since(self) -> float:
        """Processor time of children that ended since this was asked last [s]."""
        before_s, self._ended_cpu_s = self._ended_cpu_s, ended_cpu_s()
        return self._ended_cpu_s - before_s

    def _settled(self, order: RunBundle, *, is_sure: bool) -> Failure | None:
        """Make this process what the task asked for; if that cannot be, say why."""
        try:
            self._runner.settle(order, is_sure=is_sure)
        except InvalidRequest as error:
            return failure_of(error, order.kind)
        return None

    def _outcome(self, kind: Kind, packed: Any, order: RunBundle) -> object:
        """Run one call; returns its packed value, the value itself if it is plain, or a failure."""
        keywords: dict[str, Any] = {}
        try:
            if type(packed) is tuple:
                arguments = packed
            elif type(packed) is Parcel:
                arguments, keywords = packed.load()
            elif type(packed) is WithKeywords:
                arguments, keywords = packed
            else:
                inputs = (order.inputs[x] if type(x) is int else x for x in packed.inputs)
                givers = [self._runner.giver_of(one) for one in inputs]
                arguments, keywords = packed.arguments.load(givers)
            value = self._runner.call(kind, arguments, keywords)
        except (KeyboardInterrupt, SystemExit) as error:
            return exit_failure(kind, order.node, error)
        except BaseException as error:  # the task's boundary: whatever it raises is its result
            return failure_of(error, kind)
        return value if is_plain(value) else pack_result(value, kind)

    def _pass_on(self, item: tuple[Any, ...], inline_bytes: int) -> bool:
        """Give the agent how a call ended; returns whether it should be the last here."""
        assert self._board is not None
        outcome, stdout, stderr = item[4:]
        is_large = type(outcome) is Parcel and not (
            outcome.is_small and outcome.nbytes <= inline_bytes
        )
        has_much_output = type(stdout) is tuple or type(stderr) is tuple
        if is_large or has_much_output or not self._board.put(pickle.dumps(item, 5)):
            self._send(Item(*item))
        return is_large
