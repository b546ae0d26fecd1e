"""The writer of a journal: rows go in on any thread, and are on disk a moment later.

Nobody waits for it, and nothing that happens to the disk stops a task. While it cannot write, rows
are kept; the user is told once, and again when it works.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from exadask.errors import RunFolderError
from exadask.journal.database import Numbers, is_local, numbers_of, open_to_write
from exadask.journal.lock import RunLock
from exadask.journal.rows import EventRow, ResultRow, Row, insertion

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 5.0
_NEEDS_OPENING = ("malformed", "disk I/O error")
"""Errors that stay while a file is open: of a network file system that came back, for one."""
_AT_ONCE = 20_000
"""Rows of one transaction at most [rows]."""
_SPOILT = (sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError, ValueError, TypeError)
_MOST_VALUES = 32_766 if sqlite3.sqlite_version_info >= (3, 32) else 999
"""Values of one statement that any SQLite takes, see sqlite.org/limits.html [values]."""
_CHUNKS = (256, 32, 4, 1)
"""Rows of one statement: after each, Python's lock must be taken again, which may last 5 ms."""


def open_under(lock: RunLock, path: Path) -> Journal:
    """Open a journal whose run is locked; if that fails, the lock goes."""
    try:
        return Journal(path)
    except BaseException:
        lock.release()
        raise


