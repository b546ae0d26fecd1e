"""Pools that cannot work: each ends in its own error that says what to change, and none hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import exadask as xd

PoolMaker = Callable[..., xd.Pool]
WITHIN_S = 60


def failure(pool: xd.Pool) -> str:
    """Submit one task; give the message of the pool's error."""
    began_s = time.monotonic()
    with xd.Executor(pools=[pool]) as ex:
        error = ex.submit(abs, -1).exception(timeout=WITHIN_S)
    assert time.monotonic() - began_s < WITHIN_S
    assert isinstance(error, xd.errors.AllocationFailed), repr(error)
    assert error.pool == pool.name
    return str(error)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"queue": "nope"}, ("nope", "queue=")),
        ({"account": "nobody"}, ("account", "account=")),
        ({"python": "/no/such/python"}, ("/no/such/python", "No such file")),
        ({"interface": "ib9", "scheduler_interface": "lo"}, ("no network interface 'ib9'",)),
        ({"launcher": "jsrun"}, ("jsrun", "not found")),
        ({"modules": "no-such-module"}, ("setup", "module load no-such-module")),
        ({"venv": "/no/such/venv"}, ("setup", "/no/such/venv/bin/activate")),
        ({"setup": "false"}, ("setup", "false")),
        ({"prologue": "exit 9"}, ("exit code 9",)),
        ({"directives": "--mem=100G"}, ("emory", "memory")),
        ({"walltime": "5h"}, ("walltime=",)),
        ({"nodes": 9}, ("nodes=",)),
        ({"directives": "--no-such-option=3"}, ("--no-such-option", "directives=")),
        ({"directives": "--constraint=quantum"}, ("directives=",)),
        ({"scratch": "/proc/nowhere"}, ("scratch", "/proc/nowhere")),
    ],
    ids=lambda one: ",".join(map(str, one)) if isinstance(one, dict) else "",
)
def test_each_ends_in_its_own_error(
    slurm: Any, runs: Path, pool: PoolMaker, facts: dict[str, Any], said: tuple[str, ...]
) -> None:
    message = failure(pool("cpu", **facts))
    for text in said:
        assert text in message, message
    assert slurm.jobs() == []


def test_an_interface_that_the_scheduler_has_not(runs: Path, pool: PoolMaker) -> None:
    with pytest.raises(xd.errors.InvalidRequest, match=r"no network interface 'ib9'.*It has lo"):
        xd.Executor(pools=[pool("cpu", scheduler_interface="ib9")])


def test_a_run_folder_that_cannot_be_written(
    pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXADASK_RUN_FOLDER", "/proc/runs")
    with pytest.raises(xd.errors.RunFolderError, match=r"/proc/runs.*EXADASK_RUN_FOLDER"):
        xd.Executor(pools=[pool("cpu")])


def test_a_batch_system_that_is_not_here(
    runs: Path, pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    message = failure(pool("cpu"))
    assert "there is no sbatch on this machine" in message
    assert "login node" in message


def test_another_pool_goes_on(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    with xd.Executor(pools=[pool("bad", queue="nope"), pool("cpu")]) as ex:
        assert [ex.submit(abs, -n).result(WITHIN_S) for n in range(3)] == [0, 1, 2]
        error = ex.options(pool="bad").submit(abs, -1).exception(WITHIN_S)
        assert isinstance(error, xd.errors.AllocationFailed | xd.errors.ImpossibleRequest)
        (bad, good) = ex.status().pools
        assert bad.closed_reason is not None
        assert good.closed_reason is None


def test_a_held_job_is_said_to_be_held(
    slurm: Any, runs: Path, pool: PoolMaker, caplog: pytest.LogCaptureFixture
) -> None:
    from exadask.testing.waiting import eventually

    with xd.Executor(pools=[pool("cpu", directives="--hold")]) as ex:
        future = ex.submit(abs, -5)
        eventually(lambda: "held" in future.explain())
        assert "somebody must release it" in caplog.text
        slurm.run("scontrol", "release", *(job["id"] for job in slurm.jobs()))
        assert future.result(WITHIN_S) == 5


def test_a_partition_that_is_down_is_named(slurm: Any, runs: Path, pool: PoolMaker) -> None:
    from exadask.testing.waiting import eventually

    with xd.Executor(pools=[pool("cpu", queue="closed")]) as ex:
        future = ex.submit(abs, -5)
        eventually(lambda: "PartitionDown" in future.explain())
        future.cancel()
