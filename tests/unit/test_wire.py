"""Frames over a socket: whatever the pieces that arrive, the messages come out whole."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exadask.runtime.segment import Segment
from exadask.runtime.wire import Decoder, encode, send_blocking, send_head

Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def connected() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def pair() -> Iterator[Pair]:
    with connected() as both:
        yield both


def segment(text: bytes) -> Segment:
    return Segment.copy_of(memoryview(text))


def content(received: Segment) -> bytes:
    return bytes(received.view())


def n_open() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def receive(sock: socket.socket, n_messages: int) -> list[object]:
    decoder, found = Decoder(), list[object]()
    while len(found) < n_messages:
        assert decoder.receive(sock)
        found.extend(decoder.messages())
    decoder.close()
    return found


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(messages=st.lists(nested, min_size=1, max_size=5), piece=st.integers(1, 40))
def test_messages_come_out_whole_from_any_pieces(messages: list[object], piece: int) -> None:
    stream = b"".join(encode(message)[0] for message in messages)
    found, decoder = list[object](), Decoder()
    with connected() as (left, right):
        for start in range(0, len(stream), piece):
            left.sendall(stream[start : start + piece])
            assert decoder.receive(right)
            found.extend(decoder.messages())
    assert found == messages


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.binary(min_size=1, max_size=50), max_size=5))
def test_segments_cross_as_memory(texts: list[bytes]) -> None:
    with connected() as (left, right):
        send_blocking(left, [segment(text) for text in texts])
        (found,) = receive(right, 1)
        assert isinstance(found, list)
        assert [content(one) for one in found] == texts


def test_segment_is_the_same_memory_on_the_other_side(pair: Pair) -> None:
    ours = segment(b"before")
    send_blocking(pair[0], ours)
    (theirs,) = receive(pair[1], 1)
    assert isinstance(theirs, Segment)
    assert theirs.fd != ours.fd
    os.pwrite(ours.fd, b"after!", 0)
    assert content(theirs) == b"after!"


def test_same_segment_twice_in_a_message_is_one(pair: Pair) -> None:
    one = segment(b"once")
    send_blocking(pair[0], (one, one))
    (found,) = receive(pair[1], 1)
    assert isinstance(found, tuple)
    assert found[0] is found[1]


def test_more_descriptors_than_the_kernel_takes_at_once(pair: Pair) -> None:
    segments = [segment(b"%03d" % number) for number in range(300)]
    send_blocking(pair[0], segments)
    (found,) = receive(pair[1], 1)
    assert isinstance(found, list)
    assert [content(one) for one in found] == [b"%03d" % number for number in range(300)]


def test_descriptors_of_messages_in_a_row_are_not_mixed_up(pair: Pair) -> None:
    for number in range(10):
        send_blocking(pair[0], [segment(b"%d" % number)] * (number % 3) + [number])
    for number, found in enumerate(receive(pair[1], 10)):
        assert isinstance(found, list)
        assert [content(one) for one in found[:-1]] == [b"%d" % number] * (number % 3)
        assert found[-1] == number


def test_large_message_crosses_a_small_buffer(pair: Pair) -> None:
    message = [os.urandom(2**22), segment(b"with memory")]
    sender = threading.Thread(target=send_blocking, args=(pair[0], message))
    sender.start()
    (found,) = receive(pair[1], 1)
    sender.join()
    assert isinstance(found, list)
    assert found[0] == message[0]
    assert content(found[1]) == b"with memory"


def test_closed_other_side_ends_the_stream(pair: Pair) -> None:
    send_blocking(pair[0], "last words")
    pair[0].close()
    decoder = Decoder()
    assert decoder.receive(pair[1])
    assert list(decoder.messages()) == ["last words"]
    assert not decoder.receive(pair[1])


def test_nothing_to_read_raises_when_not_blocking(pair: Pair) -> None:
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        Decoder().receive(pair[1])


def test_no_descriptor_stays_open(pair: Pair) -> None:
    before = n_open()
    for _ in range(20):
        send_blocking(pair[0], [segment(b"gone soon")] * 3)
        found = receive(pair[1], 1)
        del found
    assert n_open() == before


def test_received_segment_goes_with_its_last_user(pair: Pair) -> None:
    send_blocking(pair[0], segment(b"gone at once"))
    (found,) = receive(pair[1], 1)
    assert isinstance(found, Segment)
    fd = found.fd
    gc.disable()
    try:
        del found
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    finally:
        gc.enable()


def test_descriptors_of_an_unfinished_frame_are_closed(pair: Pair) -> None:
    before = n_open()
    data, fds = encode([one := segment(b"unfinished")])
    socket.send_fds(pair[0], [data[:5]], fds)
    decoder = Decoder()
    decoder.receive(pair[1])
    assert n_open() == before + 2
    assert list(decoder.messages()) == []
    decoder.close()
    del one
    assert n_open() == before


def test_received_descriptors_are_not_inherited(pair: Pair) -> None:
    send_blocking(pair[0], segment(b"mine"))
    (found,) = receive(pair[1], 1)
    assert isinstance(found, Segment)
    assert not os.get_inheritable(found.fd)


def test_segment_cannot_be_taken_from_a_frame_without_its_descriptors() -> None:
    data, _ = encode(segment(b"lost"))
    with pytest.raises(RuntimeError, match="outside a Decoder"):
        pickle.loads(data[12:])


def fill(sock: socket.socket) -> int:
    n_filler = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            n_filler += sock.send(b".")
    return n_filler


def test_send_that_does_not_fit_has_sent_nothing() -> None:
    data, fds = encode([one := segment(b"memory"), b"x" * 100])
    for n_taken in range(1, 40):
        with connected() as (left, right):
            left.setblocking(False)
            n_filler = fill(left)
            right.recv(n_taken)
            try:
                n_sent = send_head(left, data, list(fds))
            except BlockingIOError:
                n_sent = 0
            left.close()
            n_arrived = sum(len(right.recv(2**16)) for _ in range(n_filler + 10))
            assert n_arrived == n_filler - n_taken + n_sent
    assert one.nbytes == 6
