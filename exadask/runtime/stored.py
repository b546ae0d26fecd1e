"""Packed objects in files: each complete or not there, and never a wrong one.

A file is written under a temporary name and renamed. Its layout::

    magic      "exadask-result 1" and a newline
    header     its length (8 bytes, little endian), then JSON: key, facts, sizes
    payload    the head, then the segments
    checksum   BLAKE2b of all before (32 bytes)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from exadask.runtime.parcel import Parcel
from exadask.runtime.segment import Segment

logger = logging.getLogger(__name__)

_MAGIC = b"exadask-result 1\n"
_CHECKSUM_BYTES = 32
_LONGEST_HEADER = 2**26
_PIECE_BYTES = 2**24
_SEGMENT_BYTES = 2**20  # from here on, a head is not copied whenever it is sent
_SHORTEST_PREFIX = 4
_DRAFT = ".draft-"
_DRAFT_AGE_S = 3600.0


class _Damaged(Exception):
    """A file does not hold what it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """One file.

    Parameters
    ----------
    key : str
        What it is the result of, in hexadecimal.
    path : Path
        Where it is.
    nbytes : int
        Its size [bytes].
    used : float
        When it was written, or read last [s since the epoch].
    facts : mapping
        What was said about it.
    """

    key: str
    path: Path
    nbytes: int
    used: float
    facts: Mapping[str, Any]


