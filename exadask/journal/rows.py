"""The tables of a journal, and a row of each.

Times are seconds since the epoch, by the clock of the driver. A row is written again when there is
more to say: the last one counts.
"""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple, TypeAlias

__all__ = [
    "SCHEMA",
    "VERSION",
    "AllocationRow",
    "AttemptRow",
    "EventRow",
    "FunctionRow",
    "ResultRow",
    "Row",
    "SessionRow",
    "TaskRow",
    "checksum_of",
]

VERSION = 1
"""What ``PRAGMA user_version`` says; a later one is not understood."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY, began REAL, ended REAL, host TEXT, pid INTEGER, argv TEXT, version TEXT
);
CREATE TABLE IF NOT EXISTS functions (
    id INTEGER PRIMARY KEY, name TEXT, source TEXT, request TEXT, pool TEXT
);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, key TEXT, function INTEGER, session INTEGER, n_tasks INTEGER,
    submitted REAL, placed REAL, ended REAL, state TEXT, digest BLOB, inputs TEXT,
    node TEXT, cores TEXT, gpus TEXT, wall_s REAL, cpu_s REAL, peak_bytes INTEGER, nbytes INTEGER
);
CREATE INDEX IF NOT EXISTS tasks_by_state ON tasks (state) WHERE state IN
    ('waiting', 'running', 'failed');
CREATE TABLE IF NOT EXISTS attempts (
    task INTEGER, number INTEGER, node TEXT, cores TEXT, gpus TEXT, began REAL, ended REAL,
    outcome TEXT, error TEXT, message TEXT, detail TEXT,
    wall_s REAL, cpu_s REAL, peak_bytes INTEGER, PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    digest BLOB PRIMARY KEY, task INTEGER, value BLOB, checksum BLOB, file TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS allocations (
    name TEXT PRIMARY KEY, pool TEXT, job_id TEXT, state TEXT, nodes INTEGER, asked REAL,
    began REAL, ended REAL, node_seconds REAL, reason TEXT
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, time REAL, kind TEXT, subject TEXT, text TEXT
);
"""


class SessionRow(NamedTuple):
    """A process that drives the run; a run that is resumed has several.

    Parameters
    ----------
    id : int
        Its number.
    began, ended : float
        From when to when; not ended if it was killed.
    host : str
        Where.
    pid : int
        Its process id.
    argv : str
        Its command line, as JSON.
    version : str
        The version of exadask.
    """

    id: int
    began: float
    ended: float | None
    host: str
    pid: int
    argv: str
    version: str


class FunctionRow(NamedTuple):
    """A function, and what its tasks ask for.

    Parameters
    ----------
    id : int
        Its number.
    name, source : str
        What its tasks are called, and where its code is.
    request : str
        What they ask for, as JSON: cores, gpu_units, memory_bytes, time_s.
    pool : str, optional
        The pool that they are pinned to.
    """

    id: int
    name: str
    source: str
    request: str
    pool: str | None


class TaskRow(NamedTuple):
    """A task; or several very short ones of a map, that ended together.

    Parameters
    ----------
    id : int
        Its number.
    key : str, optional
        Its name in the cluster. None: nobody ever asked for it.
    function, session : int
        What it runs, and who submitted it.
    n_tasks : int
        How many tasks this stands for [tasks].
    submitted, placed, ended : float, optional
        When it was submitted, began for the first time, and ended.
    state : str
        waiting, running, done, reused (its result was there), failed or cancelled.
    digest : bytes, optional
        Names what it computes: its function and its arguments.
    inputs : str, optional
        The numbers of the tasks whose results it needs, as JSON.
    node, cores, gpus : str, optional
        Where its only attempt was; None if there is more to say: then there are `AttemptRow`.
    wall_s, cpu_s, peak_bytes : optional
        What that attempt used; of several tasks, the sums and the largest memory.
    nbytes : int, optional
        Size of its arguments [bytes]. None: they are tiny.
    """

    id: int
    key: str | None
    function: int
    session: int
    n_tasks: int
    submitted: float | None
    placed: float | None
    ended: float | None
    state: str
    digest: bytes | None = None
    inputs: str | None = None
    node: str | None = None
    cores: str | None = None
    gpus: str | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    peak_bytes: int | None = None
    nbytes: int | None = None


class AttemptRow(NamedTuple):
    """An attempt to run a task.

    Parameters
    ----------
    task, number : int
        The task, and which attempt it is; 0: it never ran, and why not.
    node, cores, gpus : str, optional
        Where.
    began, ended : float, optional
        From when to when.
    outcome : str
        running, done, failed, lost (with its node), returned (it had not begun) or cancelled.
    error, message, detail : str, optional
        If it failed: the class of the error, one line, and a traceback or what it wrote last.
    wall_s, cpu_s : float, optional
        How long it lasted, and its processor time [s].
    peak_bytes : int, optional
        Its largest memory [bytes].
    """

    task: int
    number: int
    node: str | None
    cores: str | None
    gpus: str | None
    began: float | None
    ended: float | None
    outcome: str
    error: str | None
    message: str | None
    detail: str | None
    wall_s: float | None
    cpu_s: float | None
    peak_bytes: int | None


class ResultRow(NamedTuple):
    """A result, for when the run is resumed.

    Parameters
    ----------
    digest : bytes
        Names what it is the result of.
    task : int
        The task that gave it.
    value : bytes, optional
        The result itself, packed.
    checksum : bytes, optional
        Of the value; see `checksum_of`.
    file : str, optional
        The file that has it instead.
    """

    digest: bytes
    task: int
    value: bytes | None
    checksum: bytes | None
    file: str | None

    @property
    def is_sound(self) -> bool:
        """Whether it is what was written: nothing vouches for rows of a damaged journal."""
        if isinstance(self.file, str):
            return True
        return isinstance(self.value, bytes) and checksum_of(self.value) == self.checksum


class AllocationRow(NamedTuple):
    """An allocation; see `exadask.core.fleet_report.AllocationSummary`."""

    name: str
    pool: str
    job_id: str | None
    state: str
    nodes: int
    asked: float | None
    began: float | None
    ended: float | None
    node_seconds: float | None
    reason: str


class EventRow(NamedTuple):
    """Something else that happened; it has no number before it is written."""

    id: int | None
    time: float
    kind: str
    subject: str
    text: str


Row: TypeAlias = (
    SessionRow | FunctionRow | TaskRow | AttemptRow | ResultRow | AllocationRow | EventRow
)

TABLES: dict[type[Row], str] = {
    SessionRow: "sessions",
    FunctionRow: "functions",
    TaskRow: "tasks",
    AttemptRow: "attempts",
    ResultRow: "results",
    AllocationRow: "allocations",
    EventRow: "events",
}


def insertion(kind: type[Row], n_rows: int) -> str:
    """Give the statement that writes so many rows of a kind."""
    return _insertion(TABLES[kind], len(kind._fields), n_rows)


@functools.lru_cache(maxsize=128)
def _insertion(table: str, n_columns: int, n_rows: int) -> str:
    row = f"({', '.join('?' * n_columns)})"
    return f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * n_rows)}"


def checksum_of(value: bytes) -> bytes:
    """Give the checksum of a stored value [16 bytes]."""
    return hashlib.blake2b(value, digest_size=16).digest()
