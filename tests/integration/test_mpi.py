"""Functions and programs on several ranks, with the real process managers that are installed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import exadask as xd
from exadask.errors import (
    CommandFailed,
    InvalidQuantity,
    InvalidRequest,
    MemoryExceeded,
    RanksFailed,
    TimeExceeded,
)
from exadask.runtime import ranks as ranks_module
from exadask.runtime.limits import is_alive
from exadask.runtime.ranks import Layout, prefix
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.dask

LONG_S = 60
MIB = 2**20
LAUNCHERS = {
    "found": None,
    "mpich": "mpiexec.mpich -n {ranks}",
    "openmpi": "mpiexec.openmpi --oversubscribe --bind-to none -n {ranks}",
}


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> str | None:
    """What starts ranks: that of this environment, and those of the system."""
    wanted = LAUNCHERS[request.param]
    if wanted is not None and shutil.which(wanted.split()[0]) is None:
        pytest.skip(f"there is no {wanted.split()[0]} here (as root: apt-get install it)")
    return wanted


@pytest.fixture
def four() -> Any:
    """Four cores and two GPUs, which bind nobody."""
    shape = xd.NodeShape.declare(cores=4, gpus=2, memory="8GiB")
    with xd.Executor(nodes=[replace(shape, gpu_vendor="nvidia")]) as executor:
        yield executor


def on_ranks(function: Any, launcher: str | None = None, **options: Any) -> Any:
    return xd.mpi(launcher=launcher, **options)(function)


def note(folder: Path, name: object, text: object = "") -> None:
    draft = folder / f"{name}.draft"
    draft.write_text(str(text))
    draft.rename(folder / str(name))


def hang(comm: Any, folder: Path) -> None:
    note(folder, comm.rank, os.getpid())
    comm.Barrier()
    time.sleep(600)


def pids_in(folder: Path, count: int) -> list[int]:
    eventually(lambda: len([one for one in folder.iterdir() if not one.suffix]) == count,
               timeout_s=LONG_S)  # fmt: skip
    return [int(one.read_text()) for one in folder.iterdir()]


# -- what comes back ----------------------------------------------------------------------------


def test_ranks_work_together_and_rank_0_answers(four: xd.Executor, launcher: str | None) -> None:
    def total(comm: Any, values: list[int], *, scale: int = 1) -> tuple[int, int]:
        return comm.size, scale * comm.allreduce(sum(values[comm.rank :: comm.size]))

    task = on_ranks(total, launcher, ranks=3)
    assert four.submit(task, list(range(100))).result(LONG_S) == (3, 4950)
    assert task.submit(list(range(100)), scale=2).result(LONG_S) == (3, 9900)


def test_all_ranks_can_answer_and_arrays_may_be_large(four: xd.Executor) -> None:
    def block(comm: Any, field: Any) -> Any:
        return np.array_split(field, comm.size)[comm.rank] + comm.rank

    field = np.arange(3_000_000, dtype="f8")
    blocks = on_ranks(block, ranks=3, gather="all").submit(field).result(LONG_S)
    assert [one.shape for one in blocks] == [(1_000_000,)] * 3
    assert np.array_equal(np.concatenate(blocks) - np.repeat([0, 1, 2], 1_000_000), field)


def test_ranks_take_futures_and_are_inputs_of_other_tasks(four: xd.Executor) -> None:
    def total(comm: Any, number: int) -> int:
        return int(comm.allreduce(number))

    first = four.submit(abs, -5)
    assert four.submit(str, on_ranks(total, ranks=2).submit(first)).result(LONG_S) == "10"
    many = on_ranks(total, ranks=2).map(range(4))
    assert [one.result(LONG_S) for one in many] == [0, 2, 4, 6]


def test_what_ranks_write_is_the_tasks_output(four: xd.Executor) -> None:
    def speak(comm: Any) -> None:
        sys.stdout.write(f"I am {comm.rank}\n")
        sys.stderr.write(f"he is {comm.rank}\n")

    future = on_ranks(speak, ranks=2).submit()
    assert future.result(LONG_S) is None
    assert sorted(future.stdout().split("\n")) == ["", "I am 0", "I am 1"]
    assert sorted(future.stderr().split("\n")) == ["", "he is 0", "he is 1"]


def test_a_task_on_ranks_is_a_plain_function_here() -> None:
    task = on_ranks(lambda comm, number: (comm, number), ranks=2)
    assert task("a communicator", 7) == ("a communicator", 7)
    request = task.with_options(ranks=3, memory_per_rank="1GiB").options.request
    assert request.times(request.parts) == xd.Resources.parse(cores=3, memory="3GiB")


# -- what each rank has -------------------------------------------------------------------------


def test_each_rank_has_its_own_cores_and_threads(ex: xd.Executor, launcher: str | None) -> None:
    def mine(comm: Any) -> tuple[list[int], str]:
        assert os.environ["OPENBLAS_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
        return sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]

    (node,) = ex.nodes.values()
    if node.cores < 2:
        pytest.skip("one core cannot be parted")
    parts = on_ranks(mine, launcher, ranks=2, gather="all").submit().result(LONG_S)
    cores = [core for part, _ in parts for core in part]
    assert len(set(cores)) == 2
    assert set(cores) <= set(node.core_ids)
    assert [threads for _, threads in parts] == ["1", "1"]


@pytest.mark.parametrize(
    ("each", "expected"), [(1, ["0", "1"]), (0.5, ["0", "0"]), (0.5, ["0", "0", "1"])]
)
def test_each_rank_sees_its_own_gpus(four: xd.Executor, each: float, expected: list[str]) -> None:
    def mine(comm: Any) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    parts = (
        on_ranks(mine, ranks=len(expected), gpus_per_rank=each, gather="all")
        .submit()
        .result(LONG_S)
    )
    assert parts == expected


def test_the_books_count_all_ranks(four: xd.Executor, tmp_path: Path) -> None:
    held = on_ranks(hang, ranks=3, memory_per_rank="1GiB").submit(tmp_path)
    eventually(held.running)
    waits = four.options(cores=2).submit(abs, -1)
    eventually(lambda: "needs 2 cores" in waits.explain())
    assert four.submit(abs, -2).result(LONG_S) == 2
    held.cancel()
    assert waits.result(LONG_S) == 1
    with pytest.raises(xd.errors.ImpossibleRequest, match="5 ranks with 1 core each"):
        on_ranks(hang, ranks=5).submit(tmp_path)


# -- when it goes wrong -------------------------------------------------------------------------


def test_what_a_rank_raises_is_raised(four: xd.Executor, launcher: str | None) -> None:
    def fail(comm: Any) -> None:
        if comm.rank == 1:
            raise ArithmeticError("no such energy")
        comm.Barrier()

    future = on_ranks(fail, launcher, ranks=2).submit()
    with pytest.raises(ArithmeticError, match="no such energy") as raised:
        future.result(LONG_S)
    if sys.version_info >= (3, 11):
        assert "raised by rank 1 of 2" in raised.value.__notes__[0]


def test_what_cannot_be_pickled_is_described(four: xd.Executor) -> None:
    def fail(comm: Any) -> None:
        raise ValueError(threading.Lock())

    with pytest.raises(xd.errors.RemoteError, match="ValueError"):
        on_ranks(fail, ranks=2).submit().result(LONG_S)


def test_a_rank_that_is_killed_ends_all(
    four: xd.Executor, launcher: str | None, tmp_path: Path
) -> None:
    future = on_ranks(hang, launcher, ranks=2).submit(tmp_path)
    pids = pids_in(tmp_path, 2)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RanksFailed, match="one was killed, crashed") as raised:
        future.result(LONG_S)
    assert raised.value.exit_code != 0
    eventually(lambda: not any(map(is_alive, pids)))
    assert four.options(cores=4).submit(abs, -1).result(LONG_S) == 1


def test_abort_ends_all(four: xd.Executor, launcher: str | None, tmp_path: Path) -> None:
    def abort(comm: Any, folder: Path) -> None:
        note(folder, comm.rank, os.getpid())
        comm.Barrier()
        if comm.rank == 1:
            comm.Abort(7)
        comm.Barrier()

    with pytest.raises(RanksFailed) as raised:
        on_ranks(abort, launcher, ranks=2).submit(tmp_path).result(LONG_S)
    assert raised.value.exit_code == 7
    eventually(lambda: not any(map(is_alive, pids_in(tmp_path, 2))))


def test_cancel_ends_all_ranks(four: xd.Executor, launcher: str | None, tmp_path: Path) -> None:
    future = on_ranks(hang, launcher, ranks=2).submit(tmp_path)
    pids = pids_in(tmp_path, 2)
    assert future.cancel()
    eventually(lambda: not any(map(is_alive, pids)), timeout_s=LONG_S)
    assert four.options(cores=4).submit(abs, -1).result(LONG_S) == 1


def test_ranks_over_their_memory_end_together(four: xd.Executor, tmp_path: Path) -> None:
    def eat(comm: Any, folder: Path) -> int:
        note(folder, comm.rank, os.getpid())
        memory = bytearray(400 * MIB if comm.rank else MIB)
        time.sleep(600)
        return len(memory)

    future = on_ranks(eat, ranks=2, memory_per_rank="150MiB").submit(tmp_path)
    with pytest.raises(MemoryExceeded):
        future.result(LONG_S)
    eventually(lambda: not any(map(is_alive, pids_in(tmp_path, 2))))


def test_ranks_end_at_their_time_limit(four: xd.Executor, tmp_path: Path) -> None:
    future = on_ranks(hang, ranks=2, time="2s").submit(tmp_path)
    with pytest.raises(TimeExceeded):
        future.result(LONG_S)
    eventually(lambda: not any(map(is_alive, pids_in(tmp_path, 2))))


def test_ranks_are_tried_again(four: xd.Executor, tmp_path: Path) -> None:
    def fail_once(comm: Any, folder: Path) -> int:
        has_begun = (folder / "begun").exists()
        comm.Barrier()
        if comm.rank == 0:
            note(folder, "begun")
        comm.Barrier()
        if not has_begun:
            raise OSError("the file system was busy")
        return int(comm.size)

    future = on_ranks(fail_once, ranks=2, retries=1).submit(tmp_path)
    assert future.result(LONG_S) == 2
    assert future.attempts == 2


def test_ranks_that_do_not_see_each_other_are_told_apart(four: xd.Executor) -> None:
    """As where mpiexec and mpi4py are of different MPIs."""
    alone = "env -u PMI_RANK sh -c 'for i in 1 2; do \"$@\"; done' ignored"
    future = on_ranks(lambda comm: comm.rank, launcher=alone, ranks=2).submit()
    with pytest.raises(InvalidRequest, match="2 ranks were started, and each sees 1"):
        future.result(LONG_S)


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ranks": 0}, InvalidRequest, "ranks=0"),
        ({"ranks": 1.5}, InvalidRequest, "ranks=1.5"),
        ({"ranks": 2, "cores": 4}, InvalidRequest, "Say cores_per_rank="),
        ({"ranks": 2, "memory": "1GiB"}, InvalidRequest, "Say memory_per_rank="),
        ({"ranks": 2, "setup": dict}, InvalidRequest, "setup= is not for programs with ranks"),
        ({"ranks": 2, "memory_per_rank": "much"}, InvalidQuantity, "memory='much'"),
        ({"ranks": 3, "gpus_per_rank": 1.5}, InvalidQuantity, "gpus=1.5"),
        ({"ranks": 3, "nodes": 2}, InvalidRequest, "ranks=3, nodes=2 do not go together"),
        ({"nodes": 0}, InvalidRequest, "nodes=0"),
        ({"nodes": 2, "ranks_per_node": True}, InvalidRequest, "ranks_per_node=True"),
        ({"ranks": 8, "nodes": 2, "ranks_per_node": 3}, InvalidRequest, "do not go together"),
        ({"ranks": 2, "gather": "some"}, InvalidRequest, "gather='some'"),
        ({"ranks": 2, "launcher": "srun {host}"}, InvalidRequest, "launcher='srun {host}'"),
        ({"ranks": 2, "launcher": ""}, InvalidRequest, "it is no command"),
        ({"rank": 2}, InvalidRequest, "unknown task option 'rank'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        xd.mpi(**options)(abs)


def test_a_launcher_that_is_not_there_is_named(four: xd.Executor) -> None:
    future = on_ranks(abs, "never-there -n {ranks}", ranks=2).submit(-1)
    with pytest.raises(InvalidRequest, match="there is no 'never-there' on this node"):
        future.result(LONG_S)


def test_without_mpiexec_or_mpi4py_it_is_said_how_to_get_them(
    four: xd.Executor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    ranks_module._mpiexec.cache_clear()
    with pytest.raises(InvalidRequest, match=r"no mpiexec on this node.*pip install mpich"):
        prefix(Layout(ranks=2, each=xd.Resources()), None)
    (tmp_path / "srun").write_text("#!/bin/sh\necho slurm\n")
    (tmp_path / "srun").chmod(0o700)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu1")
    words, environment = prefix(Layout(ranks=2, each=xd.Resources()), None)
    assert " ".join(words).startswith("srun --overlap --overcommit --cpu-bind=none -K -N 1 -w gpu1")
    assert environment["SLURM_JOB_ID"] == "1", "srun must know its job"
    ranks_module._mpiexec.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="pip install --no-binary mpi4py"):
        on_ranks(abs, ranks=2).submit()


def test_ranks_share_the_copy_of_an_input_file(four: xd.Executor, tmp_path: Path) -> None:
    def where(comm: Any, file: xd.File) -> tuple[str, str]:
        return os.fspath(file), Path(file).read_text()

    path = tmp_path / "in.txt"
    path.write_text("3 atoms")
    task = on_ranks(where, ranks=2, gather="all")
    ((copy, text),) = set(task.submit(xd.File(path, stage=True)).result(LONG_S))
    assert (Path(copy).name, text) == ("in.txt", "3 atoms")
    assert copy != str(path)


# -- what the pool says -------------------------------------------------------------------------

STARTED = "sh -c 'echo $STARTED_BY' > out"


def started_by(executor: xd.Executor, **options: Any) -> list[str]:
    result = executor.submit(xd.command(STARTED, ranks=2, **options)).result(LONG_S)
    return Path(result.directory, "out").read_text().split()


def test_a_pool_says_how_ranks_are_started_on_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As in a task of another pool that opens an executor: what that one says counts here no more.
    monkeypatch.setenv("EXADASK_RANK_LAUNCHER", "false")
    mpiexec = ranks_module._mpiexec()
    facts: dict[str, Any] = {"batch": "local", "interface": "lo", "exclusive": False, "cores": 2}
    says = xd.Pool.declare(
        "says", rank_launcher=f"env STARTED_BY=pool {mpiexec} -n {{ranks}}", **facts
    )
    silent = xd.Pool.declare("silent", env={"STARTED_BY": "nobody"}, **facts)
    own = f"env STARTED_BY=task {mpiexec} -n {{ranks}}"
    with xd.Executor(pools=[says, silent], run_folder=tmp_path / "runs") as executor:
        assert started_by(executor, pool="says") == ["pool"] * 2
        assert started_by(executor, pool="says", launcher=own) == ["task"] * 2
        assert started_by(executor, pool="silent") == ["nobody"] * 2
        where = xd.mpi(ranks=2, gather="all", pool="says")(lambda comm: os.environ["STARTED_BY"])
        assert executor.submit(where).result(LONG_S) == ["pool"] * 2


def test_a_launcher_of_a_pool_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXADASK_RANK_LAUNCHER", "no-such-launcher -n {ranks}")
    with pytest.raises(InvalidRequest, match=r"^rank_launcher='no-such-.* no 'no-such-"):
        prefix(Layout(ranks=2, each=xd.Resources()), None)


# -- programs -----------------------------------------------------------------------------------


def test_a_command_runs_as_ranks(four: xd.Executor, launcher: str | None) -> None:
    program = xd.command(
        "sh -c 'echo {text} of $OMP_NUM_THREADS' > out",
        ranks=2,
        cores_per_rank=2,
        launcher=launcher,
    )
    result = program.submit(text="rank").result(LONG_S)
    assert (result.directory / "out").read_text() == "rank of 2\n" * 2
    assert result.command == "sh -c 'echo rank of $OMP_NUM_THREADS' > out"
    shutil.rmtree(result.directory.parent)


def test_a_program_with_more_ranks_than_the_task_has_cores_runs_unbound(
    ex: xd.Executor, tmp_path: Path
) -> None:
    program = xd.command("echo rank", ranks=3, directory=tmp_path)
    assert ex.submit(lambda: program().stdout).result(LONG_S) == "rank\n" * 3


def test_a_command_may_start_its_ranks_itself(four: xd.Executor) -> None:
    script = xd.command("echo first; $EXADASK_MPIEXEC echo rank", ranks=3)
    result = script.submit().result(LONG_S)
    assert result.stdout == "first\n" + "rank\n" * 3
    failing = script.with_options(ranks=2, name="other")
    assert failing.options.request.parts == 2
    assert failing.submit().result(LONG_S).stdout.count("rank") == 2
    with pytest.raises(CommandFailed):
        xd.command("false", ranks=2).submit().result(LONG_S)
    shutil.rmtree(result.directory.parent)
