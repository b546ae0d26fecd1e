"""MPI between one-core tasks, on nodes of a real Slurm."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.errors import InvalidRequest, MemoryExceeded

pytest.importorskip("mpi4py", reason="functions on ranks need it")

RECIPES = Path(__file__).parents[2] / "recipes"
SLURM = ("--site", "slurm", "--queue", "cpu", "--nodes", "2", "-o", "interface=lo")
COMMAND = "from exadask.cli.main import main; main()"
LONG_S = 100

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def two_nodes(slurm: Any, tmp_path: Path) -> Any:
    """One allocation of two nodes, whose Slurm speaks the PMI of the MPI that is here."""
    with xd.Executor(
        site="slurm",
        queue="gpu",
        nodes=2,
        interface="lo",
        run_folder=tmp_path / "runs",
        env={"SLURM_MPI_TYPE": "pmi2"},
    ) as executor:
        yield executor


def where(comm: Any) -> tuple[str, int, int]:
    """Say where a rank is, which it is, and how many they are."""
    return os.environ["SLURMD_NODENAME"], comm.rank, comm.size


def gpus_of(comm: Any) -> tuple[str, str]:
    """Say which GPUs a rank sees, while others run beside it."""
    time.sleep(0.5)
    return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize("launcher", [None, "srun"], ids=["mpiexec", "srun"])
def test_ranks_and_single_tasks_share_the_nodes(two_nodes: xd.Executor, launcher: str) -> None:
    pairs = xd.mpi(ranks=2, gather="all", launcher=launcher)(where)
    gangs = [two_nodes.submit(pairs) for _ in range(8)]
    singles = [two_nodes.submit(pow, number, 2) for number in range(200)]
    assert [one.result(LONG_S) for one in singles] == [number**2 for number in range(200)]
    for gang in gangs:
        ranks = gang.result(LONG_S)
        assert [rank for _, rank, _ in ranks] == [0, 1]
        assert {size for _, _, size in ranks} == {2}
        assert len({node for node, _, _ in ranks}) == 1
        assert gang.node is not None


@pytest.mark.parametrize("launcher", [None, "srun"], ids=["mpiexec", "srun"])
def test_ranks_of_several_tasks_share_no_gpu(two_nodes: xd.Executor, launcher: str | None) -> None:
    """Whatever Slurm says in the vendor's variable to the steps that it starts."""
    pair = xd.mpi(ranks=2, gpus_per_rank=1, gather="all", launcher=launcher)(gpus_of)
    tasks = [two_nodes.submit(pair) for _ in range(4)]
    seen = [rank for task in tasks for rank in task.result(LONG_S)]
    assert sorted(seen) == [(node, str(gpu)) for node in ("gpu1", "gpu2") for gpu in range(4)]
    without = xd.mpi(ranks=2, gather="all", launcher=launcher)(gpus_of)
    assert {gpus for _, gpus in two_nodes.submit(without).result(LONG_S)} == {""}


def test_srun_that_speaks_another_pmi_is_told_apart(slurm: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with xd.Executor(site="slurm", queue="gpu", interface="lo", run_folder=runs) as executor:
        future = executor.submit(xd.mpi(ranks=2, launcher="srun")(where))
        with pytest.raises(InvalidRequest, match=r"each sees 1: srun does not .*SLURM_MPI_TYPE"):
            future.result(LONG_S)


def test_ranks_that_slurm_starts_are_held_to_their_memory(two_nodes: xd.Executor) -> None:
    def eat(comm: Any) -> int:
        memory = bytearray(600 * 2**20 if comm.rank else 1)
        time.sleep(600)
        return len(memory)

    future = two_nodes.submit(xd.mpi(ranks=2, memory_per_rank="150MiB", launcher="srun")(eat))
    with pytest.raises(MemoryExceeded):
        future.result(LONG_S)
    assert two_nodes.submit(xd.mpi(ranks=4, launcher="srun")(where)).result(LONG_S)[1:] == (0, 4)


def run(
    recipe: str, results: Path, settings: Mapping[str, object], *options: str
) -> dict[str, Any]:
    """Run a recipe by its command; give its summary."""
    said = [f"{name}={value}" for name, value in {**settings, "results": results}.items()]
    words = ["run", str(RECIPES / recipe), *(word for one in said for word in ("--set", one))]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, *options],
        cwd=results.parent,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    summary: dict[str, Any] = json.loads((results / "summary.json").read_text())
    return summary


def test_a_search_is_steered_on_slurm(slurm: Any, tmp_path: Path) -> None:
    for needed in ("sklearn", "scipy", "matplotlib"):
        pytest.importorskip(needed, reason="the recipe needs it")
    summary = run("active-learning", tmp_path / "found", {"budget": 12, "searches": 1}, *SLURM)
    assert summary["budget"] == 12
    assert len((tmp_path / "found" / "table.csv").read_text().splitlines()) == 1 + 2 * 12


def test_the_ensemble_is_the_same_as_on_one_machine(slurm: Any, tmp_path: Path) -> None:
    tables = []
    for name, options in (("here", ()), ("slurm", SLURM)):
        settings = {"depths": "10,90", "cells": "8,16"}
        assert run("ensemble-mpi", tmp_path / name, settings, *options)["n_failed"] == 0
        with (tmp_path / name / "table.csv").open(newline="") as file:
            tables.append([(row["status"], row["found"]) for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
