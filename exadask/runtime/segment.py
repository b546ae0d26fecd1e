"""Blocks of shared memory without a name: nothing is left behind, however a process ends.

A segment is a file descriptor of memory (``memfd_create``; elsewhere an unlinked file). Processes
that map it see the same physical pages, and what one of them writes becomes its own private copy,
so a function may change its arguments without anyone else noticing.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import pickle
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_PROCESS = os.urandom(8)
_serial = itertools.count()
_live: weakref.WeakValueDictionary[tuple[bytes, int], Segment] = weakref.WeakValueDictionary()
_of_buffer: weakref.WeakValueDictionary[tuple[int, int], Segment] = weakref.WeakValueDictionary()
_mode = threading.local()


class Segment:
    """A block of shared memory.

    Parameters
    ----------
    fd : int
        File descriptor of the memory; the segment owns it from now on.
    nbytes : int
        Size [bytes], > 0.
    """

    __slots__ = ("__weakref__", "_reading", "fd", "nbytes", "token")

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd, self.nbytes = fd, nbytes
        self._reading: memoryview | None = None
        self.token = (_PROCESS, next(_serial))
        _live[self.token] = self

    @classmethod
    def copy_of(cls, *buffers: memoryview) -> Segment:
        """Copy bytes into new shared memory: the only copy on their way to other processes."""
        segment = cls(_anonymous_file(), sum(data.nbytes for data in buffers))
        os.truncate(segment.fd, segment.nbytes)
        start = 0
        for data in buffers:
            written = 0
            while written < data.nbytes:
                part = data[written : written + 2**30]
                written += os.pwrite(segment.fd, part, start + written)
            start += data.nbytes
        return segment

    @classmethod
    def of_pieces(cls, nbytes: int, pieces: Iterable[bytes]) -> Segment:
        """Write what comes piece by piece into new shared memory."""
        segment, start = cls(_anonymous_file(), nbytes), 0
        os.truncate(segment.fd, nbytes)
        for piece in pieces:
            os.pwrite(segment.fd, piece, start)
            start += len(piece)
        return segment

    @classmethod
    def shared_copy_of(cls, data: memoryview) -> Segment:
        """Like `copy_of`, but an unchanged buffer that was copied before is not copied again.

        The address alone proves nothing (the user may have written to the array since), so the
        bytes are compared.
        """
        address = _address(data)
        if address is None:
            return cls.copy_of(data)
        known = _of_buffer.get((address, data.nbytes))
        if known is not None and known._holds(address):
            return known
        segment = _of_buffer[address, data.nbytes] = cls.copy_of(data)
        return segment

    def view(self, *, read_only: bool = False) -> memoryview:
        """Map the memory: readable and writable, where writing makes private copies of pages."""
        protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
        return memoryview(mmap.mmap(self.fd, self.nbytes, flags=mmap.MAP_PRIVATE, prot=protection))

    def _holds(self, address: int) -> bool:
        if self._reading is None:
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            self._reading = memoryview(
                mmap.mmap(self.fd, self.nbytes, flags=flags, prot=mmap.PROT_READ)
            )
        same: int = _memcmp(_address(self._reading), address, self.nbytes)
        return same == 0

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def __sizeof__(self) -> int:
        return self.nbytes

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Segment], tuple[object, ...]]:
        if getattr(_mode, "within_process", False):
            return _same, (self.token,)
        if protocol < 5:  # Dask's scheduler speaks protocol 4, without buffers out of band
            return _rebuilt, (self.token, self.nbytes, bytes(self.view()))
        return _rebuilt, (self.token, self.nbytes, pickle.PickleBuffer(self.view()))


@contextlib.contextmanager
def pickled_within_process() -> Iterator[None]:
    """Let segments pickled in this block be found again, not copied: nothing leaves the process.

    Whoever pickles must keep the segments alive until they have been unpickled.
    """
    _mode.within_process = True
    try:
        yield
    finally:
        _mode.within_process = False


def _same(token: tuple[bytes, int]) -> Segment:
    return _live[token]


def _rebuilt(token: tuple[bytes, int], nbytes: int, data: object) -> Segment:
    known = _live.get(token)
    return known if known is not None else Segment.copy_of(memoryview(data))  # type: ignore[arg-type]  # a buffer


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("exadask", os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix="exadask-")
    os.unlink(path)  # noqa: PTH108  # the name goes at once; there is no Path to speak of
    return fd


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def _address(data: memoryview) -> int | None:
    """Where a buffer lies; only NumPy can tell it for memory that is read-only."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    address: int = numpy.frombuffer(data, dtype="u1").__array_interface__["data"][0]
    return address
