"""Objects on their way between processes: packed once, unpacked only by who uses them.

The scheduler and the agents never unpack a parcel, so they need neither the user's modules nor
the memory, and an object that cannot be unpickled harms nobody but its task.
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

from exadask.runtime.segment import Segment

_MAX_SEGMENTS = 64
_PLAIN_KINDS = frozenset({int, float, bool, complex, type(None)})
_PLAIN_TEXTS = frozenset({str, bytes})
_PLAIN_LENGTH = 1024
_LIGHT_BYTES = 2**16

_inputs: contextvars.ContextVar[Sequence[Callable[[], Any]]] = contextvars.ContextVar(
    "exadask_inputs"
)


def is_plain(value: object) -> bool:
    """Whether a value is small, can never change, and means the same in every process."""
    kind = type(value)
    if kind in _PLAIN_KINDS:
        return True
    if kind in _PLAIN_TEXTS:
        return len(value) <= _PLAIN_LENGTH  # type: ignore[arg-type]  # it is a text
    if kind is tuple and len(value) <= _PLAIN_LENGTH:  # type: ignore[arg-type]  # it is a tuple
        return all(type(part) in _PLAIN_KINDS for part in value)  # type: ignore[attr-defined]
    return False


class Parcel:
    """A pickled object; its large buffers lie in shared memory.

    Parameters
    ----------
    head : bytes or Segment
        The pickle stream.
    segments : tuple of Segment
        The memory of the large buffers.
    slices : tuple of (int, int, int)
        For each out-of-band buffer of the stream: index of its segment, offset [bytes],
        length [bytes].
    shared : str
        Names a value that all calls of a process share, and none may change. Empty: each call gets
        its own.
    """

    __slots__ = ("head", "segments", "shared", "slices")

    def __init__(
        self,
        head: bytes | Segment,
        segments: tuple[Segment, ...] = (),
        slices: tuple[tuple[int, int, int], ...] = (),
        shared: str = "",
    ) -> None:
        self.head, self.segments, self.slices, self.shared = head, segments, slices, shared

    @property
    def nbytes(self) -> int:
        """Size of everything in it [bytes]."""
        head = len(self.head) if isinstance(self.head, bytes) else self.head.nbytes
        return head + sum(segment.nbytes for segment in self.segments)

    @property
    def is_small(self) -> bool:
        """Whether all of it is one byte string, with nothing in shared memory."""
        return isinstance(self.head, bytes) and not self.segments

    @property
    def is_light(self) -> bool:
        """Whether it may as well travel with others as alone."""
        return self.is_small and self.nbytes <= _LIGHT_BYTES

    def shared_as(self, name: str) -> Parcel:
        """Give the same content under a name, for all calls of a process together."""
        return Parcel(self.head, self.segments, self.slices, name)

    def digest(self) -> bytes:
        """Name the content: equal parcels of this process have equal names [16 bytes]."""
        head = self.head if isinstance(self.head, bytes) else repr(self.head.token).encode()
        tokens = repr([segment.token for segment in self.segments]).encode()
        return hashlib.blake2b(head + tokens, digest_size=16).digest()

    def load(self, inputs: Sequence[Callable[[], Any]] = ()) -> Any:
        """Rebuild the object.

        Parameters
        ----------
        inputs : sequence of callable
            For each future that was packed inside, in order: what gives its value.

        Raises
        ------
        Exception
            Whatever the object's own unpickling raises.
        """
        is_shared = bool(self.shared)
        views = [segment.view(read_only=is_shared) for segment in self.segments]
        buffers = [views[index][start : start + size] for index, start, size in self.slices]
        stream = self.head if isinstance(self.head, bytes) else self.head.view()
        token = _inputs.set(inputs)
        try:
            return pickle.loads(stream, buffers=buffers)
        finally:
            _inputs.reset(token)

    def __sizeof__(self) -> int:
        return self.nbytes

    def __reduce__(self) -> tuple[type[Parcel], tuple[object, ...]]:
        return Parcel, (self.head, self.segments, self.slices, self.shared)

    def __repr__(self) -> str:
        return f"<Parcel of {self.nbytes} bytes>"


class Packer:
    """Packs objects; remembers the futures it met, so that they become inputs of the task.

    Parameters
    ----------
    is_future : callable
        Whether an object is a future: it is replaced by the value of the input.
    segment_bytes : int
        Buffers from this size go to shared memory [bytes].
    """

    def __init__(
        self,
        is_future: Callable[[object], bool] = lambda candidate: False,
        segment_bytes: int = 2**20,
    ) -> None:
        self._is_future = is_future
        self._segment_bytes = segment_bytes
        self.futures: list[Any] = []

    def pack(self, value: object) -> Parcel:
        """Pack an object.

        Raises
        ------
        Exception
            Whatever the object's own pickling raises; `exadask.runtime.diagnosis` says where.
        """
        stream = io.BytesIO()
        large: list[memoryview] = []

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            try:
                raw = buffer.raw()
            except BufferError:  # not contiguous: the pickler flattens it
                return True
            if raw.nbytes < self._segment_bytes:
                return True
            large.append(raw)
            return False

        _FuturePickler(stream, keep_inside, self._input_of).dump(value)
        head: bytes | Segment
        if stream.tell() >= self._segment_bytes:
            head = Segment.copy_of(stream.getbuffer())
        else:
            head = stream.getvalue()
        return Parcel(head, *_into_segments(large))

    def _input_of(self, candidate: object) -> int | None:
        if not self._is_future(candidate):
            return None
        for index, known in enumerate(self.futures):
            if known is candidate:
                return index
        self.futures.append(candidate)
        return len(self.futures) - 1


class _FuturePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """Replaces every future, at any depth, by a call that gives its value on the other side."""

    def __init__(
        self,
        stream: io.BytesIO,
        keep_inside: Callable[[pickle.PickleBuffer], bool],
        input_of: Callable[[object], int | None],
    ) -> None:
        super().__init__(stream, protocol=5, buffer_callback=keep_inside)
        self._input_of = input_of

    def reducer_override(self, obj: Any) -> Any:
        index = self._input_of(obj)
        if index is not None:
            return _value_of_input, (index,)
        if isinstance(obj, BaseException):
            return obj.__reduce_ex__(5)  # not as tblib, which Dask brings, would have it
        return super().reducer_override(obj)


def _value_of_input(index: int) -> Any:
    return _inputs.get()[index]()


def _into_segments(
    large: list[memoryview],
) -> tuple[tuple[Segment, ...], tuple[tuple[int, int, int], ...]]:
    if len(large) <= _MAX_SEGMENTS:
        segments = tuple(Segment.shared_copy_of(raw) for raw in large)
        return segments, tuple((index, 0, raw.nbytes) for index, raw in enumerate(large))
    slices, start = [], 0
    for raw in large:
        slices.append((0, start, raw.nbytes))
        start += raw.nbytes
    return (Segment.copy_of(*large),), tuple(slices)
