"""Programs on several nodes of one allocation of a real Slurm, beside smaller tasks."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import exadask as xd
from exadask.cpulist import parse_cpulist
from exadask.errors import MemoryExceeded, RanksFailed
from exadask.runtime.limits import is_alive
from exadask.testing.waiting import eventually

pytest.importorskip("mpi4py", reason="functions on ranks need it")
pytestmark = pytest.mark.timeout(300)

LONG_S = 100


def executor_of(folder: Path, **more: Any) -> xd.Executor:
    return xd.Executor(
        site="slurm",
        queue="gpu",
        interface="lo",
        run_folder=folder / "runs",
        env={"SLURM_MPI_TYPE": "pmi2"},  # that of the MPI which is here
        **more,
    )


@pytest.fixture
def two_nodes(slurm: Any, tmp_path: Path) -> Iterator[xd.Executor]:
    """One allocation of two nodes, of 8 cores and 4 GPUs each."""
    with executor_of(tmp_path, nodes=2) as executor:
        yield executor


def where(comm: Any) -> tuple[str, str]:
    """Say where a rank is, and which GPU it sees."""
    return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]


def hang(comm: Any, folder: str) -> None:
    """Never end; each rank leaves its process id under the name of its node."""
    draft = Path(folder, f"{comm.rank}.draft")
    draft.write_text(f"{os.environ['SLURMD_NODENAME']} {os.getpid()} {os.environ['EXADASK_SLOT']}")
    draft.rename(Path(folder, str(comm.rank)))
    comm.Barrier()
    time.sleep(600)


def ranks_in(folder: Path, count: int) -> list[tuple[str, int, str]]:
    """Give the node, the process and the mark of each rank that hangs."""
    eventually(lambda: all((folder / str(one)).exists() for one in range(count)), timeout_s=LONG_S)
    texts = [(folder / str(one)).read_text().split() for one in range(count)]
    return [(node, int(pid), mark) for node, pid, mark in texts]


def begun(executor: xd.Executor, folder: Path) -> tuple[Any, list[tuple[str, int, str]]]:
    """Let four ranks hang on two nodes; what they leave is taken away, for the next attempt."""
    future = executor.submit(xd.mpi(nodes=2, ranks_per_node=2)(hang), str(folder))
    ranks = ranks_in(folder, 4)
    for one in range(4):
        (folder / str(one)).unlink()
    return future, ranks


def of_node(command: str, mark: str) -> int:
    """Find the agent that gave out a mark."""
    pid = int(mark.split("-")[0])
    assert command in " ".join(psutil.Process(pid).cmdline())
    return pid


@pytest.mark.parametrize("launcher", [None, "srun"], ids=["mpiexec", "srun"])
def test_gangs_pairs_and_single_tasks_share_one_allocation(
    slurm: Any, two_nodes: xd.Executor, launcher: str | None
) -> None:
    """All ranks are where the books say, with the GPUs that the books say."""
    options: dict[str, Any] = {"gpus_per_rank": 1, "gather": "all", "launcher": launcher}
    wide = xd.mpi(nodes=2, ranks_per_node=2, **options)(where)
    pair = xd.mpi(ranks=2, gpus_per_rank=1, gather="all")(where)
    gangs = [two_nodes.submit(wide) for _ in range(4)]
    pairs = [two_nodes.submit(pair) for _ in range(4)]
    singles = [two_nodes.submit(pow, number, 2) for number in range(200)]
    assert [one.result(LONG_S) for one in singles] == [number**2 for number in range(200)]
    for gang in gangs:
        ranks = gang.result(LONG_S)
        nodes = [node for node, _ in ranks]
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
        assert {node: Counter(nodes)[node] for node in nodes} == {"gpu1": 2, "gpu2": 2}
        assert len(set(ranks)) == 4, "no two ranks share a GPU"
    for one in pairs:
        (first, _), (second, _) = ranks = one.result(LONG_S)
        assert first == second
        assert len(set(ranks)) == 2
    assert len(slurm.jobs()) == 1


def test_the_record_knows_all_nodes_of_a_gang(two_nodes: xd.Executor, tmp_path: Path) -> None:
    wide = xd.mpi(nodes=2, ranks_per_node=3)(hang)
    future = two_nodes.submit(wide, str(tmp_path))
    ranks_in(tmp_path, 6)
    said = future.explain()
    assert "slurm-0-0 with cores" in said
    assert "slurm-0-1 with cores" in said
    for part in said.removeprefix("running on ").split("; "):
        assert len(parse_cpulist(part.rpartition(" ")[2])) == 3
    future.cancel()


@pytest.mark.parametrize("launcher", [None, "srun"], ids=["mpiexec", "srun"])
@pytest.mark.parametrize("victim", ["rank", "cancel"])
def test_the_end_of_one_rank_is_that_of_all_on_both_nodes(
    slurm: Any, two_nodes: xd.Executor, victim: str, launcher: str | None, tmp_path: Path
) -> None:
    wide = xd.mpi(nodes=2, ranks_per_node=4, cores_per_rank=2, launcher=launcher)(hang)
    future = two_nodes.submit(wide, str(tmp_path))
    ranks = ranks_in(tmp_path, 8)
    if victim == "rank":
        os.kill(ranks[-1][1], signal.SIGKILL)
        with pytest.raises(RanksFailed):
            future.result(LONG_S)
    else:
        assert future.cancel()
    eventually(lambda: not any(is_alive(pid) for _, pid, _ in ranks), timeout_s=LONG_S)
    again = xd.mpi(nodes=2, cores_per_rank=8, gpus_per_rank=4, gather="all")(where)
    assert len(two_nodes.submit(again).result(LONG_S)) == 2, "all cores and GPUs are free again"


@pytest.mark.parametrize("launcher", [None, "srun"], ids=["mpiexec", "srun"])
@pytest.mark.parametrize("rank", [0, 3])
def test_ranks_over_their_memory_end_on_both_nodes(
    slurm: Any, two_nodes: xd.Executor, rank: int, launcher: str | None, tmp_path: Path
) -> None:
    """Also those that are no descendants of the task, since Slurm's daemons have started them."""

    def eat(comm: Any) -> int:
        comm.Barrier()
        memory = bytearray(600 * 2**20 if comm.rank == rank else 1)
        if comm.rank != rank:
            hang(comm, str(tmp_path))
        time.sleep(600)
        return len(memory)

    wide = xd.mpi(nodes=2, ranks_per_node=2, memory_per_rank="150MiB", launcher=launcher)(eat)
    future = two_nodes.submit(wide)
    with pytest.raises(MemoryExceeded) as raised:
        future.result(LONG_S)
    assert (future.node == raised.value.node) == (rank == 0), "it names the node"
    pids = [int(one.read_text().split()[1]) for one in tmp_path.glob("[0-9]")]
    eventually(lambda: not any(map(is_alive, pids)), timeout_s=LONG_S)
    again = xd.mpi(nodes=2, cores_per_rank=8, gpus_per_rank=4, gather="all")(where)
    assert len(two_nodes.submit(again).result(LONG_S)) == 2, "all cores and GPUs are free again"


