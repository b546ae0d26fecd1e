"""Input files that each node copies once, with the processes of real tasks."""

from __future__ import annotations

import ctypes
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import exadask as xd
from exadask.errors import FileChanged
from exadask.runtime.cluster import EmbeddedCluster
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LONG_S = 60
_IN_CREATE, _IN_MOVED_FROM = 0x100, 0x40  # linux/inotify.h
_EVENT = struct.Struct("iIII")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts by inotify")


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Note the names of all that anybody makes in a folder; the kernel tells."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd, names = libc.inotify_init1(os.O_NONBLOCK), list[str]()
    try:
        # What is renamed is asked for too, since equal events are told once if they are neighbours.
        assert libc.inotify_add_watch(fd, os.fsencode(folder), _IN_CREATE | _IN_MOVED_FROM) >= 0
        yield names
        events = os.read(fd, 2**16)
        while events:
            _, mask, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            names += [name] if mask & _IN_CREATE else []
            events = events[_EVENT.size + length :]
    finally:
        os.close(fd)


def n_copied(names: list[str]) -> int:
    """Count copies: each begins as a draft, and so does the link to it."""
    return len([one for one in names if one.endswith(".draft")]) // 2


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[xd.Executor]:
    """Two nodes of this process, with two cores each."""
    monkeypatch.chdir(tmp_path)
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=2)] * 2) as executor:
        yield executor


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.dat"
    path.write_bytes(os.urandom(20 * 2**20))
    return path


def seen(file: Any, folder: Path, n_tasks: int) -> tuple[str, int, int]:
    """Read a file when so many tasks are about to."""
    (folder / str(os.getpid())).touch()
    eventually(lambda: len(list(folder.iterdir())) == n_tasks, timeout_s=LONG_S)
    with open(file, "rb") as stream:  # noqa: PTH123  # what users write
        content = stream.read()
    return os.fspath(file), os.stat(file).st_ino, sum(content[::4096])  # noqa: PTH116


def test_tasks_on_two_nodes_share_one_copy(two: xd.Executor, grid: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    file = xd.File(grid, stage=True)
    assert isinstance(two._cluster, EmbeddedCluster)
    folder = Path(two._cluster._scratch, "staged")
    folder.mkdir()
    with watched(folder) as names:
        futures = [two.submit(seen, file, gate, 4) for _ in range(4)]
        results = {one.result(LONG_S) for one in futures}
        assert two.options(bundle=False).submit(seen, file, gate, 4).result(LONG_S) in results
    assert n_copied(names) == 1
    assert {one.node for one in futures} == {"node-0", "node-1"}
    ((path, _, total),) = results
    assert path != str(grid)
    assert total == sum(grid.read_bytes()[::4096])
    assert Path(path).exists()
    two.shutdown()
    assert not Path(path).exists(), "it goes with the agent"


def test_commands_get_the_path_of_the_copy(two: xd.Executor, grid: Path) -> None:
    program = xd.command("echo {inp}; cp {inp} copied", outputs={"copied": "copied"})
    results = [program.submit(inp=xd.File(grid, stage=True)).result(LONG_S) for _ in range(2)]
    told = {one.stdout.strip() for one in results}
    (path,) = told
    assert Path(path).name == grid.name
    assert path != str(grid)
    (copied,) = results[0].outputs["copied"]
    assert copied.read_bytes() == grid.read_bytes()
    assert copied.parent == results[0].directory
    assert program.submit(inp=xd.File(grid)).result(LONG_S).stdout == f"{grid}\n"


def test_files_arrive_at_any_depth_and_go_on_to_other_tasks(two: xd.Executor, grid: Path) -> None:
    file = xd.File(grid, stage=True)

    def inner() -> tuple[str, xd.File]:
        return file.path, file  # captured

    def outer(given: dict[str, list[xd.File]]) -> tuple[str, str, xd.File]:
        (mine,) = given["files"]
        path, found = two_inner.submit().result()
        return mine.path, path, found

    two_inner = xd.task(inner)
    first, second, found = two.submit(outer, {"files": [file]}).result(LONG_S)
    assert first == second != str(grid)
    assert found == file
    assert found.path == str(grid), "here it is the file itself"
    assert two.submit(os.fspath, found).result(LONG_S) == first


def wait_and_read(file: xd.File, _: object) -> bytes:
    return Path(file).read_bytes()


@pytest.mark.parametrize("change", ["cut", "removed"])
def test_a_file_that_changes_before_its_task_runs_is_refused(
    two: xd.Executor, grid: Path, tmp_path: Path, change: str
) -> None:
    def hold(go: Path) -> int:
        eventually(go.exists, timeout_s=LONG_S)
        return 1

    go = tmp_path / "go"
    held = two.submit(hold, go)
    file = xd.File(grid, stage=True)
    read = two.submit(wait_and_read, file, held)
    program = xd.command("cat {inp}; : {held}").submit(inp=file, held=held)
    grid.write_bytes(b"other") if change == "cut" else grid.unlink()
    go.touch()
    for future in (read, program):
        error = future.exception(LONG_S)
        assert isinstance(error, FileChanged)
        assert error.path == str(grid)
        wanted = "and has 5" if change == "cut" else "No such file"
        assert wanted in str(error)


def test_a_scratch_that_takes_no_copy_is_no_failure(two: xd.Executor, grid: Path) -> None:
    assert isinstance(two._cluster, EmbeddedCluster)
    Path(two._cluster._scratch, "staged").touch()  # where a folder should be
    file = xd.File(grid, stage=True)
    future = two.submit(os.fspath, file)
    assert future.result(LONG_S) == str(grid)
    assert f"{grid} is read where it is: it cannot be copied" in future.stderr()
    shown = xd.command("echo {inp}").submit(inp=file)
    assert shown.result(LONG_S).stdout == f"{grid}\n"


def test_threads_of_the_agent_read_the_file_itself(two: xd.Executor, grid: Path) -> None:
    read = two.options(isolation="thread").submit(os.fspath, xd.File(grid, stage=True))
    assert read.result(LONG_S) == str(grid)


def test_results_are_remembered_whether_it_is_staged_or_not(tmp_path: Path, grid: Path) -> None:
    notes = tmp_path / "notes"

    @xd.task(memo=True)
    def size(file: xd.File) -> int:
        with notes.open("a") as out:
            out.write(f"{file.path}\n")
        return len(Path(file).read_bytes())

    for stage in (True, False, True):
        with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)], run_folder=tmp_path / "runs") as ex:
            future = ex.submit(size, xd.File(grid, stage=stage))
            assert future.result(LONG_S) == grid.stat().st_size
    (path,) = notes.read_text().split()
    assert path != str(grid)
    grid.rename(grid.with_name("renamed.dat"))
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)], run_folder=tmp_path / "runs") as ex:
        renamed = xd.File(grid.with_name("renamed.dat"), stage=True)
        assert ex.submit(size, renamed).result(LONG_S) == 20 * 2**20
    assert len(notes.read_text().split()) == 1


