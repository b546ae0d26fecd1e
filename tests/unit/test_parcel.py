"""Parcels and their shared memory: what goes in comes out, once, and privately."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.segment import Segment, pickled_within_process

SMALL = 64
"""Buffers from this size go to shared memory in these tests [bytes]."""


class Promise:
    """Stands for a future."""


def packed(value: object, segment_bytes: int = SMALL) -> Parcel:
    return Packer(segment_bytes=segment_bytes).pack(value)


def n_open() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
    | st.binary(max_size=300).map(bytearray)
    | st.frozensets(st.integers())
)
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=5)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)
arrays = st.builds(
    lambda shape, dtype: np.arange(int(np.prod(shape))).astype(dtype).reshape(shape),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.sampled_from(["u1", "i4", "f8", "c16", "?", "<M8[s]", "S5"]),
)


@settings(max_examples=150, deadline=None)
@given(value=nested, segment_bytes=st.integers(1, 300))
def test_any_nested_data_comes_out_as_it_went_in(value: object, segment_bytes: int) -> None:
    assert packed(value, segment_bytes).load() == value


@settings(max_examples=60, deadline=None)
@given(values=st.lists(arrays, max_size=5), segment_bytes=st.integers(1, 300))
def test_arrays_come_out_as_they_went_in(values: list[Any], segment_bytes: int) -> None:
    found = packed(values, segment_bytes).load()
    for one, other in zip(values, found, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@settings(max_examples=40, deadline=None)
@given(value=nested, array=arrays)
def test_parcel_survives_pickling(value: object, array: Any) -> None:
    parcel = pickle.loads(pickle.dumps(packed((value, array)), protocol=5))
    found, other = parcel.load()
    assert found == value
    np.testing.assert_array_equal(array, other, strict=True)


def test_small_parcel_has_no_shared_memory() -> None:
    parcel = packed([1, "two"])
    assert parcel.is_small
    assert parcel.segments == ()
    assert parcel.nbytes == len(pickle.dumps([1, "two"], protocol=5))


def test_large_buffer_lies_in_shared_memory() -> None:
    parcel = packed(np.arange(1000), segment_bytes=1000)
    assert not parcel.is_small
    assert [one.nbytes for one in parcel.segments] == [8000]
    assert isinstance(parcel.head, bytes)
    assert len(parcel.head) < 500
    assert parcel.nbytes == len(parcel.head) + 8000
    assert parcel.__sizeof__() == parcel.nbytes


def test_long_stream_lies_in_shared_memory() -> None:
    text = "long" * 1000
    parcel = packed(text)
    assert isinstance(parcel.head, Segment)
    assert not parcel.is_small
    assert parcel.load() == text


def test_unchanged_array_is_copied_once() -> None:
    array = np.arange(1000)
    first, second = packed(array), packed({"again": [array]})
    assert first.segments[0] is second.segments[0]


def test_changed_array_is_copied_again() -> None:
    array = np.arange(1000)
    first = packed(array)
    array[500] = -1
    second = packed(array)
    assert first.segments[0] is not second.segments[0]
    assert first.load()[500] == 500
    assert second.load()[500] == -1


def test_array_is_forgotten_with_its_parcels() -> None:
    array = np.arange(1000)
    before = n_open()
    parcel = packed(array)
    assert packed(array).segments[0] is parcel.segments[0]
    assert n_open() > before
    del parcel
    assert n_open() == before


def test_reader_may_write_without_anyone_noticing() -> None:
    array = np.zeros(1000)
    parcel = packed(array)
    first, second = parcel.load(), parcel.load()
    first[:] = 1
    assert first.sum() == 1000
    assert second.sum() == 0
    assert array.sum() == 0
    assert parcel.load().sum() == 0


def test_many_large_buffers_share_one_segment() -> None:
    values = [np.full(100, number) for number in range(100)]
    parcel = packed(values)
    assert len(parcel.segments) == 1
    assert len(parcel.slices) == 100
    for one, other in zip(values, parcel.load(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_as_many_segments_as_are_kept_apart() -> None:
    parcel = packed([np.full(100, number) for number in range(64)])
    assert len(parcel.segments) == 64
    assert [value[0] for value in parcel.load()] == list(range(64))


def test_same_array_twice_is_one_array_on_the_other_side() -> None:
    array = np.arange(1000)
    first, second = packed([array, array]).load()
    assert first is second


@pytest.mark.parametrize("n_items", [4, 1000], ids=["small", "large"])
@pytest.mark.parametrize("is_writable", [True, False])
def test_array_stays_as_writable_as_it_was(n_items: int, is_writable: bool) -> None:
    array = np.arange(n_items)
    array.flags.writeable = is_writable
    found = packed(array).load()
    assert found.flags.writeable is is_writable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(2000)[::2],
        np.arange(2000).reshape(40, 50)[:, 3:7],
        np.asfortranarray(np.arange(2000).reshape(40, 50)),
        np.arange(2000).reshape(40, 50).T,
        np.arange(2000)[::-1],
        np.broadcast_to(np.arange(50), (40, 50)),
    ],
    ids=["step", "columns", "fortran", "transposed", "reversed", "broadcast"],
)
def test_array_of_any_layout(array: Any) -> None:
    np.testing.assert_array_equal(packed(array).load(), array, strict=True)


def test_read_only_buffer_of_bytes_is_reused_or_copied_but_right() -> None:
    array = np.frombuffer(bytes(range(256)) * 10, dtype="u1")
    assert packed(array).load().sum() == packed(array).load().sum() == array.sum()


def test_no_descriptor_stays_open() -> None:
    before = n_open()
    for _ in range(20):
        parcel = packed([np.arange(1000), np.ones(1000), "x" * 1000])
        parcel.load()
        pickle.loads(pickle.dumps(parcel, protocol=5)).load()
        del parcel
    assert n_open() == before


def test_value_outlives_its_parcel() -> None:
    found = packed(np.arange(1000)).load()
    gc.collect()
    assert found.sum() == 499_500


def test_within_a_process_segments_are_found_again() -> None:
    parcel = packed(np.arange(1000))
    with pickled_within_process():
        data = pickle.dumps(parcel)
    assert len(data) < 1000
    assert pickle.loads(data).segments[0] is parcel.segments[0]
    assert len(pickle.dumps(parcel, protocol=5)) > 8000, "only within the block"


def test_rebuilt_segment_is_the_known_one_while_that_lives() -> None:
    parcel = packed(np.arange(1000))
    data = pickle.dumps(parcel, protocol=5)
    assert pickle.loads(data).segments[0] is parcel.segments[0]
    del parcel
    assert pickle.loads(data).load().sum() == 499_500


def test_futures_become_inputs_at_any_depth() -> None:
    first, second = Promise(), Promise()
    packer = Packer(lambda candidate: isinstance(candidate, Promise))
    parcel = packer.pack({"a": [first, (second, first)], "b": {"c": second}})
    assert packer.futures == [first, second]
    found = parcel.load([lambda: "one", lambda: "two"])
    assert found == {"a": ["one", ("two", "one")], "b": {"c": "two"}}


def test_input_is_built_once_for_each_parcel() -> None:
    calls = []
    promise = Promise()
    packer = Packer(lambda candidate: isinstance(candidate, Promise))
    parcel = packer.pack([promise, promise, {"again": promise}])

    def give() -> list[int]:
        calls.append(1)
        return calls

    first, second, third = parcel.load([give])
    assert first is second is third["again"]
    assert calls == [1]


def test_parcels_of_one_packer_share_their_inputs() -> None:
    promise, other = Promise(), Promise()
    packer = Packer(lambda candidate: isinstance(candidate, Promise))
    function, arguments = packer.pack(lambda: promise), packer.pack([other, promise])
    assert packer.futures == [promise, other]
    inputs = [lambda: 1, lambda: 2]
    assert function.load(inputs)() == 1
    assert arguments.load(inputs) == [2, 1]


def test_loading_within_loading_keeps_its_own_inputs() -> None:
    packer = Packer(lambda candidate: isinstance(candidate, Promise))
    inner = packer.pack([Promise()])
    outer = Packer(lambda candidate: isinstance(candidate, Promise)).pack([Promise(), 3])
    assert outer.load([lambda: inner.load([lambda: "deep"])]) == [["deep"], 3]


def test_error_of_unpickling_passes_through() -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    with pytest.raises(ValueError, match="no number"):
        packed(Broken()).load()


def test_exception_keeps_its_own_arguments() -> None:
    found = packed(ValueError("text", 3)).load()
    assert type(found) is ValueError
    assert found.args == ("text", 3)
