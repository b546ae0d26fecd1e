"""A stored result is whole or not there, and never another one."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import stat
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exadask.runtime import stored
from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.stored import StoredResults

KEY = bytes(range(16))
OTHER = bytes(range(1, 17))


@pytest.fixture
def results(tmp_path: Path) -> StoredResults:
    return StoredResults(tmp_path / "memo")


def packed(value: object, segment_bytes: int = 2**20) -> Parcel:
    return Packer(segment_bytes=segment_bytes).pack(value)


def found(results: StoredResults, key: bytes = KEY) -> Any:
    read = results.read(key)
    return None if read is None else read[0].load()


def files(results: StoredResults) -> list[Path]:
    return [path for path in results.folder.rglob("*") if path.is_file()]


def aged(results: StoredResults, key: bytes, used: float) -> None:
    os.utime(results.path_of(key), (used, used))


def test_round_trip(results: StoredResults) -> None:
    nbytes = results.write(KEY, packed({"a": [1, "x"]}), {"name": "relax", "made": 1.5})
    assert nbytes == results.path_of(KEY).stat().st_size
    read = results.read(KEY)
    assert read is not None
    assert read[0].load() == {"a": [1, "x"]}
    assert read[1] == {"name": "relax", "made": 1.5}
    assert results.read(OTHER) is None


@pytest.mark.parametrize("segment_bytes", [1, 2**12, 2**20])
@pytest.mark.parametrize("n_arrays", [1, 3, 70])  # more than 64 share a segment
def test_round_trip_of_arrays(results: StoredResults, segment_bytes: int, n_arrays: int) -> None:
    value = {"arrays": [np.arange(600.0) + one for one in range(n_arrays)], "text": "x" * 5000}
    results.write(KEY, packed(value, segment_bytes), {})
    back = found(results)
    assert back["text"] == value["text"]
    for one, other in zip(back["arrays"], value["arrays"], strict=True):
        np.testing.assert_array_equal(one, other)
    back["arrays"][0][0] = -1  # each load has its own copy
    assert found(results)["arrays"][0][0] == 0


def test_read_result_can_be_sent_on(results: StoredResults) -> None:
    results.write(KEY, packed([np.arange(600.0), 1], 2**10), {})
    read = results.read(KEY)
    assert read is not None
    sent = pickle.loads(pickle.dumps(read[0], protocol=5))
    np.testing.assert_array_equal(sent.load()[0], np.arange(600.0))


def test_large_text_is_read_into_shared_memory(results: StoredResults) -> None:
    parcel = packed("x" * 2**21)
    results.write(KEY, parcel, {})
    read = results.read(KEY)
    assert read is not None
    assert not parcel.is_small
    assert not read[0].is_small
    assert read[0].load() == "x" * 2**21


def test_only_the_user_can_read(results: StoredResults) -> None:
    results.write(KEY, packed(1), {})
    path = results.path_of(KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, results.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_second_write_wins(results: StoredResults) -> None:
    results.write(KEY, packed(1), {})
    results.write(KEY, packed(2), {})
    assert found(results) == 2
    assert len(files(results)) == 1


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture
def content(results: StoredResults) -> bytes:
    results.write(KEY, packed([np.arange(4.0), 1], 8), {"name": "f"})
    return results.path_of(KEY).read_bytes()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "exadask.runtime.stored")


def test_cut_off_anywhere(results: StoredResults, content: bytes) -> None:
    path = results.path_of(KEY)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert results.read(KEY) is None
        assert not path.exists()  # so that it is computed again
    path.write_bytes(content + b"x")
    assert results.read(KEY) is None


def test_every_byte_changed(results: StoredResults, content: bytes) -> None:
    path = results.path_of(KEY)
    for place in range(len(content)):
        for change in (0x01, 0x20, 0x80, 0xFF):
            garbled = bytearray(content)
            garbled[place] ^= change
            path.write_bytes(garbled)
            assert results.read(KEY) is None
            assert list(results.entries()) == [] or place >= len(stored._MAGIC)
    path.write_bytes(content)
    assert found(results)[1] == 1


def sealed(header: object) -> bytes:
    """Make a file with a valid checksum of anything as its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = stored._MAGIC + len(text).to_bytes(8, "little") + text
    return body + hashlib.blake2b(body, digest_size=32).digest()


SOUND = {"key": KEY.hex(), "facts": {}, "head": 0, "segments": [], "slices": []}


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"\xff\xfe", b"[" * 100_000, b"nonsense", [], {}, None, 3),
        *({**SOUND, "head": -1}, {**SOUND, "head": "1"}, {**SOUND, "head": 10**30}),
        *({**SOUND, "segments": 3}, {**SOUND, "segments": [0]}, {**SOUND, "segments": [10**12]}),
        *({**SOUND, "slices": [1]}, {**SOUND, "slices": [["a", 0, 0]]}, {**SOUND, "facts": []}),
        *({**SOUND, "key": 1}, {**SOUND, "key": OTHER.hex()}),
    ],
    ids=lambda one: str(one)[:40],
)
def test_header_that_makes_no_sense(results: StoredResults, header: object) -> None:
    path = results.path_of(KEY)
    path.parent.mkdir(parents=True)
    path.write_bytes(sealed(header))
    assert results.read(KEY) is None
    assert not path.exists()


