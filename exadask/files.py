"""Files as arguments of tasks, known by what is in them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from exadask.errors import InvalidRequest, shown
from exadask.staging import Stamp, is_in_task, path_here, stamp_of
from exadask.texts import names_file

_PIECE_BYTES = 2**20
_SETTLED_NS = 2 * 10**9
_known: dict[tuple[str | int, ...], bytes] = {}


@dataclass(frozen=True, slots=True, init=False, repr=False)
class File:
    """A file that a task reads.

    For memoised tasks it counts what is in the file, not what it is called.

    Parameters
    ----------
    path : str or path-like
        Where it is; all nodes must see it there.
    stage : bool
        Whether each node that has a fast local folder (``scratch=`` of its pool) copies it there
        once, and tasks read the copy. It must then be what it was when the task was submitted.

    Attributes
    ----------
    origin : str
        Where it is, for everybody.

    Raises
    ------
    InvalidRequest
        There is no such file, or `stage` is neither true nor false.

    Examples
    --------
    A task whose result is remembered for as long as the file has this content:

    >>> import exadask as xd
    >>> @xd.task(memo=True)
    ... def n_lines(molecule):
    ...     with open(molecule) as file:
    ...         return len(file.readlines())

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "water.xyz"
    ...     _ = path.write_text("3 atoms")
    ...     first = xd.File(path)
    ...     n_lines(first)  # or n_lines.submit(first)
    ...     before = first.digest()
    ...     _ = path.rename(path.with_name("h2o.xyz"))
    ...     before == xd.File(path.with_name("h2o.xyz")).digest()
    1
    True

    A large one that many tasks read:

    >>> with tempfile.TemporaryDirectory() as folder, xd.Executor() as ex:
    ...     path = pathlib.Path(folder) / "grid.txt"
    ...     _ = path.write_text("1 2 3")
    ...     read = ex.submit(pathlib.Path, xd.File(path, stage=True)).result()
    ...     read == path, read.name
    (False, 'grid.txt')
    """

    origin: str
    stage: bool = field(compare=False)
    _stamp: Stamp | None = field(compare=False)

    def __init__(self, path: str | os.PathLike[str], *, stage: bool = False) -> None:
        if not isinstance(stage, bool):
            raise InvalidRequest(f"stage={shown(stage)} is not valid.", "Give True or False.")
        whole = Path(path).absolute()
        if not names_file(whole):
            raise InvalidRequest(
                f"File({os.fspath(path)!r}): there is no such file on this machine.",
                "Give the path of a file that exists, and that all nodes see.",
            )
        _fill(self, str(whole), stage, None)

    @property
    def path(self) -> str:
        """Where to read it; in a task the copy on its node, if it is staged.

        Raises
        ------
        FileChanged
            It is staged, and not what it was when the task was submitted.
        """
        return path_here(self.origin, self._stamp) if self.stage else self.origin

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"File({self.origin!r}{', stage=True' if self.stage else ''})"

    def __reduce__(self) -> tuple[Callable[..., File], tuple[str, bool, Stamp | None]]:
        stamp = None
        if self.stage:  # what a task was given, it gives to its ranks as it was
            is_given = self._stamp is not None and is_in_task()
            stamp = self._stamp if is_given else stamp_of(self.origin)
        return _arrived, (self.origin, self.stage, stamp)

    def digest(self) -> bytes:
        """Name what is in it [16 bytes]; reads it only if it has changed since.

        Raises
        ------
        InvalidRequest
            It cannot be read.
        """
        try:
            status = Path(self.origin).stat()
            known_as = (
                *(self.origin, status.st_dev, status.st_ino, status.st_size),
                *(status.st_mtime_ns, status.st_ctime_ns),
            )
            if known_as in _known:
                return _known[known_as]
            found = _hashed(self.origin)
        except OSError as error:
            raise InvalidRequest(
                f"{self!r} cannot be read: {error.strerror}.",
                "Put it back, or give another one.",
            ) from error
        # Clocks of file systems are coarse: what has just been written may be written once more
        # in the same tick (the "racy git" problem).
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            _known[known_as] = found
        return found


def _arrived(origin: str, stage: bool, stamp: Stamp | None) -> File:
    """Rebuild one that comes from elsewhere: it need not be seen here."""
    file = object.__new__(File)
    _fill(file, origin, stage, stamp)
    return file


def _fill(file: File, origin: str, stage: bool, stamp: Stamp | None) -> None:
    for name, value in (("origin", origin), ("stage", stage), ("_stamp", stamp)):
        object.__setattr__(file, name, value)


def _hashed(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.digest()
