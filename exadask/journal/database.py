"""How a journal is opened, on file systems of all kinds, and what to do with a damaged one."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from exadask.errors import RunFolderError
from exadask.journal.rows import SCHEMA, TABLES, VERSION, ResultRow, insertion

logger = logging.getLogger(__name__)

_LOCAL = frozenset(
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "bcachefs"]
)
_BUSY_S, _READ_BUSY_S = 5.0, 1.0
_MAGIC = b"SQLite format 3\x00"
_LARGEST_ID = 2**53


class Numbers(NamedTuple):
    """The first numbers that a journal does not have."""

    session: int
    task: int
    function: int


def is_local(folder: Path, mounts: str | None = None) -> bool:
    """Whether a folder is on a file system where processes share memory maps and locks work.

    Parameters
    ----------
    folder : Path
        The folder.
    mounts : str, optional
        The text of ``/proc/self/mounts``; by default it is read. Where there is none: no.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return False
    best, kind = -1, ""
    target = folder.resolve()
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind in _LOCAL


def open_to_write(path: Path, *, is_shared: bool) -> sqlite3.Connection:
    """Open a journal, or make a new one; a damaged one is set aside.

    Parameters
    ----------
    path : Path
        The file.
    is_shared : bool
        Whether it is on a network: one process alone writes there, so it goes without locks, which
        Lustre and NFS may not have, and without a log beside it, which they cannot share.

    Raises
    ------
    RunFolderError
        A later version of exadask has written it.
    sqlite3.Error
        It cannot be opened or made.
    """
    connection = connect(path, mode="rwc", is_shared=is_shared)
    try:
        _require_header(path)
        _prepare(connection, path, is_shared=is_shared)
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages contradict each other")
    except sqlite3.OperationalError:
        connection.close()
        raise  # no room, or no right to write: nothing is wrong with the file
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a message may quote garbage
        connection.close()
        aside = _set_aside(path)
        connection = connect(path, mode="rwc", is_shared=is_shared)
        _prepare(connection, path, is_shared=is_shared)
        n_rows = _salvage(aside, connection)
        logger.warning(
            "the journal %s is damaged (%s): it is kept as %s, and %d rows of it could be read",
            *(path, error, aside.name, n_rows),
        )
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def opened_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal that another process may be writing.

    Raises
    ------
    RunFolderError
        There is none, or it cannot be read.
    """
    if not path.is_file():
        raise RunFolderError(
            str(path.parent),
            "it has no journal",
            "Was the run made with journal=False, or by an earlier version?",
        )
    with contextlib.ExitStack() as cleanup:
        try:
            connection = connect(path, mode="ro", timeout_s=_READ_BUSY_S)
            cleanup.callback(connection.close)
            _require_readable(connection, path)
        except (sqlite3.Error, UnicodeDecodeError):
            # It must be recovered first, or locks do not work: look at a copy.
            connection = cleanup.enter_context(_copied(path))
        yield connection


def numbers_of(connection: sqlite3.Connection) -> Numbers:
    """Find the first numbers that a journal does not have."""
    found = [
        connection.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0]
        for table in ("sessions", "tasks", "functions")
    ]
    return Numbers(*found)


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    with tempfile.TemporaryDirectory(prefix="exadask-journal-") as folder:
        copy = Path(folder) / path.name
        for suffix in ("", "-wal", "-journal"):
            part = path.with_name(path.name + suffix)
            try:
                shutil.copyfile(part, copy.with_name(copy.name + suffix))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise RunFolderError(
                    str(path.parent),
                    f"its journal cannot be read, nor copied to {folder}: {error}",
                    "Get the right to read it, or set TMPDIR to a folder with room for it.",
                ) from error
        connection = sqlite3.connect(copy)
        try:
            _require_readable(connection, path)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            connection.close()
            raise RunFolderError(
                str(path.parent),
                f"its journal cannot be read: {error}",
                "If the run goes on, try again; otherwise resume it once, which repairs the file.",
            ) from error
        try:
            yield connection
        finally:
            connection.close()


def connect(
    path: Path,
    *,
    mode: Literal["ro", "rwc"],
    is_shared: bool = False,
    timeout_s: float = _BUSY_S,
) -> sqlite3.Connection:
    """Connect to a journal, for any thread; every statement is a transaction of its own.

    Parameters
    ----------
    path : Path
        The file.
    mode : {"ro", "rwc"}
        To read it only, or to make it if need be.
    is_shared : bool
        Whether it is on a network, so that locks are not used.
    timeout_s : float
        How long to wait for another's lock [s].
    """
    vfs = "&vfs=unix-none" if is_shared else ""
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}{vfs}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=timeout_s,
    )


def _require_readable(connection: sqlite3.Connection, path: Path) -> None:
    _require_known(connection, path)
    connection.execute("SELECT count(*) FROM sessions").fetchone()


def _prepare(connection: sqlite3.Connection, path: Path, *, is_shared: bool) -> None:
    _require_known(connection, path)
    # In both ways a killed process loses nothing that was committed; a machine that loses its power
    # may lose the last transactions of a write-ahead log, and nothing of a truncated journal.
    connection.execute(f"PRAGMA journal_mode={'TRUNCATE' if is_shared else 'WAL'}")
    connection.execute(f"PRAGMA synchronous={'FULL' if is_shared else 'NORMAL'}")
    _require_columns(connection)
    connection.executescript(SCHEMA)
    for kind in TABLES:  # a garbled constraint shows only now
        try:
            connection.execute(f"EXPLAIN {insertion(kind, 1)}", [None] * len(kind._fields))
        except sqlite3.OperationalError as error:
            if "no such" not in str(error):
                raise
            raise sqlite3.DatabaseError(str(error)) from error
    connection.execute(f"PRAGMA user_version={VERSION}")


def _require_header(path: Path) -> None:
    """Look at what SQLite reports as if the file were sound and could not be written.

    A file has its format at 18 and 19, and that of its schema at 44: sqlite.org/fileformat.html
    """
    with path.open("rb") as file:
        header = file.read(100)
    if not header:
        return  # a new one
    is_sound = header.startswith(_MAGIC) and len(header) == 100
    if not is_sound or not {*header[18:20]} <= {1, 2} or header[44:47] != bytes(3):
        raise sqlite3.DatabaseError("its header is damaged")
    if header[47] > 4:
        raise sqlite3.DatabaseError("its header is damaged")


def _require_columns(connection: sqlite3.Connection) -> None:
    """Look whether the tables are ours: garbage in their definition is no error to SQLite."""
    connection.text_factory = bytes  # what is garbled may be no text
    try:
        found = _columns(connection)
    finally:
        connection.text_factory = str
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        model.text_factory = bytes
        model.executescript(SCHEMA)
        expected = _columns(model)
    wrong = [table for table in TABLES.values() if found[table] != expected[table]]
    if wrong and any(found.values()):
        raise sqlite3.DatabaseError(f"its table {wrong[0]} is not what it should be")


def _columns(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: connection.execute(f"PRAGMA table_info({table})").fetchall()
        for table in TABLES.values()
    }


def _require_known(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise RunFolderError(
            str(path.parent),
            f"its journal is of version {version}, and this exadask knows {VERSION}",
            "Use the exadask that wrote it, or a later one.",
        )


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.replace(aside)
    for suffix in ("-wal", "-journal", "-shm"):
        part = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            part.replace(aside.with_name(aside.name + suffix))
    return aside


def _salvage(aside: Path, into: sqlite3.Connection) -> int:
    """Copy what can be read of a damaged journal; returns the number of rows [rows]."""
    n_rows = 0
    with contextlib.closing(sqlite3.connect(aside)) as damaged:
        damaged.text_factory = lambda raw: raw.decode(errors="replace")
        into.execute("BEGIN")  # one for all: on a network each waits for the disk
        for kind, table in TABLES.items():
            for rows in (_forwards(damaged, table), _backwards(damaged, table)):
                for row in rows:
                    if len(row) != len(kind._fields) or not _is_sound(kind, row):
                        continue
                    with contextlib.suppress(sqlite3.IntegrityError):
                        into.execute(insertion(kind, 1).replace("OR REPLACE", "OR IGNORE"), row)
                        n_rows += into.execute("SELECT changes()").fetchone()[0]
        into.execute("COMMIT")
    return n_rows


def _forwards(damaged: sqlite3.Connection, table: str) -> Iterator[tuple[object, ...]]:
    yield from _readable(damaged, f"SELECT * FROM {table}")


def _backwards(damaged: sqlite3.Connection, table: str) -> Iterator[tuple[object, ...]]:
    order = {"attempts": "task DESC, number", "results": "digest", "allocations": "name"}
    yield from _readable(damaged, f"SELECT * FROM {table} ORDER BY {order.get(table, 'id')} DESC")


def _readable(damaged: sqlite3.Connection, query: str) -> Iterator[tuple[object, ...]]:
    with contextlib.suppress(sqlite3.Error, OverflowError, ValueError):
        yield from damaged.execute(query)


def _is_sound(kind: type, row: tuple[object, ...]) -> bool:
    if kind is not ResultRow:
        number = row[0]  # a garbled one leaves none for those that come
        return not isinstance(number, int) or 0 < number < _LARGEST_ID
    return ResultRow._make(row).is_sound
