"""The recipe on a few molecules: the thermochemistry, the spin, and what happens on failure."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import exadask as xd

pytest.importorskip("ase", reason="the G2/97 molecules come with ase")
pytest.importorskip("tblite", reason="the energies come from tblite")
pytest.importorskip("matplotlib", reason="the parity plot needs matplotlib")
pytest.importorskip("bokeh", reason="the interactive parity plot needs bokeh")

EV_PER_HARTREE = 27.2114


@pytest.fixture(scope="module")
def results(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with four good molecules and one that does not exist."""
    folder = tmp_path_factory.mktemp("results")
    with xd.Executor():
        written: Path = recipe.main(molecules=("H2O", "CH4", "O2", "NO", "H20"), results=folder)
    assert written == folder
    return folder


def rows_of(results: Path) -> dict[str, dict[str, str]]:
    with (results / "table.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("name", "accurate"), [("CH4", 420.4), ("H2O", 233.0), ("O2", 120.8), ("NO", 152.8)]
)
def test_the_measured_side_agrees_with_accurate_theory(
    results: Path, name: str, accurate: float
) -> None:
    """W4-11 [kcal/mol]: Karton, Daon, Martin, Chem. Phys. Lett. 510 (2011) 165."""
    row = rows_of(results)[name]
    assert float(row["measured_electronic"]) == pytest.approx(accurate, abs=1.0)


def test_formation_and_atomization_have_opposite_errors(results: Path) -> None:
    for name in ("H2O", "CH4", "O2", "NO"):
        row = {key: float(value) for key, value in rows_of(results)[name].items() if "_298" in key}
        bound = row["calculated_298"] - row["measured_298"]
        formed = row["calculated_formation_298"] - row["measured_formation_298"]
        assert bound == pytest.approx(-formed, abs=0.02)


def test_gfn2_binds_too_strongly(results: Path) -> None:
    for name in ("H2O", "CH4", "O2", "NO"):
        row = rows_of(results)[name]
        ratio = float(row["calculated_298"]) / float(row["measured_298"])
        assert 1.1 < ratio < 2.0, name


def test_structures_and_zero_point_energies_are_good(results: Path) -> None:
    for name in ("H2O", "CH4", "O2", "NO"):
        row = rows_of(results)[name]
        assert float(row["rms_displacement_angstrom"]) < 0.05, name
        assert float(row["own_zpe"]) == pytest.approx(float(row["set_zpe"]), abs=1.0), name
        assert row["imaginary_modes"] == "0", name


def test_a_molecule_that_does_not_exist_is_a_row_with_the_reason(results: Path) -> None:
    row = rows_of(results)["H20"]
    assert row["status"].startswith("failed: relaxation: UnknownMolecule")
    assert row["energy_hartree"] == row["error"] == ""
    summary = json.loads((results / "summary.json").read_text())
    assert list(summary["failures"]) == ["H20"]
    assert summary["whole"]["n"] == 4
    assert "H20: failed" in (results / "summary.txt").read_text()
    assert "UnknownMolecule" in (results / "table.txt").read_text()


def test_the_plots_stand_alone(results: Path) -> None:
    assert (results / "parity.png").read_bytes().startswith(b"\x89PNG")
    html = (results / "parity.html").read_text()
    assert '<script src="' not in html
    assert "<link" not in html
    assert "CH4" in html


def test_a_run_without_a_single_success_still_gives_a_report(
    recipe: ModuleType, tmp_path: Path
) -> None:
    with xd.Executor():
        recipe.main(molecules=("H2",), fmax=0.0, results=tmp_path)
    assert "NotConverged: largest force" in rows_of(tmp_path)["H2"]["status"]
    assert json.loads((tmp_path / "summary.json").read_text())["whole"] is None


def test_an_unknown_method_is_refused_at_once(recipe: ModuleType) -> None:
    with pytest.raises(xd.errors.RecipeError, match="GFN2-xTB"):
        recipe.main(method="B3LYP")


def test_only_spin_polarization_makes_oxygen_a_triplet(recipe: ModuleType) -> None:
    """Measured: the singlet lies 0.98 eV above the triplet."""

    def gap_ev(method: str) -> float:
        triplet = recipe.relax("O2", method).energy_hartree
        singlet = recipe.relax("O2", method, unpaired=0).energy_hartree
        return float(singlet - triplet) * EV_PER_HARTREE

    assert 0.3 < gap_ev("spGFN2-xTB") < 1.5
    assert -0.1 < gap_ev("GFN2-xTB") < 0.01


def test_only_spin_polarization_makes_methylene_a_triplet(recipe: ModuleType) -> None:
    def gap_hartree(method: str) -> float:
        singlet = recipe.relax("CH2_s1A1d", method).energy_hartree
        return float(singlet - recipe.relax("CH2_s3B1d", method).energy_hartree)

    assert gap_hartree("spGFN2-xTB") > 0
    assert gap_hartree("GFN2-xTB") < 0


def test_closed_shells_do_not_feel_spin_polarization(recipe: ModuleType) -> None:
    plain, polarized = recipe.relax("H2O", "GFN2-xTB"), recipe.relax("H2O", "spGFN2-xTB")
    assert polarized.energy_hartree == pytest.approx(plain.energy_hartree, abs=1e-6)


def test_the_set_has_the_ground_states_of_the_atoms(recipe: ModuleType) -> None:
    unpaired = {s: recipe.unpaired_electrons(recipe.g2[s]) for s in ("H", "Be", "C", "N", "O")}
    assert unpaired == {"H": 1, "Be": 0, "C": 2, "N": 3, "O": 2}


def test_internal_modes_leave_out_translations_and_rotations(recipe: ModuleType) -> None:
    linear = recipe.vibrations(recipe.relax("CO2", "GFN2-xTB"), "GFN2-xTB")
    assert len(linear.wavenumbers_per_cm) == 4
    bent = recipe.vibrations(recipe.relax("H2O", "GFN2-xTB"), "GFN2-xTB")
    assert len(bent.wavenumbers_per_cm) == 3


def test_the_fit_finds_errors_that_are_additive_in_the_atoms(recipe: ModuleType) -> None:
    report = sys.modules["g2_report"]
    names = ["H2", "CH4", "C2H6", "C2H4", "C2H2", "C3H8"]
    errors = {
        name: sum({"H": 2.0, "C": -3.0}[symbol] for symbol in recipe.symbols_of(name))
        for name in names
    }
    fit = report.fit_atoms(errors)
    assert fit.constants == pytest.approx({"H": 2.0, "C": -3.0})
    assert fit.mae_left_out == pytest.approx(0, abs=1e-9)
    assert report.fit_atoms({"H2O": 1.0}) is None