def test_programs_that_begin_together_share_one_copy(grid: Path, tmp_path: Path) -> None:
    packed, folder = tmp_path / "file.pickle", tmp_path / "staged"
    packed.write_bytes(pickle.dumps(xd.File(grid, stage=True)))
    folder.mkdir()
    program = (
        "import os, pickle, sys; file = pickle.load(open(sys.argv[1], 'rb')); print(flush=True); "
        "sys.stdin.read(); path = os.fspath(file); print(path, os.stat(path).st_size)"
    )
    words = [sys.executable, "-c", program, str(packed)]
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "EXADASK_STAGE": str(folder)},
                )
            )
            for _ in range(6)
        ]
        outputs = [one.stdout for one in processes if one.stdout is not None]
        assert [one.readline() for one in outputs] == ["\n"] * 6
        with watched(folder) as names:
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()  # go
            told = {one.read() for one in outputs}
    assert n_copied(names) == 1
    (text,) = told
    path, size = text.split()
    assert (Path(path).read_bytes(), int(size)) == (grid.read_bytes(), grid.stat().st_size)
    assert {one.suffix for one in folder.iterdir()} == {"", ".lock"}


# -- pools ----------------------------------------------------------------------------------------


def test_each_agent_of_a_pool_with_scratch_has_a_copy(grid: Path, tmp_path: Path) -> None:
    scratch, gate = tmp_path / "scratch", tmp_path / "gate"
    gate.mkdir()
    facts: dict[str, Any] = {"batch": "local", "interface": "lo", "exclusive": False, "cores": 2}
    pools = [
        xd.Pool.declare("fast", scratch=str(scratch), max_allocations=2, **facts),
        xd.Pool.declare("plain", **facts),
    ]
    file = xd.File(grid, stage=True)
    with xd.Executor(pools=pools, run_folder=tmp_path / "runs", scale="manual") as ex:
        ex.scale("fast", nodes=2)
        eventually(lambda: len(ex.nodes) == 2, timeout_s=LONG_S)
        futures = [ex.options(pool="fast").submit(seen, file, gate, 4) for _ in range(4)]
        paths = {one.result(LONG_S)[0] for one in futures}
        assert len({one.node for one in futures}) == len(paths) == 2
        assert {Path(one).parents[3] for one in paths} == {scratch}
        ex.scale("plain", nodes=1)
        plain = ex.options(pool="plain").submit(os.fspath, file)
        assert plain.result(LONG_S) == str(grid)
    eventually(lambda: not list(scratch.iterdir()), timeout_s=LONG_S)


def test_ranks_on_several_nodes_read_the_copy_of_their_node(grid: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="functions on ranks need it")
    launcher = tmp_path / "bin" / "ibrun"  # that starts two agents on this machine
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\nPMI_RANK=0 "$@" &\nPMI_RANK=1 "$@" &\nwait\n')
    launcher.chmod(0o700)

    def where(comm: Any, file: xd.File) -> tuple[str, int]:
        comm.Barrier()
        return os.fspath(file), len(Path(file).read_bytes())

    scratch = tmp_path / "scratch"
    pool = xd.Pool.declare(
        "pair",
        batch="local",
        launcher="ibrun",
        prologue=f'PATH="{launcher.parent}:$PATH"',
        nodes=[2, 2],
        interface="lo",
        exclusive=False,
        cores=2,
        scratch=str(scratch),
    )
    spread = xd.mpi(nodes=2, ranks_per_node=2, gather="all")(where)
    with xd.Executor(pools=[pool], run_folder=tmp_path / "runs") as ex:
        told = ex.submit(spread, xd.File(grid, stage=True)).result(LONG_S)
    assert {size for _, size in told} == {grid.stat().st_size}
    paths = [path for path, _ in told]
    assert paths[0] == paths[1] != paths[2] == paths[3]
    assert {Path(one).parents[3] for one in paths} == {scratch}