def test_result_of_something_else(results: StoredResults, content: bytes) -> None:
    path = results.path_of(OTHER)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert results.read(OTHER) is None
    assert found(results) is not None


def test_other_version(results: StoredResults, content: bytes) -> None:
    results.path_of(KEY).write_bytes(content.replace(b"result 1\n", b"result 9\n"))
    assert results.read(KEY) is None


def test_damage_is_told_once(
    results: StoredResults, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "exadask.runtime.stored")
    for _ in range(3):
        results.path_of(KEY).write_bytes(content[:-1])
        assert results.read(KEY) is None
    assert len(caplog.records) == 1
    assert str(results.path_of(KEY)) in caplog.text


def test_folder_in_place_of_a_file(results: StoredResults) -> None:
    results.path_of(KEY).mkdir(parents=True)
    assert results.read(KEY) is None
    assert list(results.entries()) == []


def test_result_that_cannot_be_touched_is_used_all_the_same(
    results: StoredResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.write(KEY, packed(1), {})

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "it belongs to somebody else")

    monkeypatch.setattr(os, "utime", refuse)
    assert found(results) == 1


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_full_disk_leaves_nothing(
    results: StoredResults, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    owner: Any = {"fsync": os, "replace": Path, "write": stored}[step]
    monkeypatch.setattr(owner, {"write": "_write"}.get(step, step), full)
    with pytest.raises(OSError, match="no space left"):
        results.write(KEY, packed(1), {})
    assert files(results) == []
    assert results.read(KEY) is None


def test_limit_of_the_size_of_files(results: StoredResults) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    parcel = packed(np.arange(5000.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="too large"):
            results.write(KEY, parcel, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(results) == []


def test_writers_of_the_same_result(tmp_path: Path) -> None:
    folder, parcel = tmp_path / "memo", packed(np.arange(50.0), 8)
    wrong: list[object] = []
    start = threading.Barrier(4)

    def write_and_read() -> None:
        mine = StoredResults(folder)
        start.wait()
        for _ in range(10):
            mine.write(KEY, parcel, {"name": "f"})
            read = mine.read(KEY)
            if read is None or read[0].load()[49] != 49:
                wrong.append(read)

    threads = [threading.Thread(target=write_and_read) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert [path.name for path in files(StoredResults(folder))] == [KEY.hex()]


# --- what there is, and cleaning up ---------------------------------------------------------------


def key_of(n: int) -> bytes:
    return hashlib.blake2b(str(n).encode(), digest_size=16).digest()


def filled(results: StoredResults, names: str) -> list[bytes]:
    keys = [key_of(n) for n in range(len(names))]
    for n, name in enumerate(names):
        results.write(keys[n], packed(n), {"name": name})
        aged(results, keys[n], time.time() - 1000 + n)
    return keys


def left(results: StoredResults) -> set[str]:
    return {one.key for one in results.entries()}


def test_entries(results: StoredResults) -> None:
    assert list(results.entries()) == []
    keys = filled(results, "ab")
    entries = {one.key: one for one in results.entries()}
    assert set(entries) == {key.hex() for key in keys}
    one = entries[keys[0].hex()]
    assert (one.facts, one.path) == ({"name": "a"}, results.path_of(keys[0]))
    assert one.nbytes == one.path.stat().st_size
    assert one.used == one.path.stat().st_mtime


def test_reading_counts_as_use(results: StoredResults) -> None:
    keys = filled(results, "ab")
    assert found(results, keys[0]) == 0
    removed = results.collect(older_than_s=100)
    assert [one.key for one in removed] == [keys[1].hex()]


def test_remove_by_name_or_key(results: StoredResults) -> None:
    keys = filled(results, "xyx")
    assert {one.key for one in results.remove("x")} == {keys[0].hex(), keys[2].hex()}
    assert left(results) == {keys[1].hex()}
    assert results.remove("nothing") == []
    assert len(results.remove(keys[1].hex()[:8].upper())) == 1
    assert left(results) == set()


def test_name_that_begins_a_key_is_a_name(results: StoredResults) -> None:
    key, other = key_of(1), key_of(2)
    results.write(other, packed(1), {"name": key.hex()[:4]})
    results.write(key, packed(2), {"name": "f"})
    assert results.remove("") == results.remove(key.hex()[:1]) == []
    assert [one.key for one in results.remove(key.hex()[:4])] == [other.hex()]
    assert left(results) == {key.hex()}


def test_collect_the_least_used(results: StoredResults) -> None:
    keys = filled(results, "abcd")
    size = results.path_of(keys[0]).stat().st_size
    assert results.collect() == []
    removed = results.collect(most_bytes=2 * size)
    assert [one.key for one in removed] == [key.hex() for key in keys[:2]]
    assert left(results) == {key.hex() for key in keys[2:]}
    assert len(results.collect(older_than_s=0)) == 2


def test_collect_drafts_that_killed_processes_left(results: StoredResults) -> None:
    filled(results, "a")
    old, young = (results.path_of(key_of(0)).with_name(f".draft-{one}") for one in ("o", "y"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    results.collect()
    assert young.exists()
    assert not old.exists()
    assert len(left(results)) == 1