@pytest.mark.parametrize("index", [0, -1], ids=["first", "other"])
def test_a_gang_whose_agent_is_killed_starts_again_in_another_allocation(
    slurm: Any, index: int, tmp_path: Path
) -> None:
    with executor_of(tmp_path, nodes=2) as executor:
        future, ranks = begun(executor, tmp_path)
        os.kill(of_node("exadask", ranks[index][2]), signal.SIGKILL)
        again = ranks_in(tmp_path, 4)
        assert {pid for _, pid, _ in again}.isdisjoint(pid for _, pid, _ in ranks)
        eventually(lambda: not any(is_alive(pid) for _, pid, _ in ranks), timeout_s=LONG_S)
        assert len({node for node, _, _ in again}) == 2
        future.cancel()


def test_the_death_of_a_nodes_daemon_does_not_hurt_a_gang(slurm: Any, tmp_path: Path) -> None:
    try:
        with executor_of(tmp_path, nodes=2) as executor:
            wide = xd.mpi(nodes=2, ranks_per_node=2)(hang)
            future = executor.submit(wide, str(tmp_path))
            ranks = ranks_in(tmp_path, 4)
            slurm.kill_daemon("gpu2")
            after = xd.mpi(nodes=2, gather="all")(where)
            assert len(executor.submit(after).result(LONG_S)) == 2
            assert future.cancel()
            eventually(lambda: not any(is_alive(pid) for _, pid, _ in ranks), timeout_s=LONG_S)
    finally:
        slurm.start_daemon("gpu2")
        eventually(slurm.nodes_are_up, timeout_s=LONG_S)


def test_a_gang_whose_allocation_is_cancelled_starts_again_uncounted(
    slurm: Any, tmp_path: Path
) -> None:
    with executor_of(tmp_path, nodes=2) as executor:
        future, ranks = begun(executor, tmp_path)
        slurm.run("scancel", *(job["id"] for job in slurm.jobs()))
        again = ranks_in(tmp_path, 4)
        eventually(lambda: not any(is_alive(pid) for _, pid, _ in ranks), timeout_s=LONG_S)
        assert {pid for _, pid, _ in again}.isdisjoint(pid for _, pid, _ in ranks)
        assert not future.done()
        future.cancel()
