"""Functions and programs on several nodes, with the real process managers that are installed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import exadask as xd
from exadask.errors import (
    CommandFailed,
    ImpossibleRequest,
    InvalidRequest,
    MemoryExceeded,
    RanksFailed,
    TimeExceeded,
)
from exadask.runtime.cluster import EmbeddedCluster
from exadask.runtime.limits import is_alive
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.dask

LONG_S = 60
MIB = 2**20
LAUNCHERS = {
    "found": None,
    "mpich": "mpiexec.mpich -localhost 127.0.0.1 -f {hostfile} -n {ranks}",
    "openmpi": "mpiexec.openmpi --oversubscribe --bind-to none --hostfile {hostfile} -n {ranks}",
}
Nodes = Callable[[int], xd.Executor]


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> str | None:
    """What starts ranks: that of this environment, and those of the system."""
    wanted = LAUNCHERS[request.param]
    if wanted is not None and shutil.which(wanted.split()[0]) is None:
        pytest.skip(f"there is no {wanted.split()[0]} here (as root: apt-get install it)")
    return wanted


@pytest.fixture
def open_nodes() -> Iterator[Nodes]:
    """Open nodes of two cores and two GPUs, which bind nobody; all is free again at the end."""
    opened = []

    def open_so_many(n_nodes: int) -> xd.Executor:
        shape = xd.NodeShape.declare(cores=2, gpus=2, memory="4GiB")
        executor = xd.Executor(nodes=[replace(shape, gpu_vendor="nvidia")] * n_nodes)
        opened.append(executor)
        return executor.__enter__()

    yield open_so_many
    for executor in opened:
        n_nodes = len(executor.nodes)
        whole = xd.command("true", nodes=n_nodes, cores_per_rank=2, gpus_per_rank=2)
        if n_nodes > 1:
            result = executor.submit(whole).result(LONG_S)
            shutil.rmtree(result.directory.parent, ignore_errors=True)
        executor.shutdown()


@pytest.fixture
def two(open_nodes: Nodes) -> xd.Executor:
    """Two nodes."""
    return open_nodes(2)


def on_nodes(function: Any, launcher: str | None = None, **options: Any) -> Any:
    return xd.mpi(launcher=launcher, **{"nodes": 2, "ranks_per_node": 1, **options})(function)


def note(folder: Path, name: object, text: object = "") -> None:
    draft = folder / f"{name}.draft"
    draft.write_text(str(text))
    draft.rename(folder / str(name))


def hang(comm: Any, folder: Path) -> None:
    note(folder, comm.rank, os.getpid())
    comm.Barrier()
    time.sleep(600)


def pids_in(folder: Path, count: int) -> list[int]:
    eventually(lambda: all((folder / str(rank)).exists() for rank in range(count)),
               timeout_s=LONG_S)  # fmt: skip
    return [int((folder / str(rank)).read_text()) for rank in range(count)]


# -- what comes back ----------------------------------------------------------------------------


def test_ranks_on_two_nodes_work_together(two: xd.Executor, launcher: str | None) -> None:
    def total(comm: Any, values: list[int], *, scale: int = 1) -> tuple[int, int, list[str]]:
        places = comm.allgather(os.environ["EXADASK_PART"])
        return comm.size, scale * comm.allreduce(sum(values[comm.rank :: comm.size])), places

    task = on_nodes(total, launcher, ranks_per_node=2)
    size, found, places = two.submit(task, list(range(100)), scale=2).result(LONG_S)
    assert (size, found) == (4, 9900)
    assert [places.count(one) for one in places] == [2, 2, 2, 2]
    assert places[0] == places[1], "ranks are numbered node by node"


def test_all_ranks_can_answer_and_arrays_may_be_large(two: xd.Executor) -> None:
    def block(comm: Any, field: Any) -> Any:
        return np.array_split(field, comm.size)[comm.rank] + comm.rank

    field = np.arange(3_000_000, dtype="f8")
    blocks = on_nodes(block, gather="all").submit(field).result(LONG_S)
    assert [one.shape for one in blocks] == [(1_500_000,)] * 2
    assert np.array_equal(np.concatenate(blocks) - np.repeat([0, 1], 1_500_000), field)


def test_ranks_are_spread_where_no_node_has_room_for_all(two: xd.Executor) -> None:
    def mine(comm: Any) -> tuple[str, str, str]:
        gpus = os.environ["CUDA_VISIBLE_DEVICES"]
        return os.environ.get("EXADASK_PART", ""), gpus, os.environ["EXADASK_RANKS_PER_NODE"]

    task = xd.mpi(ranks=3, gpus_per_rank=0.5, gather="all")(mine)
    future = task.submit()
    ranks = future.result(LONG_S)
    assert [ranks[0][0] == one for one, _, _ in ranks] == [True, True, False]
    assert [gpu for _, gpu, _ in ranks] == ["0", "0", "0"]
    assert {counts for _, _, counts in ranks} == {"2,1"}
    assert task.with_options(ranks=2).submit().result(LONG_S)[0][2] == "2", "these fit on one"


def test_each_node_has_its_own_gpus(two: xd.Executor, launcher: str | None, tmp_path: Path) -> None:
    def mine(comm: Any) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def hold(folder: Path) -> str:
        note(folder, "begun")
        eventually(lambda: (folder / "go").exists(), timeout_s=LONG_S)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    held = two.options(gpus=1).submit(hold, tmp_path)
    eventually(lambda: (tmp_path / "begun").exists())
    task = on_nodes(mine, launcher, gpus_per_rank=1, gather="all")
    found = task.submit().result(LONG_S)
    note(tmp_path, "go")
    assert held.result(LONG_S) == "0"
    assert sorted(found) == ["0", "1"], "beside the other on one node, with the first of the other"


def test_what_ranks_write_is_the_tasks_output(two: xd.Executor, launcher: str | None) -> None:
    def speak(comm: Any) -> None:
        sys.stdout.write(f"I am {comm.rank}\n")
        sys.stderr.write(f"he is {comm.rank}\n")

    future = on_nodes(speak, launcher).submit()
    assert future.result(LONG_S) is None
    assert sorted(future.stdout().split("\n")) == ["", "I am 0", "I am 1"]
    assert {"he is 0", "he is 1"} <= set(future.stderr().split("\n"))


def test_a_program_knows_its_nodes(two: xd.Executor, launcher: str | None, tmp_path: Path) -> None:
    program = xd.command(
        "grep -c exadask $EXADASK_HOSTFILE; $EXADASK_MPIEXEC sh -c 'echo $EXADASK_PART'",
        nodes=2,
        ranks_per_node=2,
        launcher=launcher,
    )
    result = program.submit().result(LONG_S)
    count, *places = result.stdout.split()
    assert count == "2"
    assert sorted(places.count(one) for one in places) == [2, 2, 2, 2]
    shutil.rmtree(result.directory.parent)
    failing = xd.command("false", nodes=2, launcher=launcher, directory=tmp_path)
    with pytest.raises(CommandFailed):
        failing.submit().result(LONG_S)


def test_gangs_and_single_tasks_share_the_nodes(two: xd.Executor) -> None:
    """The books count each node of each gang, and where it runs is told."""

    def size(comm: Any) -> int:
        return int(comm.size)

    pairs = xd.mpi(ranks=2)(size)
    wide = [two.submit(on_nodes(size)) for _ in range(4)]
    narrow = [two.submit(pairs) for _ in range(4)]
    singles = [two.submit(pow, number, 2) for number in range(200)]
    assert [one.result(LONG_S) for one in singles] == [number**2 for number in range(200)]
    assert [one.result(LONG_S) for one in (*wide, *narrow)] == [2] * 8
    assert {one.node for one in wide} == {one.node for one in wide if one.node is not None}


def test_a_task_may_wait_for_a_gang_that_needs_its_own_cores(two: xd.Executor) -> None:
    def outer() -> int:
        inner = on_nodes(lambda comm: comm.size, cores_per_rank=2)
        return int(inner.submit().result())

    calls = [two.submit(outer) for _ in range(3)]
    assert [one.result(LONG_S) for one in calls] == [2, 2, 2]


# -- how long it waits --------------------------------------------------------------------------


def wait_for(path: Path) -> None:
    eventually(path.exists, timeout_s=LONG_S)


def test_small_tasks_run_while_a_gang_waits_for_both_nodes(tmp_path: Path) -> None:
    shapes = [xd.NodeShape.declare(cores=2)] * 2
    with xd.Executor(nodes=shapes, reserve_after_s=0.2) as executor:
        held = executor.options(time="50s").submit(wait_for, tmp_path / "go")
        eventually(held.running)
        gang = on_nodes(lambda comm: comm.size, cores_per_rank=2).submit()
        executor.submit(abs, -1).result(LONG_S)  # what overtakes it
        eventually(lambda: "reserved for it" in gang.explain(), timeout_s=LONG_S)
        late = executor.options(time="100s").submit(abs, -2)
        for number in range(5):
            assert executor.options(time="1s").submit(abs, -number).result(LONG_S) == number
        assert not gang.running()
        assert not late.running(), "it might not end before the gang can begin"
        note(tmp_path, "go")
        assert gang.result(LONG_S) == 2
        assert late.result(LONG_S) == 2


def test_a_gang_starts_although_small_tasks_never_cease(tmp_path: Path) -> None:
    shapes = [xd.NodeShape.declare(cores=2)] * 2
    with xd.Executor(nodes=shapes, reserve_after_s=0.5) as executor:

        def refill(running: list[Any]) -> list[Any]:
            left = [one for one in running if not one.done()]
            return left + [executor.submit(time.sleep, 0.05) for _ in range(8 - len(left))]

        stream = refill([])
        gang = on_nodes(lambda comm: comm.size, cores_per_rank=2).submit()
        deadline_s = time.monotonic() + LONG_S
        while not gang.done():
            assert time.monotonic() < deadline_s, gang.explain()
            stream = refill(stream)
            xd.wait(stream, return_when="FIRST_COMPLETED")
        assert gang.result() == 2
        for one in stream:
            one.result(LONG_S)


# -- when it goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_rank_raises_is_raised(two: xd.Executor, launcher: str | None, rank: int) -> None:
    def fail(comm: Any) -> None:
        if comm.rank == rank:
            raise ArithmeticError("no such energy")
        comm.Barrier()

    with pytest.raises(ArithmeticError, match="no such energy") as raised:
        on_nodes(fail, launcher).submit().result(LONG_S)
    if sys.version_info >= (3, 11):
        assert f"raised by rank {rank} of 2" in raised.value.__notes__[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all(
    two: xd.Executor, launcher: str | None, rank: int, tmp_path: Path
) -> None:
    future = on_nodes(hang, launcher).submit(tmp_path)
    pids = pids_in(tmp_path, 2)
    os.kill(pids[rank], signal.SIGKILL)
    with pytest.raises(RanksFailed, match="one was killed, crashed"):
        future.result(LONG_S)
    eventually(lambda: not any(map(is_alive, pids)))


def test_abort_ends_all(two: xd.Executor, launcher: str | None, tmp_path: Path) -> None:
    def abort(comm: Any, folder: Path) -> None:
        note(folder, comm.rank, os.getpid())
        comm.Barrier()
        if comm.rank == 1:
            comm.Abort(7)
        comm.Barrier()

    with pytest.raises(RanksFailed) as raised:
        on_nodes(abort, launcher).submit(tmp_path).result(LONG_S)
    assert raised.value.exit_code == 7
    eventually(lambda: not any(map(is_alive, pids_in(tmp_path, 2))))


def test_cancel_ends_all_ranks(two: xd.Executor, launcher: str | None, tmp_path: Path) -> None:
    future = on_nodes(hang, launcher).submit(tmp_path)
    pids = pids_in(tmp_path, 2)
    assert "node-0" in future.explain()
    assert "node-1" in future.explain()
    assert future.cancel()
    eventually(lambda: not any(map(is_alive, pids)), timeout_s=LONG_S)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_over_their_memory_end_on_all_nodes(
    two: xd.Executor, rank: int, tmp_path: Path
) -> None:
    def eat(comm: Any, folder: Path) -> int:
        note(folder, comm.rank, os.getpid())
        comm.Barrier()
        memory = bytearray(400 * MIB if comm.rank == rank else MIB)
        time.sleep(600)
        return len(memory)

    future = on_nodes(eat, memory_per_rank="200MiB").submit(tmp_path)
    with pytest.raises(MemoryExceeded) as raised:
        future.result(LONG_S)
    nodes = future.node, raised.value.node
    assert (nodes[0] == nodes[1]) == (rank == 0), "the error names the node where it happened"
    eventually(lambda: not any(map(is_alive, pids_in(tmp_path, 2))))


def test_ranks_end_at_their_time_limit(two: xd.Executor, tmp_path: Path) -> None:
    future = on_nodes(hang, time="3s").submit(tmp_path)
    with pytest.raises(TimeExceeded):
        future.result(LONG_S)
    eventually(lambda: not any(map(is_alive, pids_in(tmp_path, 2))))


def test_ranks_are_tried_again(two: xd.Executor, tmp_path: Path) -> None:
    def fail_once(comm: Any, folder: Path) -> int:
        has_begun = (folder / "begun").exists()
        comm.Barrier()
        if comm.rank == 0:
            note(folder, "begun")
        comm.Barrier()
        if not has_begun:
            raise OSError("the file system was busy")
        return int(comm.size)

    future = on_nodes(fail_once, retries=1).submit(tmp_path)
    assert future.result(LONG_S) == 2
    assert future.attempts == 2


@pytest.mark.parametrize("which", ["first", "other"])
def test_a_gang_that_loses_a_node_starts_again_on_others(
    open_nodes: Nodes, which: str, tmp_path: Path
) -> None:
    def work(comm: Any, folder: Path) -> int:
        round_ = 0 if comm.rank == 0 and not (folder / "0").exists() else 1
        round_ = comm.bcast(round_)
        note(folder, comm.rank + 2 * round_, os.getpid())
        comm.Barrier()
        if not round_:
            time.sleep(600)
        return int(comm.size)

    executor = open_nodes(3)
    future = on_nodes(work).submit(tmp_path)
    pids = pids_in(tmp_path, 2)
    first = str(future.node)
    held = [name for name in executor.nodes if name in future.explain()]
    assert len(held) == 2
    (other,) = set(held) - {first}
    cluster = executor._cluster
    assert isinstance(cluster, EmbeddedCluster)
    cluster.lose_node(first if which == "first" else other)
    assert future.result(LONG_S) == 2
    eventually(lambda: not any(map(is_alive, pids)))


def test_processes_that_left_their_ranks_end_with_the_gang(
    two: xd.Executor, launcher: str | None, tmp_path: Path
) -> None:
    def leave(comm: Any, folder: Path) -> None:
        daemon = f"setsid sh -c 'echo $$ > {folder}/d{comm.rank}; exec sleep 600' > /dev/null 2>&1"
        os.system(f"{daemon} &")
        hang(comm, folder)

    future = on_nodes(leave, launcher).submit(tmp_path)
    pids_in(tmp_path, 2)
    eventually(lambda: all((tmp_path / f"d{rank}").exists() for rank in (0, 1)))
    pids = [int((tmp_path / f"d{rank}").read_text()) for rank in (0, 1)]
    assert future.cancel()
    eventually(lambda: not any(map(is_alive, pids)), timeout_s=LONG_S)


# -- mistakes -----------------------------------------------------------------------------------


def test_what_can_never_run_is_refused(two: xd.Executor) -> None:
    with pytest.raises(ImpossibleRequest, match="one allocation has at most 2 nodes with 2 cores"):
        on_nodes(abs, nodes=3).submit(-1)
    with pytest.raises(ImpossibleRequest, match="5 ranks with 1 core each"):
        xd.mpi(ranks=5)(abs).submit(-1)
    with pytest.raises(ImpossibleRequest, match="2 nodes with 4 cores each"):
        on_nodes(abs, cores_per_rank=4).submit(-1)


def test_a_launcher_of_one_node_is_told_apart(two: xd.Executor) -> None:
    future = on_nodes(abs, "mpiexec -n {ranks}").submit(-1)
    with pytest.raises(InvalidRequest, match="starts ranks on one node, and these are on 2"):
        future.result(LONG_S)


def test_a_host_that_is_no_place_of_the_task_is_named(two: xd.Executor, tmp_path: Path) -> None:
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    if mpiexec is None:
        pytest.skip("there is no mpiexec beside this Python")
    script = f"$EXADASK_MPIEXEC true; {mpiexec} -hosts elsewhere -n 1 true"
    program = xd.command(script, nodes=2, name="script", directory=tmp_path)
    expected = "elsewhere is no place of task script, whose places are exadask-0, exadask-1"
    with pytest.raises(CommandFailed, match=expected):
        program.submit().result(LONG_S)


# -- all of it at once --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [3, 8])
def test_gangs_go_on_while_nodes_come_and_go(seed: int) -> None:
    """Each call ends as it should, and in the end nobody holds anything."""

    def nap(comm: Any, seconds: float) -> int:
        comm.Barrier()
        time.sleep(seconds)
        return int(comm.allreduce(1))

    rng = random.Random(seed)
    shape = xd.NodeShape.declare(cores=2)
    layouts: list[dict[str, Any]] = [
        {"nodes": 2},
        {"nodes": 3},
        {"nodes": 1, "ranks_per_node": 2},
        {"ranks": 3},
    ]
    with xd.Executor(nodes=[shape] * 4) as executor:
        cluster = executor._cluster
        assert isinstance(cluster, EmbeddedCluster)
        calls = []
        for layout in rng.choices(layouts, k=10):
            n_ranks = layout.get("ranks", layout.get("nodes", 1) * layout.get("ranks_per_node", 1))
            calls.append((n_ranks, xd.mpi(**layout)(nap).submit(rng.choice([0.05, 0.5]))))
        singles = [executor.submit(pow, number, 2) for number in range(100)]
        for n_done in (2, 5):  # who sees three nodes die in a row is not tried again
            while sum(one.done() for _, one in calls) < n_done:
                left = [one for _, one in calls if not one.done()]
                xd.wait(left, timeout=LONG_S, return_when="FIRST_COMPLETED")
            victim = rng.choice(list(cluster.shapes))
            cluster.add_node(shape)
            cluster.lose_node(victim)
        for n_ranks, call in calls:
            assert call.result(LONG_S) == n_ranks
        assert [one.result(LONG_S) for one in singles] == [number**2 for number in range(100)]
        placement = cluster._plugin.placement
        eventually(lambda: not any(node.shares for node in placement.nodes.values()))
        placement.check()
