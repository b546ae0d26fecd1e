"""Files as arguments of tasks, known by what is in them."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from exadask.errors import InvalidRequest
from exadask.texts import names_file

_PIECE_BYTES = 2**20
_SETTLED_NS = 2 * 10**9
_known: dict[tuple[str | int, ...], bytes] = {}


@dataclass(frozen=True, slots=True, init=False)
class File:
    """A file that a task reads.

    For memoised tasks it counts what is in the file, not what it is called.

    Parameters
    ----------
    path : str or path-like
        Where it is; all nodes must see it there.

    Raises
    ------
    InvalidRequest
        There is no such file.

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
    """

    path: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        whole = Path(path).absolute()
        if not names_file(whole):
            raise InvalidRequest(
                f"File({os.fspath(path)!r}): there is no such file on this machine.",
                "Give the path of a file that exists, and that all nodes see.",
            )
        object.__setattr__(self, "path", str(whole))

    def __fspath__(self) -> str:
        return self.path

    def digest(self) -> bytes:
        """Name what is in it [16 bytes]; reads it only if it has changed since.

        Raises
        ------
        InvalidRequest
            It cannot be read.
        """
        try:
            status = Path(self.path).stat()
            known_as = (
                *(self.path, status.st_dev, status.st_ino, status.st_size),
                *(status.st_mtime_ns, status.st_ctime_ns),
            )
            if known_as in _known:
                return _known[known_as]
            found = _hashed(self.path)
        except OSError as error:
            raise InvalidRequest(
                f"File({self.path!r}) cannot be read: {error.strerror}.",
                "Put it back, or give another one.",
            ) from error
        # Clocks of file systems are coarse: what has just been written may be written once more
        # in the same tick (the "racy git" problem).
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            _known[known_as] = found
        return found


def _hashed(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.digest()