class Journal:
    """A journal that is open for writing.

    Parameters
    ----------
    path : Path
        The file; its folder is there.
    interval_s : float
        How far it is behind at most [s].
    most_held : int
        Rows that are kept while it cannot be written; then the oldest go, results last [rows].
    is_shared : bool, optional
        Whether it is on a network. None: find out.

    Attributes
    ----------
    on_drain : callable or None
        Gives rows that nobody has put, before each transaction; called on the journal's thread.
    is_shared : bool
        Whether it is on a network.
    numbers : Numbers
        The first numbers that it did not have when it was opened.

    Raises
    ------
    RunFolderError
        It cannot be made, or a later version of exadask has written it.
    """

    def __init__(
        self,
        path: Path,
        *,
        interval_s: float = 0.25,
        most_held: int = 500_000,
        is_shared: bool | None = None,
    ) -> None:
        self._path, self._interval_s, self._most_held = path, interval_s, most_held
        self.is_shared = not is_local(path.parent) if is_shared is None else is_shared
        self._rows: deque[Row] = deque()
        self._held: deque[Row] = deque()  # taken, and not yet on disk
        self.on_drain: Callable[[], Iterable[Row]] | None = None
        self._connection: sqlite3.Connection | None = None
        self._problem: str | None = None
        self._n_lost = 0
        self._pause_s = interval_s
        self._wanted = threading.Event()
        self._round = threading.Condition()
        self._n_rounds, self._is_closing = 0, False
        try:
            self.numbers: Numbers = self._open()
        except (sqlite3.Error, OSError) as error:
            raise RunFolderError(
                str(path.parent),
                f"its journal cannot be written: {error}",
                "Choose another folder: run_folder=, or EXADASK_RUN_FOLDER; or journal=False.",
            ) from error
        self._thread = threading.Thread(target=self._run, name="exadask-journal", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why it cannot be written at the moment; None if it can."""
        return self._problem

    def put(self, row: Row) -> None:
        """Write a row, soon."""
        self._rows.append(row)

    def flush(self, timeout_s: float = 60.0) -> bool:
        """Wait until all is written that was put before.

        Returns
        -------
        bool
            False if it cannot be written, or not in time.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._round:
            target = self._n_rounds + 2  # the present one may have begun before
            while self._n_rounds < target and self._thread.is_alive():
                self._wanted.set()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._round.wait(left_s):
                    return False
            if self._n_rounds < target:  # it has ended: nobody writes what was put since
                return not self._held and not self._rows
        return self._problem is None and not self._held

    def close(self) -> None:
        """Write all that was put, if that can be, and end."""
        self._is_closing = True
        self._wanted.set()
        self._thread.join()
        if self._held or self._rows:
            n_rows = len(self._held) + len(self._rows)
            logger.warning("the last %d rows of the journal %s are lost", n_rows, self._path)

    def _open(self) -> Numbers:
        self._connection = open_to_write(self._path, is_shared=self.is_shared)
        self._inode = self._path.stat().st_ino
        return numbers_of(self._connection)

    # -- on its thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            if not self._is_closing:
                self._wanted.wait(self._pause_s)
            self._wanted.clear()
            is_last = self._is_closing
            self._collect()
            self._write()
            with self._round:
                self._n_rounds += 1
                self._round.notify_all()
            if is_last and (self._problem is not None or not self._held):
                break
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()

    def _collect(self) -> None:
        """Take what was put."""
        for _ in range(len(self._rows)):
            self._held.append(self._rows.popleft())
        if self.on_drain is not None:
            try:
                self._held.extend(self.on_drain())
            except Exception:  # a fault of ours must not end the journal
                logger.exception("some rows of the journal %s are lost", self._path)
        surplus = len(self._held) - self._most_held
        if surplus > 0:
            self._shed(surplus)

    def _shed(self, surplus: int) -> None:
        """Let the oldest rows go that are no results."""
        kept: deque[Row] = deque()
        for row in self._held:
            if surplus and not isinstance(row, ResultRow):
                surplus -= 1
                self._n_lost += 1
            else:
                kept.append(row)
        self._held = kept

    def _write(self) -> None:
        """Write what is held, in transactions; what fails is tried again."""
        while self._held or self._problem is not None:
            batch = list(itertools.islice(self._held, _AT_ONCE))
            try:
                self._write_batch(batch)
            except UnicodeDecodeError as error:  # SQLite quotes a garbled file in its messages
                self._trouble(error)
                return
            except _SPOILT as error:
                if not self._drop_spoilt(batch, error):  # no row is to blame
                    self._trouble(error)
                    return
                continue
            except (sqlite3.Error, OSError, RunFolderError) as error:
                self._trouble(error)
                return
            for _ in batch:
                self._held.popleft()
            if self._problem is not None:
                self._recovered()

    def _write_batch(self, batch: list[Row]) -> None:
        if not self._is_in_place():
            self._reopen()
        connection = self._connection
        assert connection is not None, "it was opened"
        connection.execute("BEGIN IMMEDIATE")
        try:
            for kind, rows in _by_kind(batch).items():
                _insert(connection, kind, rows)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _drop_spoilt(self, batch: list[Row], error: Exception) -> bool:
        """Let the rows go that no database could take; says whether there was one."""
        sound, scratch = [], sqlite3.connect(":memory:")
        for row in batch:
            try:
                scratch.execute(f"SELECT {', '.join('?' * len(row))}", row).fetchall()
                sound.append(row)
            except _SPOILT:
                logger.warning("a row cannot be written into %s: %s: %r", self._path, error, row)
        scratch.close()
        for _ in batch:
            self._held.popleft()
        self._held.extendleft(reversed(sound))
        return len(sound) < len(batch)

    def _is_in_place(self) -> bool:
        """Whether the file is the one that was opened: others may have removed it."""
        try:
            return self._connection is not None and os.stat(self._path).st_ino == self._inode  # noqa: PTH116  # twice a second
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for suffix in ("-wal", "-shm", "-journal"):
            if not self._path.exists():  # what belonged to the file that is gone
                with contextlib.suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).unlink()
        self._open()

    def _trouble(self, error: Exception) -> None:
        if self._problem is None:
            logger.warning(
                "the journal %s cannot be written: %s. Tasks go on; what happens is kept in memory "
                "and written when it can be again. Make room, or restore the right to write.",
                *(self._path, error),
            )
            self._since = time.time()
        self._problem = str(error)
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        if isinstance(error, UnicodeDecodeError) or (
            isinstance(error, sqlite3.DatabaseError)
            and any(word in str(error) for word in _NEEDS_OPENING)
        ):
            self._inode = -1  # it is opened again, which sets it aside if it is damaged

    def _recovered(self) -> None:
        gap_s = time.time() - self._since
        lost = f"; {self._n_lost} rows are lost" if self._n_lost else ""
        logger.warning("the journal %s is written again%s", self._path, lost)
        text = f"nothing could be written for {gap_s:.1f} s ({self._problem}){lost}"
        self._problem, self._n_lost, self._pause_s = None, 0, self._interval_s
        self._held.append(EventRow(None, time.time(), "journal", str(self._path), text))


def _by_kind(batch: Iterable[Row]) -> dict[type[Row], list[Row]]:
    """Sort rows by their tables: kinds that alternate would make a statement of each row."""
    found: dict[type[Row], list[Row]] = {}
    for row in batch:
        found.setdefault(type(row), []).append(row)
    return found


def _insert(connection: sqlite3.Connection, kind: type[Row], rows: Sequence[Row]) -> None:
    at = 0
    for n_rows in _CHUNKS:
        if n_rows * len(kind._fields) > _MOST_VALUES:
            continue
        statement = insertion(kind, n_rows)
        while len(rows) - at >= n_rows:
            values = itertools.chain.from_iterable(rows[at : at + n_rows])
            connection.execute(statement, tuple(values))
            at += n_rows
