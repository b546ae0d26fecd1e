"""Shared memory between an agent and a child process that runs a bundle of many short calls.

The child says how far it is and what came out, the agent says what need not be started any more,
and neither makes a system call. The memory has no name (as that of `exadask.runtime.segment`): the
child inherits its descriptor, and nothing is left behind however the two end.

Layout, all words native and 8 bytes, each writer on cache lines of its own::

    offset    content                                                          written by
         0    index of the call that was begun last, plus one; 0: none         child
        64    head: bytes ever put into the outbox                             child
       128    tail: bytes ever taken out of it                                 agent
       256    MAX_CALLS bytes, one per call: 1 means "do not start it"         agent
      8448    MAX_CALLS floats: when a call was begun [s]                      child
     73984    MAX_CALLS integers: length of stdout when it was begun [bytes]   child
    139520    MAX_CALLS integers: the same of stderr [bytes]                   child
    205056    the outbox: a ring of bytes, to the end of the memory            child

Words are written through `memoryview`, which stores each of them in one go. ``struct.pack_into``
does not: it fills its target with zeros first, which the other process can see (8 of 100 reads of
a counter that never changes, when measured).

A frame in the outbox is its length and a checksum (4 bytes each), and the payload; it goes on at
the start of the ring where that ends. Head and tail only grow, so that head - tail is what is in
the ring, full or empty. The head moves when the frame is complete: a child that is killed takes
nothing with it whose `Board.put` had returned, and leaves nothing half done. CPUs that order memory
weakly (ARM) may show the head before the frame, hence the checksum. It starts from the frame's end
position, so that an old frame which still lies in the same place of the ring never passes for a new
one, nor does fresh memory.

Imported in every child process, so it imports nothing heavy.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

from exadask.runtime.segment import _anonymous_file

MAX_CALLS = 8192
"""How many calls a bundle may have: their indices are smaller."""

_BEGUN, _HEAD, _TAIL = 0, 8, 16  # as indices of words
_DROPS_AT = 256
_STARTS_AT = _DROPS_AT + MAX_CALLS
_OUTS_AT = _STARTS_AT + 8 * MAX_CALLS
_ERRS_AT = _OUTS_AT + 8 * MAX_CALLS
_RING_AT = _ERRS_AT + 8 * MAX_CALLS
_FRAME = struct.Struct("=II")
_FRAME_HEAD_BYTES = _FRAME.size
_LOW_BITS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a bundle is.

    Parameters
    ----------
    index : int
        The call that was begun last; -1: none yet.
    start_s : float
        When it was begun, on the clock of `time.monotonic` [s].
    out, err : int
        How much had been written to stdout and stderr before it [bytes].
    """

    index: int
    start_s: float
    out: int
    err: int


