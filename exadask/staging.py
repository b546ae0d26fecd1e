"""Copies of input files on the nodes that read them: each is made once per node.

Processes of tasks call this. Their agent tells them of a folder on the node's own disk by a
variable. There a copy lies under the digest of its content and its own name; beside it lies, for
each file that was copied, a link to its copy, by where the file is, its size and when it was
written. Who finds the link does not touch the file itself.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from exadask.errors import FileChanged

logger = logging.getLogger(__name__)

VARIABLE = "EXADASK_STAGE"
"""Tells the processes of tasks where copies lie on their node; empty: there is no such place."""

_PIECE_BYTES = 2**20
_DIGEST_BYTES = 16
_READABLE = 0o555
_given_up: set[tuple[str, str]] = set()


class Stamp(NamedTuple):
    """How a file is recognised as the same without reading it: size [bytes] and time [ns]."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Take it from what the system says of a file."""
        return cls(status.st_size, status.st_mtime_ns)


def is_in_task() -> bool:
    """Whether this is the process of a task."""
    return VARIABLE in os.environ


def stamp_of(path: str) -> Stamp | None:
    """Give the stamp of a file as it is now; None: there is none."""
    try:
        return Stamp.of(os.stat(path))  # noqa: PTH116  # per argument: keep it cheap
    except OSError:
        return None


def path_here(path: str, stamp: Stamp | None) -> str:
    """Say under which path a task reads a file: that of the node's copy, which is made if need be.

    Parameters
    ----------
    path : str
        Where the file is.
    stamp : Stamp, optional
        What it was when the task was submitted. None: what it is now.

    Returns
    -------
    str
        The path of the copy; the file's own where this is no task, or where there is no room.

    Raises
    ------
    FileChanged
        It is not what it was, or it cannot be read.

    Examples
    --------
    >>> path_here("/shared/grid.h5", None)  # in no task
    '/shared/grid.h5'
    """
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return path
    if folder and (folder, path) not in _given_up:
        try:
            return _copy_of(path, stamp, Path(folder))
        except OSError as error:
            _given_up.add((folder, path))
            logger.warning(
                "the file %s is read where it is: it cannot be copied to this node's %s (%s). Say "
                "another scratch= of the pool, or leave stage=True out.",
                *(path, folder, error.strerror or error),
            )
    with _opened(path, stamp):
        return path


def _copy_of(path: str, stamp: Stamp | None, folder: Path) -> str:
    if stamp is None:
        with _opened(path, None) as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
    text = b"%d %d %s" % (*stamp, os.fsencode(path))
    link = folder / hashlib.blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()
    found = _linked(link)
    if found is None:
        folder.mkdir(mode=0o700, exist_ok=True)
        with _turn(link.with_suffix(".lock")) as draft:
            found = _linked(link) or _copied(path, stamp, link, draft)
    return found


def _linked(link: Path) -> str | None:
    """Give the copy that a link leads to, if both are there."""
    try:
        copy = link.parent / link.readlink()
    except OSError:
        return None
    return str(copy) if copy.exists() else None


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[Path]:
    """Wait until no other process copies this file; give the name of a draft for it.

    Where the disk knows no locks several may copy at once, which costs time and harms nobody.
    """
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            draft = lock.with_suffix(
                ".draft"
            )  # one that was killed has left it: it is written anew
        except OSError:
            draft = lock.with_suffix(f".{os.getpid()}-{threading.get_ident()}.draft")
        try:
            yield draft
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a process forked meanwhile would keep it
                fcntl.flock(file, fcntl.LOCK_UN)


def _copied(path: str, stamp: Stamp, link: Path, draft: Path) -> str:
    """Copy a file, and publish the copy and the link to it; each appears as a whole."""
    _require_room(link.parent, stamp.size)
    with _opened(path, stamp) as source:
        draft.unlink(missing_ok=True)
        with draft.open("xb") as target:
            digest, n_bytes = _transferred(source, target, path)
            status = os.fstat(source.fileno())
            if n_bytes != stamp.size or Stamp.of(status) != stamp:
                raise FileChanged(path, "it changed while it was copied")
            target.flush()
            if os.fstat(target.fileno()).st_size != n_bytes:
                raise OSError(errno.EIO, "the copy has another size")
            os.fchmod(target.fileno(), status.st_mode & _READABLE | 0o400)
            os.utime(target.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    copy = link.parent / digest / Path(path).name
    copy.parent.mkdir(mode=0o700, exist_ok=True)
    if not copy.exists():  # otherwise another file has the same content and the same name
        draft.replace(copy)
    draft.unlink(missing_ok=True)
    draft.symlink_to(copy.relative_to(link.parent))
    draft.replace(link)
    return str(copy)


def _require_room(folder: Path, n_bytes: int) -> None:
    """Do not begin what cannot end: a copy that fails has taken its time, and all of the room."""
    disk = os.statvfs(folder)
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _transferred(source: BinaryIO, target: BinaryIO, path: str) -> tuple[str, int]:
    """Copy the content; give its digest, and how many bytes it has."""
    digest, n_bytes = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
    while True:
        try:
            piece = source.read(_PIECE_BYTES)
        except OSError as error:
            raise FileChanged(path, _unreadable(error)) from error
        if not piece:
            return digest.hexdigest(), n_bytes
        digest.update(piece)
        target.write(piece)
        n_bytes += len(piece)


@contextlib.contextmanager
def _opened(path: str, stamp: Stamp | None) -> Iterator[BinaryIO]:
    """Open a file, if it is what it was.

    It is asked after it was opened: network file systems then ask their server, and not before.
    """
    try:
        file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # closed below
    except OSError as error:
        raise FileChanged(path, _unreadable(error)) from error
    with file:
        now = Stamp.of(os.fstat(file.fileno()))
        if stamp is not None and now != stamp:
            raise FileChanged(path, _difference(stamp, now))
        yield file


def _unreadable(error: OSError) -> str:
    return f"node {socket.gethostname()} cannot read it ({error.strerror})"


def _difference(before: Stamp, now: Stamp) -> str:
    if before.size != now.size:
        return f"it had {before.size:,} bytes, and has {now.size:,}"
    return f"it was written at {_time_of(before)}, and again at {_time_of(now)}"


def _time_of(stamp: Stamp) -> str:
    seconds, rest_ns = divmod(stamp.mtime_ns, 10**9)
    whole = dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
    return f"{whole:%Y-%m-%d %H:%M:%S}.{rest_ns:09d} UTC"
