"""One process alone writes into a run's folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

import psutil

from exadask.errors import RunFolderError

_NAME = "journal.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class RunLock:
    """Held while a process writes; the kernel frees it however the process ends.

    Parameters
    ----------
    path : Path
        The file; it says who holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @classmethod
    def of(cls, folder: Path) -> RunLock:
        """Take that of a run's folder; see `acquire`."""
        lock = cls(folder / _NAME)
        lock.acquire()
        return lock

    def acquire(self) -> None:
        """Take it.

        Raises
        ------
        RunFolderError
            Another process has it, or the file cannot be made.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunFolderError(
                str(self._path.parent),
                error.strerror or str(error),
                "Choose one that you can write: run_folder=, or EXADASK_RUN_FOLDER.",
            ) from error
        try:
            self._lock(fd)
            with contextlib.suppress(OSError):  # a full disk: who holds it is only good to know
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(_me()).encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Let it go."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._busy(_read(fd)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise RunFolderError(
                    str(self._path.parent),
                    f"{self._path.name} cannot be locked: {error.strerror or error}",
                    "Choose one on another file system: run_folder=, or EXADASK_RUN_FOLDER.",
                ) from error
            holder = _read(fd)  # a file system without locks: believe what the file says
            if holder and not _is_gone(holder):
                raise self._busy(holder) from error

    def _busy(self, holder: dict[str, object]) -> RunFolderError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return RunFolderError(
            str(self._path.parent),
            f"{who} writes there",
            f"End it first; if it is surely gone, remove {self._path}.",
        )


def _me() -> dict[str, object]:
    began = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": began}


def _read(fd: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether the process that a lock names has surely ended; of another host nobody can say."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(str(holder.get("pid"))))
        return abs(process.create_time() - float(str(holder.get("began")))) > 1
    except (psutil.Error, ValueError):
        return True