class StoredResults:
    """A folder of results; several processes may use it at once.

    Parameters
    ----------
    folder : Path
        The folder; it is made when the first result is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: set[Path] = set()

    def path_of(self, key: bytes) -> Path:
        """Say where the result of a key is, or would be."""
        name = key.hex()
        return self.folder / name[:2] / name

    def write(self, key: bytes, parcel: Parcel, facts: Mapping[str, Any]) -> int:
        """Keep a result.

        Returns
        -------
        int
            The size of its file [bytes].

        Raises
        ------
        OSError
            It cannot be written; nothing is left behind.
        """
        path = self.path_of(key)
        for folder in (self.folder, path.parent):  # `parents=True` would not give them this mode
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True, mode=0o700)
        fd, draft = tempfile.mkstemp(prefix=_DRAFT, dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                nbytes = _write(file, key, parcel, facts)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(draft).unlink()
            raise
        return nbytes

    def read(self, key: bytes) -> tuple[Parcel, dict[str, Any]] | None:
        """Give a result and the facts about it; None if it is not there, or damaged.

        A damaged file is removed, so that the result is computed again.
        """
        path = self.path_of(key)
        try:
            with path.open("rb") as file:
                found = _read(file, key)
        except FileNotFoundError:
            return None
        except (OSError, _Damaged) as error:
            if path not in self._told:
                self._told.add(path)
                logger.warning("the stored result %s cannot be used: %s", path, error)
            if isinstance(error, _Damaged):
                with contextlib.suppress(OSError):
                    path.unlink()
            return None
        with contextlib.suppress(OSError):  # it may be somebody else's, or be removed just now
            os.utime(path)  # it is in use: the garbage collection spares it
        return found

    def entries(self) -> Iterator[StoredResult]:
        """Give what is stored; what is no result, or damaged at its head, is left out."""
        for path in sorted(self.folder.glob("??/*")):
            if path.name.startswith(_DRAFT):
                continue
            try:
                status = path.stat()
                with path.open("rb") as file:
                    header = _read_header(file, hashlib.blake2b(digest_size=_CHECKSUM_BYTES))
            except (OSError, _Damaged):
                continue
            yield StoredResult(
                key=path.name,
                path=path,
                nbytes=status.st_size,
                used=status.st_mtime,
                facts=header["facts"],
            )

    def remove(self, wanted: str) -> list[StoredResult]:
        """Remove the results of the tasks that are called so, or whose key begins so; gives them.

        Names go first, since some ("add", "face") also begin keys; four characters of a key must
        be given.
        """
        entries = list(self.entries())
        chosen = [one for one in entries if one.facts.get("name") == wanted]
        if not chosen and len(wanted) >= _SHORTEST_PREFIX:
            chosen = [one for one in entries if one.key.startswith(wanted.lower())]
        return [one for one in chosen if _is_removed(one.path)]

    def collect(
        self, *, older_than_s: float | None = None, most_bytes: int | None = None
    ) -> list[StoredResult]:
        """Remove what has not been used for long, and the least used beyond a size; gives it."""
        now = time.time()
        self._remove_drafts(now)
        kept = sorted(self.entries(), key=lambda one: one.used, reverse=True)
        total = sum(one.nbytes for one in kept)
        chosen = []
        while kept:
            is_old = older_than_s is not None and now - kept[-1].used > older_than_s
            if not is_old and (most_bytes is None or total <= most_bytes):
                break
            chosen.append(kept.pop())
            total -= chosen[-1].nbytes
        return [one for one in chosen if _is_removed(one.path)]

    def _remove_drafts(self, now: float) -> None:
        """Remove what killed processes left half written."""
        for path in self.folder.glob(f"??/{_DRAFT}*"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _DRAFT_AGE_S:
                    path.unlink()


def _write(file: BinaryIO, key: bytes, parcel: Parcel, facts: Mapping[str, Any]) -> int:
    digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    head = parcel.head if isinstance(parcel.head, bytes) else parcel.head.view(read_only=True)
    header = json.dumps(
        {
            "key": key.hex(),
            "facts": dict(facts),
            "head": len(head),
            "segments": [one.nbytes for one in parcel.segments],
            "slices": parcel.slices,
        }
    ).encode()
    views = (segment.view(read_only=True) for segment in parcel.segments)
    nbytes = 0
    for part in (_MAGIC, len(header).to_bytes(8, "little"), header, head, *views):
        digest.update(part)
        file.write(part)
        nbytes += len(part)
    file.write(digest.digest())
    return nbytes + _CHECKSUM_BYTES


def _read(file: BinaryIO, key: bytes) -> tuple[Parcel, dict[str, Any]]:
    digest = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    header = _read_header(file, digest)
    sizes = [header["head"], *header["segments"]]
    if header["key"] != key.hex():
        raise _Damaged("it is the result of something else")
    if os.fstat(file.fileno()).st_size != file.tell() + sum(sizes) + _CHECKSUM_BYTES:
        raise _Damaged("it has another length than it says")
    is_large = sizes[0] >= _SEGMENT_BYTES
    head = (_segment if is_large else _exactly)(file, sizes[0], digest)
    segments = [_segment(file, size, digest) for size in sizes[1:]]
    if file.read(_CHECKSUM_BYTES) != digest.digest():
        raise _Damaged("its checksum is wrong")
    slices = tuple((int(index), int(start), int(size)) for index, start, size in header["slices"])
    return Parcel(head, tuple(segments), slices), header["facts"]


def _read_header(file: BinaryIO, digest: Any) -> dict[str, Any]:
    if _exactly(file, len(_MAGIC), digest) != _MAGIC:
        raise _Damaged("it is no result, or of another version")
    length = int.from_bytes(_exactly(file, 8, digest), "little")
    if length > _LONGEST_HEADER:
        raise _Damaged("its header is too long")
    try:
        header = json.loads(_exactly(file, length, digest))
        sizes = [header["head"], *header["segments"]]
        is_sound = (
            all(isinstance(size, int) and size >= 0 for size in sizes)
            and all(size > 0 for size in sizes[1:])
            and all(len(one) == 3 and isinstance(sum(one), int) for one in header["slices"])
            and isinstance(header["key"], str)
            and isinstance(header["facts"], dict)
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Damaged("its header makes no sense") from error
    if not is_sound:
        raise _Damaged("its header makes no sense")
    return dict(header)


def _exactly(file: BinaryIO, nbytes: int, digest: Any) -> bytes:
    data = file.read(nbytes)
    if len(data) != nbytes:
        raise _Damaged("it is too short")
    digest.update(data)
    return data


def _segment(file: BinaryIO, nbytes: int, digest: Any) -> Segment:
    """Read into shared memory; never all of it at once."""
    starts = range(0, nbytes, _PIECE_BYTES)
    pieces = (_exactly(file, min(_PIECE_BYTES, nbytes - start), digest) for start in starts)
    return Segment.of_pieces(nbytes, pieces)


def _is_removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the stored result %s cannot be removed: %s", path, error)
        return False
    return True