class Board:
    """The shared memory, seen from either side; made by `Board.create` or `Board.attach`.

    Not thread-safe. The child alone calls `begin` and `put`; the agent alone calls the others, and
    `reset` only while the child has nothing to do. Nothing here blocks.

    Parameters
    ----------
    fd : int
        Descriptor of the memory; the board owns it from now on.

    Attributes
    ----------
    fd : int
        The descriptor, for the child to inherit; -1 once it is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        nbytes = os.fstat(fd).st_size
        self._memory = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED)
        self._ring_bytes = nbytes - _RING_AT
        whole = memoryview(self._memory)
        self._words = whole[:_DROPS_AT].cast("q")
        self._drops = whole[_DROPS_AT:_STARTS_AT]
        self._starts_s = whole[_STARTS_AT:_OUTS_AT].cast("d")
        self._outs = whole[_OUTS_AT:_ERRS_AT].cast("q")
        self._errs = whole[_ERRS_AT:_RING_AT].cast("q")
        self._views = (
            *(self._words, self._drops, self._starts_s, self._outs, self._errs),
            whole,
        )

    @classmethod
    def create(cls, ring_bytes: int = 2**20) -> Board:
        """Make the memory: the agent's side.

        Parameters
        ----------
        ring_bytes : int
            Size of the outbox [bytes], > 0. A frame takes its length and 8 bytes more.

        Raises
        ------
        OSError
            The system has no memory, or no descriptor, to give.
        """
        fd = _anonymous_file()
        try:
            os.truncate(fd, _RING_AT + ring_bytes)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Board:
        """Map the memory that the agent made: the child's side.

        Parameters
        ----------
        fd : int
            The inherited descriptor. It is closed: no program that the child starts gets it.

        Raises
        ------
        OSError
            The descriptor is none of an open file.
        """
        board = cls(fd)
        board.close_fd()
        return board

    def close_fd(self) -> None:
        """Close the descriptor, once the child has it; the memory stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Let the memory go; nothing else may be called afterwards."""
        self.close_fd()
        for view in self._views:
            view.release()
        self._memory.close()

    def begin(self, index: int, start_s: float, out: int, err: int) -> bool:
        """Say that a call begins now, unless it turns out to be dropped.

        Parameters
        ----------
        index : int
            The call, < `MAX_CALLS`; each only once in a bundle.
        start_s : float
            The time on the clock of `time.monotonic` [s].
        out, err : int
            How much has been written to stdout and stderr [bytes].

        Returns
        -------
        bool
            Whether it begins. If not, the agent sees again what had begun before.

        Raises
        ------
        IndexError
            The index is too large.
        """
        self._outs[index] = out
        self._errs[index] = err
        self._starts_s[index] = start_s
        # The index comes last, and each call has a record of its own that nobody writes again:
        # whoever sees the index finds the record complete, however late it is read. So an old
        # start never meets a new index, and the reader has nothing to compare and retry.
        before, self._words[_BEGUN] = self._words[_BEGUN], index + 1
        if self._drops[index]:  # to be asked only now, see `drop`
            self._words[_BEGUN] = before
            self._starts_s[index] = 0.0
            return False
        return True

    def progress(self) -> Progress:
        """Read how far the child is; any time, even if it was killed while it wrote.

        Returns
        -------
        Progress
            Of the call that was begun last. With index -1 and the present time if there is none.
        """
        index = self._words[_BEGUN] - 1
        if index < 0:
            return Progress(-1, time.monotonic(), 0, 0)
        return self.begun(index)

    def begun(self, index: int) -> Progress:
        """Read the record of a call that has been begun, this one or an earlier one.

        Parameters
        ----------
        index : int
            The call, at most ``progress().index``.
        """
        # Zero, as `reset` left it: a CPU with weak memory order has shown the index before the
        # start, so the call has just begun. It must never look older than it is: its time limit
        # would end it.
        start_s = self._starts_s[index] or time.monotonic()
        return Progress(index, start_s, self._outs[index], self._errs[index])

    def drop(self, indices: Iterable[int]) -> None:
        """Mark calls that must not be started any more.

        The child says that a call begins, and then looks here. So some milliseconds later, when
        each side sees what the other had written, marked calls beyond ``progress().index`` will
        never start. Of those up to it none has been left out if the last one was marked first.

        Parameters
        ----------
        indices : iterable of int
            The calls, < `MAX_CALLS`.

        Raises
        ------
        IndexError
            An index is too large.
        """
        for index in indices:
            self._drops[index] = 1

    def reset(self) -> None:
        """Forget progress and drops, before the order of the next bundle; the outbox stays."""
        n_begun = max(self._words[_BEGUN], 0)
        self._words[_BEGUN] = 0
        self._memory[_DROPS_AT:_STARTS_AT] = bytes(MAX_CALLS)
        self._memory[_STARTS_AT : _STARTS_AT + 8 * n_begun] = bytes(8 * n_begun)

    def put(self, frame: bytes) -> bool:
        """Put a frame into the outbox.

        Parameters
        ----------
        frame : bytes
            Any content, empty included.

        Returns
        -------
        bool
            Whether it is in. If not, there is no room (perhaps ever), and nothing was written.
        """
        words, ring_bytes = self._words, self._ring_bytes
        head = words[_HEAD]
        length = len(frame)
        end = head + _FRAME_HEAD_BYTES + length
        if end - words[_TAIL] > ring_bytes:
            return False
        data = _FRAME.pack(length, crc32(frame, end & _LOW_BITS)) + frame
        start = head % ring_bytes
        first = _RING_AT + start
        if start + len(data) <= ring_bytes:
            self._memory[first : first + len(data)] = data
        else:
            n_first = ring_bytes - start
            self._memory[first:] = data[:n_first]
            self._memory[_RING_AT : _RING_AT + len(data) - n_first] = data[n_first:]
        words[_HEAD] = end
        return True

    def take(self) -> list[bytes]:
        """Take the frames that are in the outbox.

        Returns
        -------
        list of bytes
            In the order in which they were put; all whose `put` had returned, but on CPUs with
            weak memory order the last ones may take until the next time.
        """
        tail = self._words[_TAIL]
        data = self._between(tail, self._words[_HEAD])
        frames, at, size = list[bytes](), 0, len(data)
        while at < size:
            if size - at < _FRAME_HEAD_BYTES:
                break
            length, checksum = _FRAME.unpack_from(data, at)
            end = at + _FRAME_HEAD_BYTES + length
            frame = data[at + _FRAME_HEAD_BYTES : end]
            if end > size or crc32(frame, (tail + end) & _LOW_BITS) != checksum:
                break
            frames.append(frame)
            at = end
        # Only now, when the copies have proved good, may the child write there again.
        self._words[_TAIL] = tail + at
        return frames

    def _between(self, tail: int, head: int) -> bytes:
        size, start = head - tail, tail % self._ring_bytes
        first = _RING_AT + start
        if start + size <= self._ring_bytes:
            return self._memory[first : first + size]
        return self._memory[first:] + self._memory[_RING_AT : first + size - self._ring_bytes]
