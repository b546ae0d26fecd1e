"""Reading a journal, while it is written or afterwards."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from exadask.errors import RunFolderError
from exadask.journal.database import connect, opened_to_read
from exadask.journal.rows import (
    AllocationRow,
    AttemptRow,
    EventRow,
    FunctionRow,
    ResultRow,
    SessionRow,
    TaskRow,
)
from exadask.resources import Resources
from exadask.runtime.call import number_in

JOURNAL = "journal.sqlite"

_LARGEST_NUMBER = 2**63 - 1
# A task whose only attempt came to a good end has no row for it.
_ONLY_ATTEMPT = (
    "SELECT id, 1, node, cores, gpus, placed, ended, state, NULL, NULL, NULL, wall_s, cpu_s, "
    "peak_bytes FROM tasks WHERE id = ? AND node IS NOT NULL"
)


class Used(NamedTuple):
    """What attempts of a function used, for tasks that asked for the same.

    Parameters
    ----------
    n_tasks : int
        How many tasks this stands for [tasks].
    outcome, error : str or None
        How it ended.
    wall_s, cpu_s, peak_bytes
        See `AttemptRow`.
    nbytes : int
        Size of the arguments [bytes]; 0 if they are tiny.
    """

    n_tasks: int
    outcome: str
    error: str | None
    wall_s: float | None
    cpu_s: float | None
    peak_bytes: int | None
    nbytes: int = 0


class Failed(NamedTuple):
    """A task that failed, and its last attempt."""

    task: TaskRow
    function: FunctionRow
    attempt: AttemptRow | None


class RunRecord:
    """What a journal says; made by `RunRecord.opened`.

    Parameters
    ----------
    connection : sqlite3.Connection
        The journal.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator[RunRecord]:
        """Open the journal of a run.

        Parameters
        ----------
        folder : Path
            The run's folder.

        Raises
        ------
        RunFolderError
            It has none, or it cannot be read.
        """
        with opened_to_read(folder / JOURNAL) as connection:
            try:
                yield cls(connection)
            except (sqlite3.Error, UnicodeDecodeError) as error:  # a message may quote garbage
                raise RunFolderError(
                    str(folder),
                    f"its journal cannot be read: {error}",
                    "If the run goes on, try again.",
                ) from error

    def sessions(self) -> list[SessionRow]:
        """Give the processes that drove the run, oldest first."""
        return [SessionRow(*row) for row in self._all("SELECT * FROM sessions ORDER BY id")]

    def functions(self) -> list[FunctionRow]:
        """Give the functions, oldest first."""
        return [FunctionRow(*row) for row in self._all("SELECT * FROM functions ORDER BY id")]

    def allocations(self) -> list[AllocationRow]:
        """Give the allocations, oldest first."""
        return [
            AllocationRow(*row) for row in self._all("SELECT * FROM allocations ORDER BY asked")
        ]

    def events(self) -> list[EventRow]:
        """Give what else happened, oldest first."""
        return [EventRow(*row) for row in self._all("SELECT * FROM events ORDER BY id")]

    def spent(self, until: float) -> float:
        """Say what the allocations did cost [node-seconds].

        Parameters
        ----------
        until : float
            When those ended whose end nobody has written down [s since the epoch].
        """
        spent = 0.0
        for one in self.allocations():
            if one.node_seconds is not None:
                spent += one.node_seconds
            elif one.began is not None:
                spent += one.nodes * max(0.0, until - one.began)
        return spent

    def counts(self) -> dict[str, int]:
        """Count the tasks by their states."""
        query = "SELECT state, sum(n_tasks) FROM tasks GROUP BY state HAVING sum(n_tasks) > 0"
        return dict(self._all(query))

    def tasks(self, state: str | None = None) -> Iterator[TaskRow]:
        """Give the tasks, oldest first, or those in a state."""
        where, values = ("", ()) if state is None else ("WHERE state = ?", (state,))
        query = f"SELECT * FROM tasks {where} ORDER BY id"
        return (TaskRow(*row) for row in self._connection.execute(query, values))

    def find(self, wanted: str, at_most: int = 20) -> list[TaskRow]:
        """Find tasks by number, by key, or by the name of the function; those that failed first."""
        wanted = wanted.encode(errors="replace").decode()  # as it may come from a command line
        if wanted.isdecimal() and int(wanted) <= _LARGEST_NUMBER:
            rows = self._all("SELECT * FROM tasks WHERE id = ?", int(wanted))
            if rows:
                return [TaskRow(*row) for row in rows]
        rows = self._all("SELECT * FROM tasks WHERE key = ?", wanted)
        number = number_in(wanted)
        if number is not None and number <= _LARGEST_NUMBER and not rows:
            query = (
                "SELECT t.* FROM tasks t JOIN functions f ON f.id = t.function "
                "WHERE t.id = ? AND substr(?, 1, length(f.name) + 1) = f.name || '-'"
            )
            rows = self._all(query, number, wanted)
        if not rows:
            query = (
                "SELECT t.* FROM tasks t JOIN functions f ON f.id = t.function WHERE f.name = ? "
                "OR (t.key IS NOT NULL AND substr(t.key, 1, ?) = ?) "
                "ORDER BY t.state != 'failed', t.id LIMIT ?"
            )
            rows = self._all(query, wanted, len(wanted), wanted, at_most)
        return [TaskRow(*row) for row in rows]

    def function(self, number: int) -> FunctionRow:
        """Give a function by its number."""
        rows = self._all("SELECT * FROM functions WHERE id = ?", number)
        return FunctionRow(*rows[0]) if rows else FunctionRow(number, "unknown", "", "{}", None)

    def attempts(self, task: int) -> list[AttemptRow]:
        """Give the attempts of a task, in order."""
        rows = self._all("SELECT * FROM attempts WHERE task = ? ORDER BY number", task)
        rows = rows or self._all(_ONLY_ATTEMPT, task)
        return [AttemptRow(*row) for row in rows]

    def failures(self) -> Iterator[Failed]:
        """Give the tasks that failed, each with what says why."""
        functions = {one.id: one for one in self.functions()}
        for task in list(self.tasks("failed")):
            attempts = [one for one in self.attempts(task.id) if one.error is not None]
            reason = next((one for one in attempts if one.number == 0), None)
            reason = reason or (attempts[-1] if attempts else None)
            function = functions.get(task.function) or self.function(task.function)
            yield Failed(task, function, reason)

    def used(self, function: int) -> list[Used]:
        """Give what the attempts of a function used, as far as it was measured."""
        query = (
            "SELECT t.n_tasks, a.outcome, a.error, a.wall_s, a.cpu_s, a.peak_bytes, "
            "coalesce(t.nbytes, 0) FROM attempts a JOIN tasks t ON t.id = a.task "
            "WHERE t.function = ?1 AND a.wall_s IS NOT NULL UNION ALL "
            "SELECT n_tasks, state, NULL, wall_s, cpu_s, peak_bytes, coalesce(nbytes, 0) "
            "FROM tasks WHERE function = ?1 AND wall_s IS NOT NULL"
        )
        return [Used(*row) for row in self._all(query, function)]

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()


class Lookup:
    """Finds results in the journal of the run that goes on; any thread may ask.

    Parameters
    ----------
    path : Path
        The journal, which this process writes.
    is_shared : bool
        Whether it is on a network, so that locks are not used.
    """

    def __init__(self, path: Path, *, is_shared: bool) -> None:
        self._connection = connect(path, mode="ro", is_shared=is_shared)
        self._lock = threading.Lock()

    def result(self, digest: bytes) -> ResultRow | None:
        """Find a result; None if there is none, or it is damaged."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            query = "SELECT * FROM results WHERE digest = ?"
            found = self._connection.execute(query, (digest,)).fetchone()
            if found is not None:
                row = ResultRow(*found)  # a damaged index may lead to that of another call
                return row if row.is_sound and row.digest == digest else None
        return None

    def close(self) -> None:
        """Let the journal go."""
        with self._lock:
            self._connection.close()


def request_of(function: FunctionRow) -> Resources:
    """Read what the tasks of a function ask for."""
    return Resources(**json.loads(function.request))
