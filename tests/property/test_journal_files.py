"""Whatever the file of a journal has become: a run goes on, and no result in it is wrong."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from exadask.journal.journal import Journal
from exadask.journal.reading import Lookup
from exadask.journal.rows import VERSION, ResultRow, TaskRow, checksum_of

NAME = "journal.sqlite"
N_ROWS = 100


def result(number: int) -> ResultRow:
    value = f"value {number}".encode()
    return ResultRow(number.to_bytes(16, "big"), number, value, checksum_of(value), None)


def task(number: int) -> TaskRow:
    return TaskRow(number, f"f-{number}", 1, 1, 1, 1.0, 2.0, 3.0, "done")


@functools.cache
def whole_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / NAME, interval_s=0.01)
        for number in range(1, N_ROWS + 1):
            journal.put(task(number))
            journal.put(result(number))
        journal.close()
        return (Path(folder) / NAME).read_bytes()


def require_that_a_run_goes_on(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(content)
        journal = Journal(path, interval_s=0.001)
        journal.put(result(N_ROWS + 1))
        assert journal.flush(10), journal.problem
        lookup = Lookup(path, is_shared=False)
        for number in range(1, N_ROWS + 1):
            assert lookup.result(number.to_bytes(16, "big")) in (None, result(number))
        assert lookup.result((N_ROWS + 1).to_bytes(16, "big")) == result(N_ROWS + 1)
        lookup.close()
        journal.close()


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1))
def test_a_file_that_is_cut_anywhere_does_no_harm(part: float) -> None:
    whole = whole_file()
    require_that_a_run_goes_on(whole[: int(part * len(whole))])


# The page of the schema is where most goes wrong. A version is what it says, so it is left alone.
_PLACES = st.one_of(st.integers(0, 4095), st.integers(0, 100_000))


@settings(max_examples=150, deadline=None)
@given(_PLACES, st.binary(min_size=1, max_size=64))
@example(47911, b"\x01")  # of the index: it leads to another call's result
def test_a_file_that_is_garbled_anywhere_does_no_harm(at: int, garbage: bytes) -> None:
    whole = whole_file()
    at %= len(whole)
    garbled = bytearray(whole)
    garbled[at : at + len(garbage)] = garbage
    garbled[60:64] = VERSION.to_bytes(4, "big")
    require_that_a_run_goes_on(bytes(garbled[: len(whole)]))
