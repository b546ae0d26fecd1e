"""The recipe with few simulations: the physics, the surrogate, and that steering pays."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import exadask as xd

np = pytest.importorskip("numpy", reason="the physics is written with numpy")
pytest.importorskip("sklearn", reason="the surrogate is scikit-learn's")
pytest.importorskip("scipy", reason="the wire is a spline of scipy's")
pytest.importorskip("matplotlib", reason="the plot needs matplotlib")

CYCLOID = (0.9763612, 0.81034352, 0.67549463, 0.54371186)


@pytest.fixture
def bead(recipe: ModuleType) -> Any:
    """The physics."""
    return sys.modules["bead"]


def test_known_wires_take_as_long_as_they_must(bead: Any) -> None:
    """Along y = d x^(2/3), integrated over the depth; and the cycloid."""
    from scipy.integrate import quad

    depth = 0.4
    along, _ = quad(
        lambda y: np.sqrt((1 + 9 / 4 * y / depth**3) / (2 * 9.81 * y)), 0, depth, epsabs=1e-10
    )
    assert bead.travel_time([depth] * 4, depth) == pytest.approx(along, rel=1e-6)
    assert bead.travel_time(CYCLOID) == pytest.approx(bead.best_time(), rel=1e-5)
    assert bead.best_time() == pytest.approx(0.578308, abs=1e-6)


def test_a_wire_that_rises_stops_the_bead(bead: Any) -> None:
    with pytest.raises(bead.Stuck, match="rises above its beginning at x = 0"):
        bead.travel_time([1.5, 0.1, 0.1, 1.5])
    assert bead.travel_time(CYCLOID) < bead.travel_time([0.5, 0.5, 0.5, 0.5])


def test_steering_pays(recipe: ModuleType, tmp_path: Path) -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=2)]):
        assert recipe.main(budget=24, searches=2, width=2, results=tmp_path) == tmp_path
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["active"] < 0.03
    assert summary["gain"] > 1.5
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {(row["strategy"], row["seed"]): 0 for row in rows}
    for row in rows:
        counts[row["strategy"], row["seed"]] += 1
        assert float(row["excess"]) > -1e-6, "nothing is faster than the cycloid"
    assert set(counts.values()) == {24}
    assert len(counts) == 4
    assert (tmp_path / "searches.png").stat().st_size > 10_000
    assert "the fastest wire of all takes 0.57831 s" in (tmp_path / "summary.txt").read_text()


def test_a_campaign_that_makes_no_sense_is_refused(recipe: ModuleType) -> None:
    with pytest.raises(xd.errors.RecipeError, match="budget=3"):
        recipe.main(budget=3)
