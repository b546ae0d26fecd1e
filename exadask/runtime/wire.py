"""Messages between an agent and its child processes: pickles and file descriptors over a socket.

A frame is its length and its number of descriptors, the descriptors (``SCM_RIGHTS``), and one
pickle. Segments in a message cross as descriptors: the memory itself is never sent.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

from exadask.runtime.segment import Segment

_HEADER = struct.Struct("!QI")
_FDS_PER_CALL = 250  # the kernel takes at most 253 in one message
_RECEIVE_BYTES = 2**18
_LONGEST = 2**40  # what is longer is no frame, and would be waited for in vain


class _MessagePickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, fds: list[int]) -> None:
        super().__init__(stream, protocol=5)
        self._fds = fds

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Segment:
            self._fds.append(obj.fd)
            return _segment_from_wire, (len(self._fds) - 1, obj.nbytes)
        return NotImplemented


def _segment_from_wire(index: int, nbytes: int) -> Segment:
    """Stand for a descriptor in the pickle; the unpickler puts its own function here."""
    raise RuntimeError(f"segment {index} ({nbytes} bytes) was unpickled outside a Decoder")


def encode(message: object) -> tuple[bytes, list[int]]:
    """Turn a message into bytes and the descriptors that must travel with them."""
    stream, fds = io.BytesIO(), list[int]()
    stream.write(bytes(_HEADER.size))
    _MessagePickler(stream, fds).dump(message)
    view = stream.getbuffer()
    _HEADER.pack_into(view, 0, view.nbytes - _HEADER.size, len(fds))
    view.release()
    return stream.getvalue(), fds


def send_head(sock: socket.socket, data: bytes | memoryview, fds: list[int]) -> int:
    """Send what fits in one go, descriptors first; return the number of bytes sent.

    Descriptors that were sent are removed from the list: they must not be sent again.

    Raises
    ------
    BlockingIOError
        The socket does not block, and its buffer is full: nothing was sent.
    OSError
        The other side is gone.
    """
    sent = 0
    try:
        while fds:
            sent += socket.send_fds(sock, [data[sent : sent + 1]], fds[:_FDS_PER_CALL])
            del fds[:_FDS_PER_CALL]
        return sent + sock.send(data[sent:])
    except BlockingIOError:
        if sent == 0:
            raise
        return sent


def send_blocking(sock: socket.socket, message: object) -> None:
    """Send a message and wait until the kernel has all of it."""
    data, fds = encode(message)
    sock.sendall(data[send_head(sock, data, fds) :])


class Decoder:
    """Puts frames together from what arrives on a socket, which may be any piece of them."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def receive(self, sock: socket.socket) -> bool:
        """Take what the socket has; return False when the other side has closed it.

        Raises
        ------
        BlockingIOError
            The socket does not block, and has nothing.
        """
        try:
            data, fds, _, _ = socket.recv_fds(sock, _RECEIVE_BYTES, _FDS_PER_CALL)
        except ConnectionResetError:
            return False
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds.extend(fds)
        self._bytes += data
        return bool(data)

    def messages(self) -> Iterator[Any]:
        """Give every complete message.

        Raises
        ------
        Exception
            What has arrived is no message: nothing that follows is one.
        """
        while len(self._bytes) >= _HEADER.size:
            length, n_fds = _HEADER.unpack_from(self._bytes)
            if length > _LONGEST or n_fds > length:
                raise ValueError(f"no frame has {length} bytes and {n_fds} descriptors")
            end = _HEADER.size + length
            if len(self._bytes) < end:
                return
            body = bytes(memoryview(self._bytes)[_HEADER.size : end])
            del self._bytes[:end]
            yield self._decoded(body, [self._fds.popleft() for _ in range(n_fds)])

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self._fds:
            os.close(self._fds.popleft())

    @staticmethod
    def _decoded(body: bytes, fds: list[int]) -> Any:
        return _MessageUnpickler(io.BytesIO(body), fds).load()


class _MessageUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, fds: list[int]) -> None:
        super().__init__(stream)
        self._fds = fds

    def find_class(self, module: str, name: str) -> Any:
        if name == "_segment_from_wire":
            return partial(_received_segment, self._fds)
        return super().find_class(module, name)


def _received_segment(fds: list[int], index: int, nbytes: int) -> Segment:
    return Segment(fds[index], nbytes)
