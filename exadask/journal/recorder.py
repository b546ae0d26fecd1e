"""From what happens to calls to the rows of a journal.

Those who tell (the client's loop, the user's threads) only leave a note; the journal's own thread
makes rows of the notes, so that nobody waits for it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from exadask.cpulist import render_cpulist
from exadask.journal.rows import AttemptRow, FunctionRow, ResultRow, Row, TaskRow
from exadask.runtime.call import Call, Observer, Passed, Seat
from exadask.runtime.job import Problem, Report, TaskFailed, Usage
from exadask.runtime.kind import Kind

_SETTLED_S = 0.25  # what changes faster is written down when it is over
_NO_SEAT = Seat("")
_journals = itertools.count(1)
_NO_PROBLEM = (None, None, None)
_MOST_KINDS = 4096


class Recorder:
    """Writes down what becomes of calls; it is the `Record` of a `Bundler`.

    Parameters
    ----------
    session : int
        The session whose calls these are.
    next_task, next_function : int
        The first numbers that the journal does not have yet.
    save : callable, optional
        Gives the row that keeps the result of a call that is done; None where it keeps none.
    """

    def __init__(
        self,
        session: int,
        *,
        next_task: int = 1,
        next_function: int = 1,
        save: Callable[[Call, int], ResultRow | None] | None = None,
    ) -> None:
        self._session, self._save = session, save
        self._journal = next(_journals)
        self._numbers, self._next_function = itertools.count(next_task), next_function
        self._fresh: deque[Call] = deque()
        self._checkpoints: list[str] = []
        self._last_seat, self._last_texts = _NO_SEAT, ("", "", "")
        self._notes: deque[tuple[Any, ...]] = deque()
        self._functions: dict[tuple[Any, ...], int] = {}
        self._function_of: dict[Kind, int] = {}
        self._entries: dict[Call, _Entry] = {}
        self._unsettled: dict[_Entry, None] = {}
        self._maps: dict[Observer, _Map] = {}

    # -- told on any thread -----------------------------------------------------------------

    def submitted(self, calls: Sequence[Call], observer: Observer) -> None:
        """Note that calls were handed over."""
        now = time.time()
        if not observer.wants_reports:
            self._notes.append((self._submitted, now, calls, observer))
            return
        for call in calls:
            call.number, call.journal, call.submitted = next(self._numbers), self._journal, now
        self._fresh.extend(calls)

    def placed(self, call: Call, seat: Seat) -> None:
        """Note that an attempt begins."""
        self._notes.append((self._placed, time.time(), call, seat, call.observer))

    def reported(self, call: Call, report: Report, seat: Seat) -> None:
        """Note that an attempt has ended."""
        self._notes.append((self._reported, time.time(), call, report, seat, call.observer))

    def passed(self, calls: Passed) -> None:
        """Note short calls of a map that are done."""
        self._notes.append((self._passed, time.time(), calls))

    def put_back(self, calls: Sequence[Call], *, is_lost: bool) -> None:
        """Note that calls wait again."""
        self._notes.append((self._put_back, time.time(), calls, is_lost))

    def done(self, call: Call, report: Report, seat: Seat, observer: Observer) -> None:
        """Note that an attempt has ended, with a result that is here."""
        self._notes.append((self._done, time.time(), call, report, seat, observer))

    def finished(self, call: Call, observer: Observer) -> None:
        """Note that a result exists."""
        self._notes.append((self._finished, time.time(), call, observer))

    def failed(self, call: Call, error: BaseException | None, observer: Observer) -> None:
        """Note that there will be no result."""
        self._notes.append((self._failed, time.time(), call, error, observer))

    def reused(self, call: Call) -> None:
        """Note that a result was there already, so that the call need not run."""
        self._notes.append((self._reused, time.time(), call))

    # -- on the journal's thread ------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """Give the rows of all that was noted since this was called last."""
        notes, fresh, now = self._notes, self._fresh, time.time()
        for _ in range(len(fresh)):
            call = fresh.popleft()
            # What is done already will be written down once, with its end.
            if call.observer is not None and not call.kind.is_data:
                yield from self._open(call, now)
        for _ in range(len(notes)):
            take, *note = notes.popleft()
            yield from take(*note)
        yield from self._open_rows(now)

    def _open_rows(self, now: float) -> Iterator[Row]:
        """Give rows of calls that wait or run for longer than a moment."""
        settled = [one for one in self._unsettled if now - one.changed >= _SETTLED_S]
        for entry in settled:
            del self._unsettled[entry]
            if entry.attempt_began is None:
                yield entry.row
            else:
                yield entry.row._replace(state="running")
                yield entry.attempt("running")
        for observer, group in list(self._maps.items()):
            yield from group.rows(now)
            if not group.n_left:
                del self._maps[observer]

    def _submitted(self, now: float, calls: Sequence[Call], observer: Observer) -> Iterator[Row]:
        if not calls or calls[0].kind.is_data:
            return
        first = calls[0].kind
        group = self._maps.get(observer)
        if group is None:
            yield from self._function_row(first)
            group = self._maps[observer] = _Map(self._new_row(self._function_of[first], now))
        group.n_left += len(calls)

    def _open(self, call: Call, now: float, group: _Map | None = None) -> Iterator[Row]:
        """Begin the story of a call; one of a map may have waited since the map began."""
        yield from self._function_row(call.kind)
        entry = self._entries[call] = _Entry(self._row_of(call, now, group), now)
        self._unsettled[entry] = None

    def _require_entry(self, call: Call, now: float, group: _Map | None) -> Iterator[Row]:
        """Begin the story of a call that has none yet."""
        if call not in self._entries:
            yield from self._open(call, now, group)

    def _row_of(self, call: Call, now: float, group: _Map | None) -> TaskRow:
        """Make the row of a call that waits."""
        if not call.number:
            call.number, call.journal = next(self._numbers), self._journal
            call.submitted = group.row.submitted or now if group else now
        inputs = None
        if call.inputs:
            numbers = [one.number for one in call.inputs if isinstance(one, Call) and one.number]
            inputs = json.dumps(numbers)
        function = self._function_of[call.kind]
        row = TaskRow(
            call.number,
            call.known_key,
            function,
            self._session,
            1,
            call.submitted,
            None,
            None,
            "waiting",
        )
        if inputs is None and not call.nbytes:
            return row
        return row._replace(inputs=inputs, nbytes=call.nbytes or None)

    def _done(
        self, now: float, call: Call, report: Report, seat: Seat, observer: Observer
    ) -> Iterator[Row]:
        entry = self._entries.get(call)
        self._leave_map(observer, 1)
        if entry is not None and entry.n_attempts > (entry.attempt_began is not None):
            yield from self._reported(now, call, report, seat, observer)
            yield from self._end(call, now, "done")
            return
        if entry is None:
            yield from self._function_row(call.kind)
            row = self._row_of(call, now, self._maps.get(observer))
        else:
            row = entry.row
            del self._entries[call]
            self._unsettled.pop(entry, None)
        usage = report.usage
        wall_s, cpu_s, peak_bytes = _figures(usage)
        began = now - (wall_s or 0.0)
        if entry is not None and entry.attempt_began is not None:
            began, seat = entry.attempt_began, entry.seat
        node, cores, gpus = self._texts(seat)
        # By position, for every short call: with names it takes twice as long.
        yield TaskRow(
            row.id,
            call.known_key,
            row.function,
            self._session,
            1,
            row.submitted,
            began,
            now,
            "done",
            call.digest,
            row.inputs,
            node,
            cores,
            gpus,
            wall_s,
            cpu_s,
            peak_bytes,
            call.nbytes or None,
        )
        yield from self._kept(call, row.id)

    def _placed(self, now: float, call: Call, seat: Seat, observer: Observer) -> Iterator[Row]:
        yield from self._require_entry(call, now, self._maps.get(observer))
        entry = self._entries[call]
        if entry.attempt_began is not None:
            if entry.seat is seat:
                return  # the same news
            yield self._end_attempt(entry, now, "lost")
        if entry.row.placed is None:
            entry.row = entry.row._replace(placed=now)
        entry.n_attempts += 1
        entry.attempt_began, entry.seat, entry.changed = now, seat, now
        self._unsettled[entry] = None

    def _reported(
        self, now: float, call: Call, report: Report, seat: Seat, observer: Observer
    ) -> Iterator[Row]:
        usage = report.usage
        yield from self._require_entry(call, now, self._maps.get(observer))
        entry = self._entries[call]
        if entry.attempt_began is None:
            entry.n_attempts += 1
            entry.attempt_began = now - (usage.wall_s if usage else 0.0)
            entry.seat = seat if seat.node == report.node else Seat(report.node)
            if entry.row.placed is None:
                entry.row = entry.row._replace(placed=entry.attempt_began)
        outcome = "done" if report.problem is None else "failed"
        yield self._end_attempt(entry, now, outcome, usage, report.problem)

    def _passed(self, now: float, calls: Passed) -> Iterator[Row]:
        kind, observer, seat, n_calls, usage = calls
        yield from self._function_row(kind)
        group = self._maps.get(observer)
        row = self._new_row(self._function_of[kind], group.row.submitted if group else None)
        node, cores, gpus = self._texts(seat)
        yield row._replace(
            n_tasks=n_calls,
            placed=now - usage.wall_s,
            ended=now,
            state="done",
            node=node,
            cores=cores,
            gpus=gpus,
            wall_s=usage.wall_s,
            cpu_s=usage.cpu_s,
            peak_bytes=usage.peak_bytes,
        )
        self._leave_map(observer, n_calls)

    def _put_back(self, now: float, calls: Sequence[Call], is_lost: bool) -> Iterator[Row]:
        for call in calls:
            entry = self._entries.get(call)
            if entry is not None and entry.attempt_began is not None:
                yield self._end_attempt(entry, now, "lost" if is_lost else "returned")
            if entry is not None and call.kind.rung:  # it asks for more than before
                yield from self._function_row(call.kind)
                entry.row = entry.row._replace(function=self._function_of[call.kind])

    def _finished(self, now: float, call: Call, observer: Observer) -> Iterator[Row]:
        yield from self._require_entry(call, now, self._maps.get(observer))
        self._leave_map(observer, 1)
        yield from self._end(call, now, "done")

    def _failed(
        self, now: float, call: Call, error: BaseException | None, observer: Observer
    ) -> Iterator[Row]:
        if call.kind.is_data:
            return
        group, entry = self._maps.get(observer), self._entries.get(call)
        self._leave_map(observer, 1)
        if entry is None and group is not None and error is None:
            group.n_cancelled += 1  # it never began
            return
        yield from self._require_entry(call, now, group)
        entry = self._entries[call]
        if entry.attempt_began is not None:
            yield self._end_attempt(entry, now, "cancelled" if error is None else "lost")
        if error is not None:
            problem = _problem_of(error)
            if problem.error != entry.problem:  # no attempt is to blame
                why, where = _words(problem), (None, None, None)
                yield AttemptRow(entry.row.id, 0, *where, now, now, "failed", *why, *_figures(None))
        yield from self._end(call, now, "cancelled" if error is None else "failed")

    def _reused(self, now: float, call: Call) -> Iterator[Row]:
        yield from self._require_entry(call, now, None)
        yield from self._end(call, now, "reused")

    def _end(self, call: Call, now: float, state: str) -> Iterator[Row]:
        """End the story of a call."""
        entry = self._entries.pop(call)
        self._unsettled.pop(entry, None)
        yield entry.row._replace(key=call.known_key, ended=now, state=state, digest=call.digest)
        if state == "done":
            yield from self._kept(call, entry.row.id)

    def _kept(self, call: Call, number: int) -> Iterator[Row]:
        """Keep the result of a call that came to a good end; its checkpoints may go."""
        if call.checkpoint is not None:
            self._checkpoints.append(call.checkpoint)
        if self._save is not None and call.digest is not None:
            kept = self._save(call, number)
            if kept is not None:
                yield kept

    def finished_checkpoints(self) -> list[str]:
        """Name the folders of calls that came to a good end since this was called last."""
        finished, self._checkpoints = self._checkpoints, []
        return finished

    def _leave_map(self, observer: Observer, count: int) -> None:
        group = self._maps.get(observer)
        if group is not None:
            group.n_left -= count

    # -- rows -------------------------------------------------------------------------------

    def _function_row(self, kind: Kind) -> Iterator[Row]:
        if kind in self._function_of:
            return
        facts = (kind.name, kind.source, json.dumps(asdict(kind.request)), kind.pool)
        number = self._functions.get(facts)
        if number is None:
            number = self._functions[facts] = self._next_function
            self._next_function += 1
            yield FunctionRow(number, *facts)
        if len(self._function_of) >= _MOST_KINDS:
            self._function_of.clear()
        self._function_of[kind] = number

    def _new_row(self, function: int, submitted: float | None) -> TaskRow:
        number = next(self._numbers)
        return TaskRow(number, None, function, self._session, 1, submitted, None, None, "waiting")

    def _texts(self, seat: Seat) -> tuple[str, str, str]:
        """Write a seat; the same one many times."""
        if seat is not self._last_seat:
            self._last_seat, self._last_texts = seat, _seat_texts(seat)
        return self._last_texts

    def _end_attempt(
        self,
        entry: _Entry,
        now: float,
        outcome: str,
        usage: Usage | None = None,
        problem: Problem | None = None,
    ) -> AttemptRow:
        row = entry.attempt(outcome, now, usage, problem)
        entry.attempt_began, entry.changed = None, now
        entry.problem = None if problem is None else problem.error
        self._unsettled[entry] = None
        return row


class _Entry:
    """What is known about a call that is not done.

    Attributes
    ----------
    row : TaskRow
        What is to be written.
    changed : float
        When something happened to it last [s since the epoch].
    attempt_began : float or None
        When the attempt that runs began [s since the epoch].
    problem : str or None
        The class of the error of its last attempt.
    """

    __slots__ = ("attempt_began", "changed", "n_attempts", "problem", "row", "seat")

    def __init__(self, row: TaskRow, changed: float) -> None:
        self.row, self.changed = row, changed
        self.n_attempts = 0
        self.attempt_began: float | None = None
        self.seat = _NO_SEAT
        self.problem: str | None = None

    def attempt(
        self,
        outcome: str,
        ended: float | None = None,
        usage: Usage | None = None,
        problem: Problem | None = None,
    ) -> AttemptRow:
        """Describe its last attempt."""
        where, why, used = _seat_texts(self.seat), _words(problem), _figures(usage)
        began = self.attempt_began
        return AttemptRow(self.row.id, self.n_attempts, *where, began, ended, outcome, *why, *used)


class _Map:
    """The calls of a map that have no story of their own."""

    __slots__ = ("n_cancelled", "n_left", "row")

    def __init__(self, row: TaskRow) -> None:
        self.row, self.n_left, self.n_cancelled = row, 0, 0

    def rows(self, now: float) -> Iterator[Row]:
        """Say how many of them still wait, if that is news."""
        if self.n_left != self.row.n_tasks or not self.n_left:
            self.row = self.row._replace(
                n_tasks=self.n_left, state="waiting" if self.n_left else "done"
            )
            yield self.row
        if self.n_cancelled and not self.n_left:
            yield self.row._replace(n_tasks=self.n_cancelled, state="cancelled", ended=now)


def _seat_texts(seat: Seat) -> tuple[str, str, str]:
    nodes = ", ".join((seat.node, *seat.mates))
    return nodes, render_cpulist(seat.cores), ",".join(seat.gpus)


def _figures(usage: Usage | None) -> tuple[float | None, float | None, int | None]:
    return (None, None, None) if usage is None else (usage.wall_s, usage.cpu_s, usage.peak_bytes)


def _words(problem: Problem | None) -> tuple[str | None, str | None, str | None]:
    if problem is None:
        return _NO_PROBLEM
    error, summary, detail = map(_storable, problem)
    return error, summary, detail


def _storable(text: str) -> str:
    """Write halves of characters, which an exception may contain, so that they can be stored."""
    return text.encode(errors="backslashreplace").decode()


def _problem_of(error: BaseException) -> Problem:
    if isinstance(error, TaskFailed):
        return error.failure.problem
    return Problem(type(error).__name__, f"{type(error).__name__}: {error}")
