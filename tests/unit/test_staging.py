"""Copies of input files on a node: when there is one, what it is, and what happens if not."""

from __future__ import annotations

import os
import pickle
import resource
import stat
from pathlib import Path
from typing import Any

import pytest

from exadask import staging
from exadask.errors import FileChanged, InvalidRequest
from exadask.files import File
from exadask.journal.fingerprint import arguments_fingerprint

_TOO_LARGE = 2**42  # a file with a hole, which takes no room where it is


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be the process of a task."""
    found = tmp_path / "scratch" / "staged"
    found.parent.mkdir()
    monkeypatch.setenv(staging.VARIABLE, str(found))
    return found


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "grid.dat"
    path.write_bytes(os.urandom(3 * 2**20 + 7))
    return path


def submitted(path: Path) -> File:
    """Give a file as a task gets it."""
    rebuilt = pickle.loads(pickle.dumps(File(path, stage=True)))
    assert isinstance(rebuilt, File)
    return rebuilt


def left_in(folder: Path) -> set[str]:
    return {one.suffix for one in folder.iterdir()} - {""}


# -- a copy ---------------------------------------------------------------------------------------


def test_a_task_reads_a_copy_with_the_same_name_and_content(folder: Path, origin: Path) -> None:
    origin.chmod(0o754)
    file = submitted(origin)
    copy = Path(file)
    assert copy == Path(file.path) != origin
    assert (copy.parent.parent, copy.name) == (folder, origin.name)
    assert copy.parent.name == file.digest().hex()
    assert copy.read_bytes() == origin.read_bytes()
    assert copy.stat().st_mtime_ns == origin.stat().st_mtime_ns
    assert stat.S_IMODE(copy.stat().st_mode) == 0o554, "nobody shall write, and programs shall run"
    assert left_in(folder) == {".lock"}


def test_there_is_one_copy_of_a_content_with_a_name(folder: Path, origin: Path) -> None:
    first = Path(submitted(origin))
    again = origin.parent / "other" / origin.name
    again.parent.mkdir()
    again.write_bytes(origin.read_bytes())
    assert Path(submitted(again)) == first
    other = origin.with_name("other.dat")
    other.write_bytes(b"other")
    assert Path(submitted(other)) != first


def test_a_copy_that_was_removed_is_made_again(folder: Path, origin: Path) -> None:
    file = submitted(origin)
    Path(file).unlink()
    assert Path(file).read_bytes() == origin.read_bytes()


def test_what_a_killed_process_has_left_is_no_copy(folder: Path, origin: Path) -> None:
    folder.mkdir()
    file = submitted(origin)
    assert Path(file).exists()
    (link,) = (one for one in folder.iterdir() if one.is_symlink())
    link.unlink()
    link.with_suffix(".draft").write_bytes(b"half")
    assert Path(file).read_bytes() == origin.read_bytes()
    assert left_in(folder) == {".lock"}


# -- no copy --------------------------------------------------------------------------------------


def test_outside_of_tasks_and_without_a_place_it_is_the_file_itself(
    origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(staging.VARIABLE, raising=False)
    file = submitted(origin)
    assert file.path == os.fspath(file) == str(origin)
    monkeypatch.setenv(staging.VARIABLE, "")
    assert file.path == str(origin)
    origin.write_text("changed")
    with pytest.raises(FileChanged):
        _ = file.path


def test_a_file_that_is_not_staged_is_the_file_itself(folder: Path, origin: Path) -> None:
    assert Path(pickle.loads(pickle.dumps(File(origin)))) == origin
    assert not folder.exists()


@pytest.mark.parametrize("problem", ["no folder", "no parent", "no room", "no room in the end"])
def test_where_no_copy_can_be_made_the_file_itself_is_read(
    folder: Path, origin: Path, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    match problem:
        case "no folder":
            folder.touch()
        case "no parent":
            folder.parent.rmdir()
        case "no room":
            os.truncate(origin, _TOO_LARGE)
    file = submitted(origin)
    try:
        if problem == "no room in the end":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        assert [file.path, file.path] == [str(origin)] * 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (record,) = caplog.records
    assert f"{origin} is read where it is: it cannot be copied" in record.getMessage()
    if folder.is_dir():
        assert left_in(folder) <= {".lock"}, "no half of a copy takes room"
        assert not any(one.is_dir() for one in folder.iterdir())
    origin.unlink()
    with pytest.raises(FileChanged, match=r"cannot read it \(No such file"):
        _ = file.path


# -- another file ---------------------------------------------------------------------------------


def test_a_file_that_has_changed_is_refused(folder: Path, origin: Path) -> None:
    file = submitted(origin)
    origin.write_text("shorter")
    with pytest.raises(FileChanged, match=r"it had 3,145,735 bytes, and has 7") as caught:
        os.fspath(file)
    assert caught.value.path == str(origin)
    file = submitted(origin)
    os.utime(origin, ns=(0, 5))
    with pytest.raises(FileChanged, match=r"written at 2.* again at 1970-01-01 00:00:00.000000005"):
        os.fspath(file)
    origin.unlink()
    with pytest.raises(FileChanged, match="No such file"):
        os.fspath(file)


def test_a_file_that_is_gone_when_it_is_submitted_is_refused(folder: Path, origin: Path) -> None:
    file = File(origin, stage=True)
    origin.unlink()
    arrived = pickle.loads(pickle.dumps(file))
    with pytest.raises(FileChanged, match=str(origin)):
        os.fspath(arrived)


def test_a_copy_serves_whatever_becomes_of_the_file(folder: Path, origin: Path) -> None:
    content = origin.read_bytes()
    first, second = submitted(origin), submitted(origin)
    copy = first.path
    origin.unlink()
    assert second.path == copy
    assert Path(copy).read_bytes() == content


def test_a_task_gives_a_file_on_as_it_was_given(folder: Path, origin: Path) -> None:
    file = submitted(origin)
    origin.write_text("changed")
    given_on = pickle.loads(pickle.dumps(file))
    with pytest.raises(FileChanged):
        os.fspath(given_on)
    assert Path(submitted(origin)).read_text() == "changed", "what it makes itself is as it is"


def test_a_result_can_be_submitted_after_a_change(
    origin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(staging.VARIABLE, raising=False)
    result = submitted(origin)  # of a task, for the user's program
    origin.write_text("changed")
    again = pickle.loads(pickle.dumps(result))
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "staged"))
    assert Path(again).read_text() == "changed"


# -- what it is -----------------------------------------------------------------------------------


def test_staging_does_not_count(folder: Path, origin: Path) -> None:
    plain, staged = File(origin), File(origin, stage=True)
    arrived = submitted(origin)
    assert plain == staged == arrived
    assert len({plain, staged, arrived}) == 1
    assert plain.digest() == staged.digest() == arrived.digest()
    keys = {arguments_fingerprint((one,), {}, "f", lambda _: None) for one in (plain, staged)}
    assert len(keys) == 1
    os.utime(origin, ns=(0, 5))
    assert arguments_fingerprint((staged,), {}, "f", lambda _: None) in keys
    assert (repr(plain), repr(staged)) == (
        f"File({str(origin)!r})",
        f"File({str(origin)!r}, stage=True)",
    )


@pytest.mark.parametrize("stage", [None, 1, "yes", []])
def test_only_true_and_false_make_sense(origin: Path, stage: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"stage=.* Give True or False"):
        File(origin, stage=stage)
