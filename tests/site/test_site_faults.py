"""What breaks on real machines, during a run: every result arrives, and once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import exadask as xd
from exadask.testing.waiting import eventually

PoolMaker = Callable[..., xd.Pool]
N_TASKS = 200


def work(index: int, marks: str) -> int:
    time.sleep(0.4)
    with Path(marks).open("a") as file:
        file.write(f"{index}\n")
    return index * index


def agents_on(job: str) -> list[psutil.Process]:
    """Find the agents of a job of Slurm."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "exadask.runtime.agent_program" in (process.info["cmdline"] or ()):
            try:
                if process.environ().get("SLURM_JOB_ID") == job:
                    found.append(process)
            except psutil.Error:  # it has just ended
                continue
    return found


def delivered(futures: list[xd.Future[int]]) -> Counter[int]:
    """Count what the caller gets, by callbacks: each future calls back once."""
    seen: Counter[int] = Counter()
    for index, future in enumerate(futures):
        future.add_done_callback(lambda _, index=index: seen.update([index]))  # type: ignore[misc]  # a default binds it
    return seen


def n_done(futures: list[xd.Future[int]]) -> int:
    return sum(one.done() for one in futures)


@pytest.mark.timeout(300)
def test_every_result_arrives_once_whatever_breaks(
    slurm: Any, runs: Path, pool: PoolMaker, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    with xd.Executor(pools=[pool("cpu", max_allocations=4)], grow_after_s=0.5) as ex:
        futures = [ex.submit(work, index, str(marks)) for index in range(N_TASKS)]
        seen = delivered(futures)
        eventually(lambda: n_done(futures) > 10 and len(ex.nodes) == 2)

        first = next(job for job in slurm.jobs() if job["state"] == "RUNNING")
        slurm.run("scancel", first["id"])
        eventually(lambda: first["id"] not in {job["id"] for job in slurm.jobs()})
        eventually(lambda: len(ex.nodes) == 2 or n_done(futures) == N_TASKS, timeout_s=60)

        agents = [one for job in slurm.jobs() for one in agents_on(job["id"])]
        if agents:
            os.kill(agents[0].pid, signal.SIGKILL)
        eventually(lambda: n_done(futures) > 60, timeout_s=60)

        slurm.run("scontrol", "update", "nodename=cpu1", "state=down", "reason=test")
        eventually(lambda: n_done(futures) > 100, timeout_s=60)
        slurm.run("scontrol", "update", "nodename=cpu1", "state=resume", check=False)

        slurm.kill_daemon("cpu2")
        try:
            assert [one.result(120) for one in futures] == [i * i for i in range(N_TASKS)]
        finally:
            slurm.start_daemon("cpu2")
    eventually(lambda: len(seen) == N_TASKS)
    assert set(seen.values()) == {1}, "a result was delivered twice"
    executions = Counter(marks.read_text().split())
    assert len(executions) == N_TASKS
    # What only a node had that died is computed again, as is what ran there; three nodes die.
    assert max(executions.values()) <= 4


@pytest.mark.timeout(200)
def test_a_cancelled_job_costs_no_retry(
    slurm: Any, runs: Path, pool: PoolMaker, tmp_path: Path
) -> None:
    with xd.Executor(pools=[pool("cpu")]) as ex:
        futures = [ex.submit(work, index, str(tmp_path / "marks")) for index in range(40)]
        for _ in range(4):  # more often than a task may lose its node by its own fault
            already = n_done(futures)
            eventually(lambda n=already: n_done(futures) > n or n_done(futures) == 40)  # type: ignore[misc]  # a default binds it
            running = [job["id"] for job in slurm.jobs() if job["state"] == "RUNNING"]
            slurm.run("scancel", "--quiet", *running, check=False)  # it may have ended
        assert [one.result(100) for one in futures] == [i * i for i in range(40)]
