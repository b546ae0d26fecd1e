"""Every trap that Dask has for a scheduler on top of it, one test each."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.runtime.cluster import EmbeddedCluster
from exadask.runtime.scheduler_plugin import HOLD
from exadask.testing.waiting import eventually

pytestmark = pytest.mark.dask

FOUR = xd.NodeShape.declare(cores=4, memory="8GiB")


@pytest.fixture
def two_nodes() -> Iterator[xd.Executor]:
    with xd.Executor(nodes=[FOUR, FOUR]) as executor:
        yield executor
        check_books(executor)


def check_books(executor: xd.Executor) -> None:
    """Nothing is held any more by anyone, and the books agree with themselves."""
    assert isinstance(executor._cluster, EmbeddedCluster)
    placement = executor._cluster.plugin.placement
    eventually(lambda: all(node.ledger.is_idle for node in placement.nodes.values()))
    placement.check()


def wait_for_file(path: Path, started: Path) -> str:
    started.touch()
    eventually(path.exists, timeout_s=60)
    return os.environ.get("EXADASK_SLOT", "")


def test_task_of_a_lost_node_is_held_again_and_runs_elsewhere(
    two_nodes: xd.Executor, tmp_path: Path
) -> None:
    go, started = tmp_path / "go", tmp_path / "started"
    future = two_nodes.options(cores=4).submit(wait_for_file, go, started)
    eventually(started.exists)
    lost = future.node
    assert lost is not None
    assert isinstance(two_nodes._cluster, EmbeddedCluster)
    two_nodes._cluster.lose_node(lost)
    go.touch()
    future.result(30)
    assert future.node not in (None, lost)


def test_retried_task_is_not_pinned_to_a_dead_node(two_nodes: xd.Executor, tmp_path: Path) -> None:
    def fail_first(mark: Path) -> str:
        if mark.exists():
            return "second attempt"
        mark.touch()
        raise OSError("first attempt")

    future = two_nodes.options(retries=1).submit(fail_first, tmp_path / "mark")
    assert future.result(30) == "second attempt"
    assert future.attempts == 2


def test_waiting_tasks_are_held_at_an_address_that_does_not_exist(
    two_nodes: xd.Executor, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    busy = [
        two_nodes.options(cores=4).submit(wait_for_file, go, tmp_path / f"{index}")
        for index in range(2)
    ]
    held = two_nodes.submit(abs, -1)
    assert isinstance(two_nodes._cluster, EmbeddedCluster)
    tasks = two_nodes._cluster.scheduler.tasks
    eventually(lambda: held.key in tasks and tasks[held.key].state == "no-worker")
    assert tasks[held.key].worker_restrictions == {HOLD}
    assert "needs 1 core" in held.explain()
    go.touch()
    assert held.result(30) == 1
    assert len({future.result() for future in busy}) == 2


def test_refused_placement_gives_its_share_back(two_nodes: xd.Executor) -> None:
    cluster = two_nodes._cluster
    assert isinstance(cluster, EmbeddedCluster)
    two_nodes.submit(abs, -1).result(30)
    scheduler = cluster.scheduler

    async def hide_nodes() -> set[object]:
        """Let Dask refuse: its workers take no work, and no event has told us."""
        hidden = set(scheduler.running)
        scheduler.running.clear()
        return hidden

    async def show_nodes(hidden: set[object]) -> None:
        scheduler.running |= hidden
        for worker in hidden:
            message = {"action": "worker-status-change", "worker": worker.address}  # type: ignore[attr-defined]  # a WorkerState
            scheduler.log_event(worker.address, message)  # type: ignore[attr-defined]  # a WorkerState

    hidden = two_nodes.client.sync(hide_nodes)
    future = two_nodes.options(cores=4).submit(abs, -2)
    eventually(lambda: "paused" in future.explain())
    two_nodes.client.sync(show_nodes, hidden)
    assert future.result(30) == 2


def test_joining_node_is_used_at_once(two_nodes: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    futures = [
        two_nodes.options(cores=4).submit(wait_for_file, go, tmp_path / f"{index}")
        for index in range(3)
    ]
    eventually(lambda: sum(future.running() for future in futures) == 2)
    assert isinstance(two_nodes._cluster, EmbeddedCluster)
    name = two_nodes._cluster.add_node(FOUR)
    eventually(lambda: any(future.node == name for future in futures))
    go.touch()
    assert all(future.result(30) for future in futures)


def test_joining_node_does_not_make_dask_look_at_every_held_task(
    two_nodes: xd.Executor, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    busy = [
        two_nodes.options(cores=4).submit(wait_for_file, go, tmp_path / f"{index}")
        for index in range(2)
    ]
    held = two_nodes.options(cores=4).submit(abs, -1)
    cluster = two_nodes._cluster
    assert isinstance(cluster, EmbeddedCluster)
    eventually(lambda: len(cluster.scheduler.unrunnable) == 1)

    async def look() -> dict[str, str]:
        worker = next(iter(cluster.scheduler.workers.values()))
        found: dict[str, str] = cluster.scheduler.bulk_schedule_unrunnable_after_adding_worker(
            worker
        )
        return found

    assert two_nodes.client.sync(look) == {}
    go.touch()
    assert held.result(30) == 1
    assert all(future.result(30) for future in busy)


def stubborn(started: Path, log: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started.touch()
    with log.open("a", buffering=1) as file:
        while True:
            file.write(f"{time.monotonic()}\n")


def test_share_of_a_cancelled_task_is_free_only_when_it_is_dead(tmp_path: Path) -> None:
    with xd.Executor(nodes=[FOUR], kill_grace_s=1.0) as executor:
        started, log = tmp_path / "started", tmp_path / "log"
        first = executor.options(cores=3).submit(stubborn, started, log)
        eventually(started.exists)
        second = executor.options(cores=2).submit(time.monotonic)
        assert first.cancel()
        began = second.result(30)
        assert began >= float(log.read_text().splitlines()[-2])
        check_books(executor)


def test_more_tasks_run_at_once_than_dask_has_threads_by_default(tmp_path: Path) -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=16)]) as executor:
        go = tmp_path / "go"
        futures = [executor.submit(wait_for_file, go, tmp_path / f"{index}") for index in range(16)]
        eventually(lambda: all((tmp_path / f"{index}").exists() for index in range(16)))
        go.touch()
        assert len({future.result(30) for future in futures}) == 16


def fibonacci(n: int) -> int:
    if n < 2:
        return n
    parts = [xd.task(fibonacci).submit(n - 1), xd.task(fibonacci).submit(n - 2)]
    return sum(part.result() for part in parts)


def test_nested_tasks_do_not_deadlock_on_one_core() -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)]) as executor:
        assert executor.submit(fibonacci, 5).result(60) == 5
        check_books(executor)


def wait_as_the_standard_library_does(depth: int) -> int:
    if depth == 0:
        return 1
    parts = [xd.task(wait_as_the_standard_library_does).submit(depth - 1) for _ in range(2)]
    concurrent.futures.wait(parts)
    return sum(part.result() for part in concurrent.futures.as_completed(parts))


def test_waiting_with_the_standard_library_in_a_task_does_not_deadlock() -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)]) as executor:
        assert executor.submit(wait_as_the_standard_library_does, 2).result(60) == 4
        check_books(executor)


def test_untagged_dask_work_counts_as_one_core(two_nodes: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    busy = [
        two_nodes.options(cores=4).submit(wait_for_file, go, tmp_path / f"{index}")
        for index in range(2)
    ]
    eventually(lambda: all((tmp_path / f"{index}").exists() for index in range(2)))
    plain = two_nodes.client.submit(abs, -5)
    assert isinstance(two_nodes._cluster, EmbeddedCluster)
    tasks = two_nodes._cluster.scheduler.tasks
    eventually(lambda: plain.key in tasks and tasks[plain.key].state == "no-worker")
    go.touch()
    assert plain.result(30) == 5
    assert all(future.result(30) for future in busy)


def test_wide_task_is_not_starved_by_narrow_ones(tmp_path: Path) -> None:
    with xd.Executor(nodes=[FOUR], reserve_after_s=0.5) as executor:
        urgent = executor.options(priority=1)
        narrow = [urgent.submit(time.sleep, 0.1) for _ in range(8)]
        wide = executor.options(cores=4).submit(abs, -1)
        narrow += [urgent.submit(time.sleep, 0.1) for _ in range(200)]
        assert wide.result(30) == 1
        assert not all(future.done() for future in narrow)
        for future in narrow:
            future.cancel()


def test_dependencies_run_before_and_their_data_stays_in_the_cluster(
    two_nodes: xd.Executor,
) -> None:
    parts = {
        "a": [two_nodes.submit(pow, 2, n) for n in range(5)],
        "b": (two_nodes.submit(abs, -1),),
    }
    total = two_nodes.submit(lambda parts: sum(parts["a"]) + parts["b"][0], parts)
    assert total.result(30) == 32


def test_task_goes_where_its_large_input_lies(two_nodes: xd.Executor) -> None:
    data = two_nodes.submit(bytes, 10_000_000)
    data.result(30)
    followers = [two_nodes.submit(len, data) for _ in range(3)]
    assert {future.result(30) for future in followers} == {10_000_000}
    assert {future.node for future in followers} == {data.node}


def test_two_clients_share_one_set_of_books(two_nodes: xd.Executor, tmp_path: Path) -> None:
    from distributed import Client

    go = tmp_path / "go"
    busy = [
        two_nodes.options(cores=4).submit(wait_for_file, go, tmp_path / f"{index}")
        for index in range(2)
    ]
    assert isinstance(two_nodes._cluster, EmbeddedCluster)
    with Client(
        two_nodes._cluster.address, loop=two_nodes.client.loop, set_as_default=False
    ) as other:
        plain = other.submit(os.getpid)
        tasks = two_nodes._cluster.scheduler.tasks
        eventually(lambda: plain.key in tasks and tasks[plain.key].state == "no-worker")
        go.touch()
        assert plain.result(30) == os.getpid()
    assert all(future.result(30) for future in busy)


def test_dask_collections_run_on_the_same_cluster(two_nodes: xd.Executor) -> None:
    array = pytest.importorskip("dask.array", reason="dask.array needs NumPy")
    assert int(array.ones((400, 400), chunks=100).sum().compute()) == 160_000
    assert two_nodes.submit(abs, two_nodes.client.submit(int, "-7")).result(30) == 7


def test_workers_argument_of_dask_is_respected(two_nodes: xd.Executor) -> None:
    assert isinstance(two_nodes._cluster, EmbeddedCluster)
    scheduler = two_nodes._cluster.scheduler
    address = next(ws.address for ws in scheduler.workers.values() if ws.name == "node-1")
    futures = [two_nodes.client.submit(pow, 2, n, workers=[address], pure=False) for n in range(6)]
    assert two_nodes.client.gather(futures) == [2**n for n in range(6)]
    assert {tuple(two_nodes.client.who_has([one])[one.key]) for one in futures} == {(address,)}


def test_task_that_kills_three_nodes_in_a_row_is_stopped_and_named(tmp_path: Path) -> None:
    with xd.Executor(nodes=[FOUR] * 7) as executor:  # suspects run alone, one per node
        cluster = executor._cluster
        assert isinstance(cluster, EmbeddedCluster)
        go = tmp_path / "go"
        killer = executor.submit(wait_for_file, tmp_path / "never", tmp_path / "k")
        neighbours = [
            executor.submit(wait_for_file, go, tmp_path / f"{index}") for index in range(3)
        ]
        lost: list[str] = []
        while not killer.done():
            eventually(lambda: killer.done() or killer.node not in (None, *lost))
            if not killer.done():
                assert killer.node is not None
                lost.append(killer.node)
                cluster.lose_node(killer.node)
        go.touch()
        with pytest.raises(xd.errors.NodeLost, match="wait_for_file"):
            killer.result()
        assert len(lost) == 3
        assert all(future.result(30) for future in neighbours)
        check_books(executor)


def test_asyncio_user_can_await_futures(two_nodes: xd.Executor) -> None:
    async def main() -> Any:
        return await asyncio.gather(
            *(asyncio.wrap_future(two_nodes.submit(abs, -n)) for n in (1, 2))
        )

    assert asyncio.run(main()) == [1, 2]


def test_task_cancelled_before_dask_knows_it_never_runs(
    two_nodes: xd.Executor, tmp_path: Path
) -> None:
    for index in range(20):
        future = two_nodes.submit(wait_for_file, tmp_path / "never", tmp_path / f"{index}")
        assert future.cancel()
    assert two_nodes.options(cores=4).submit(abs, -1).result(30) == 1
