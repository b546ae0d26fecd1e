"""The recipe on coarse grids: the physics, the ranks, and what happens on failure."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import exadask as xd

np = pytest.importorskip("numpy", reason="the solver is written with numpy")
pytest.importorskip("mpi4py", reason="the solver runs on ranks of MPI")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib")


@pytest.fixture(scope="module")
def results(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with four good members and two whose grid is too coarse for their ranks."""
    folder = tmp_path_factory.mktemp("results")
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=4)]):
        written: Path = recipe.main(
            depths=("10", "90"), cells=("1", "16", "32"), ranks=2, results=folder
        )
    assert written == folder
    return folder


def test_the_method_is_of_second_order_and_waves_are_long(results: Path) -> None:
    summary = json.loads((results / "summary.json").read_text())
    assert summary["order"] == pytest.approx(2.0, abs=0.1)
    assert summary["speed_exponent"] == pytest.approx(0.5, abs=1e-3)
    assert summary["worst_leak"] < 1e-12


def test_each_member_is_near_the_exact_frequency(results: Path) -> None:
    with (results / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows if row["cells"] != "1"] == ["ok"] * 4
    assert all(float(row["error"]) < 0.01 for row in rows if row["status"] == "ok")


def test_members_that_fail_are_told_and_stop_nobody(results: Path) -> None:
    text = (results / "summary.txt").read_text()
    assert "4 members, 2 failed" in text
    assert "failed: depth 90 m, 1 cells: ValueError: 1 rows of cells are too few" in text
    assert (results / "seiches.png").stat().st_size > 10_000


def test_the_ranks_make_no_difference(recipe: ModuleType) -> None:
    seiche: Any = sys.modules["seiche"]
    basin = seiche.Basin(depth=30.0)
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=4)] * 2):
        one, three, apart = (
            xd.mpi(ranks=ranks, nodes=nodes)(seiche.swing).submit(basin, 20).result(60)
            for ranks, nodes in ((1, 1), (3, 1), (4, 2))
        )
    assert (one.n_ranks, three.n_ranks, apart.n_ranks) == (1, 3, 4)
    assert np.allclose(one.amplitudes, three.amplitudes, rtol=0, atol=1e-12)
    assert np.allclose(one.amplitudes, apart.amplitudes, rtol=0, atol=1e-12)


def test_a_wave_that_was_not_seen_to_swing_is_refused(recipe: ModuleType) -> None:
    seiche: Any = sys.modules["seiche"]
    still = seiche.Swing(
        spacing=1.0, times=np.arange(3.0), amplitudes=np.ones(3), leak=0.0, n_ranks=1
    )
    with pytest.raises(ValueError, match="simulate for longer"):
        seiche.frequency(still)
