"""Pools on a real Slurm: jobs of several nodes, growth and shrinking, and every way to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import exadask as xd
from exadask.testing.waiting import eventually

PoolMaker = Callable[..., xd.Pool]

DRIVER = """
import sys, time
import exadask as xd

def sleep(n):
    time.sleep(n)

pool = xd.Pool.declare("cpu", batch="slurm", queue="cpu", nodes=2, interface="lo", walltime="5m")
late = xd.Pool.declare("late", batch="slurm", queue="cpu", interface="lo", directives="--hold")
with xd.Executor(pools=[pool, late]) as ex:
    futures = [ex.options(pool="cpu").submit(sleep, 100) for _ in range(5)]
    futures.append(ex.options(pool="late").submit(sleep, 100))
    while not any(one.running() for one in futures) or len(ex.status().pools[1].allocations) < 1:
        time.sleep(0.1)
    print("ready", flush=True)
    xd.wait(futures)
"""


def where(seconds: float) -> tuple[str, str, str]:
    time.sleep(seconds)
    names = ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
    return tuple(os.environ.get(name, "") for name in names)  # type: ignore[return-value]  # three


def span(folder: str, index: int) -> tuple[str, float, float]:
    began = time.time()
    time.sleep(0.5)
    return os.environ["SLURMD_NODENAME"], began, time.time()


def size(data: bytes) -> int:
    return len(data)


def test_two_pools_of_two_nodes_at_once_behind_one_executor(
    slurm: Any, runs: Path, pool: PoolMaker
) -> None:
    pools = [pool("cpu", nodes=2), pool("gpu", nodes=2, cores=8, gpus=4)]
    with xd.Executor(pools=pools) as ex:
        on_cpus = [ex.submit(where, 2) for _ in range(8)]
        on_gpus = [ex.options(gpus=1).submit(where, 2) for _ in range(8)]
        eventually(lambda: any(one.running() for one in on_cpus + on_gpus))
        assert sorted((job["partition"], job["nodes"]) for job in slurm.jobs()) == [
            ("cpu", "2"),
            ("gpu", "2"),
        ]
        seen_on_cpus = Counter(node for node, _, _ in (one.result(60) for one in on_cpus))
        seen_on_gpus = [one.result(60) for one in on_gpus]
        assert set(seen_on_cpus) == {"cpu1", "cpu2"}
        assert max(seen_on_cpus.values()) <= 4
        devices = Counter((node, device) for node, device, _ in seen_on_gpus)
        assert set(devices) == {(n, d) for n in ("gpu1", "gpu2") for d in ("0", "1", "2", "3")}
        assert len({job for _, _, job in seen_on_gpus}) == 1
    assert slurm.jobs() == []


def test_no_more_tasks_at_a_time_than_gpus(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    with xd.Executor(pools=[pool("gpu", cores=8, gpus=4)]) as ex:
        spans = [
            one.result(60) for one in [ex.options(gpus=1).submit(span, "", i) for i in range(12)]
        ]
    for _, began, _ in spans:
        together = [1 for _, other, ended in spans if other <= began < ended]
        assert len(together) <= 4


def test_a_pinned_task_goes_to_its_pool(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    with xd.Executor(pools=[pool("cpu"), pool("gpu", gpus=4, cores=8)]) as ex:
        node, device, _ = ex.options(pool="gpu").submit(where, 0).result(60)
        assert node.startswith("gpu")
        assert device == ""  # it asked for none, so it sees none
        assert [job["partition"] for job in slurm.jobs()] == ["gpu"]


def test_a_pool_grows_to_its_cap_and_is_given_back(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    pools = [
        pool("cpu", max_allocations=2, idle="3s"),
        pool("gpu", gpus=4, cores=8, max_allocations=2, idle="3s"),
    ]
    with xd.Executor(pools=pools, grow_after_s=0.5) as ex:
        futures = [ex.submit(where, 0.5) for _ in range(40)]
        most = 0
        while not all(one.done() for one in futures):
            jobs = slurm.jobs()
            assert {job["partition"] for job in jobs} <= {"cpu"}
            most = max(most, len(jobs))
            xd.wait(futures, timeout=0.5)
        assert most == 2
        kept = ex.submit(bytes, 3_000_000)
        assert kept.exception(60) is None
        eventually(lambda: not slurm.jobs(), timeout_s=30)
        assert ex.nodes == {}
        assert len({node for node, _, _ in (one.result() for one in futures)}) == 2
        # The result has outlived its node, and only a pool with GPUs starts for a task with GPUs.
        assert ex.options(gpus=1).submit(size, kept).result(60) == 3_000_000
        assert [job["partition"] for job in slurm.jobs()] == ["gpu"]


def test_what_no_budget_pays_for_is_not_waited_for(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    with xd.Executor(pools=[pool("cpu")], budget="1 node-minutes") as ex:
        error = ex.submit(where, 0).exception(30)
        assert isinstance(error, xd.errors.NoNodeLeft)
        assert "budget" in str(error)
    assert slurm.jobs() == []


def test_the_plan_says_what_is_not_done_and_why(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    with xd.Executor(pools=[pool("cpu")], grow_after_s=0.1) as ex:
        futures = [ex.submit(where, 2) for _ in range(20)]
        eventually(lambda: ex.nodes)
        eventually(ex.plan)
        (step,) = ex.plan()
        assert step.command is None
        assert "max_allocations=1" in str(step)
        assert "1 of 1 nodes" in str(ex.status())
        for future in futures:
            future.cancel()


def test_sizes_by_hand(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    with xd.Executor(pools=[pool("cpu", nodes=[1, 2])], scale="manual") as ex:
        future = ex.submit(where, 0)
        ex.scale("cpu", nodes=2)
        eventually(lambda: len(ex.nodes) == 2)
        assert [job["nodes"] for job in slurm.jobs()] == ["2"]
        future.result(60)
        ex.scale("cpu", nodes=0)
        eventually(lambda: not slurm.jobs())


@contextmanager
def started_driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a program with one job that runs and one that is held; it is gone afterwards."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        yield driver
    finally:
        driver.kill()
        driver.communicate()


def test_jobs_are_gone_after_ctrl_c(slurm: Any, runs: Path, tmp_path: Path) -> None:
    with started_driver(tmp_path) as driver:
        assert len(slurm.jobs()) == 2
        driver.send_signal(signal.SIGINT)
        _, stderr = driver.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert slurm.jobs() == []
    assert list(runs.glob("*/tls")) == []


def test_jobs_are_gone_within_20_s_after_the_driver_was_killed(
    slurm: Any, runs: Path, tmp_path: Path
) -> None:
    with started_driver(tmp_path) as driver:
        assert len(slurm.jobs()) == 2
        driver.kill()
    eventually(lambda: not slurm.jobs(), timeout_s=20)
    eventually(lambda: list(runs.glob("*/tls")) == [])
