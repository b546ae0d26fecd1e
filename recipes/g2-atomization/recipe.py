"""Atomization energies of the G2/97 molecules with GFN2-xTB, against experiment.

Every free atom and every molecule is a task. A molecule is relaxed, its vibrations and its
atomization energy follow from the relaxed structure, and one analysis ends the run. What fails
becomes a row that says why. Energies are in kcal/mol unless a name says otherwise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.build import minimize_rotation_and_translation
from ase.collections import g2
from ase.data.g2 import data as experiment
from ase.optimize import BFGS
from g2_report import (
    Summary,
    draw_html,
    draw_png,
    summarise,
    summary_text,
    write_atoms,
    write_table,
)
from g2_set import (
    ATOM_ENTHALPY,
    KCAL,
    Atomization,
    FreeAtom,
    Outcome,
    Relaxed,
    Vibrations,
    atom_formation_298,
    structure,
    symbols_of,
    unpaired_electrons,
)

import exadask as xd

ELECTRONIC_TEMPERATURE_K = 300.0  # belongs to the definition of the GFN methods
METHODS = ("GFN2-xTB", "spGFN2-xTB", "GFN1-xTB", "spGFN1-xTB")
MAX_STEPS = 500
DISPLACEMENT_ANGSTROM = 0.005


class NotConverged(RuntimeError):
    """The relaxation took all its steps and the forces are still too large."""


# -- tasks ----------------------------------------------------------------------------------


@xd.task(cores=1, memory="512MiB", time="5m")
def free_atom(symbol: str, method: str) -> float:
    """Energy of a free atom in its ground state [Hartree]."""
    atom = g2[symbol]
    atom.calc = calculator(method, unpaired_electrons(atom))
    return float(atom.get_potential_energy() / units.Hartree)


@xd.task(cores=1, memory="512MiB", time="5m")
def relax(name: str, method: str, fmax: float = 0.01, unpaired: int | None = None) -> Relaxed:
    """Relax a molecule until no force exceeds fmax [eV/Angstrom]."""
    atoms = structure(name)
    reference = atoms.copy()
    unpaired = unpaired_electrons(atoms) if unpaired is None else unpaired
    atoms.calc = calculator(method, unpaired)
    optimizer = BFGS(atoms, logfile=None)
    if not optimizer.run(fmax=fmax, steps=MAX_STEPS):
        largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        raise NotConverged(
            f"largest force {largest:.3g} eV/Angstrom after {MAX_STEPS} steps, wanted {fmax:g}"
        )
    energy, positions = atoms.get_potential_energy(), atoms.positions.tolist()
    minimize_rotation_and_translation(reference, atoms)
    moved = np.sqrt(((atoms.positions - reference.positions) ** 2).sum(axis=1).mean())
    return Relaxed(
        name=name,
        positions=tuple((x, y, z) for x, y, z in positions),
        unpaired=unpaired,
        energy_hartree=float(energy / units.Hartree),
        steps=optimizer.nsteps,
        rms_displacement=float(moved),
    )


@xd.task(cores=1, memory="512MiB", time="5m")
def vibrations(relaxed: Relaxed, method: str) -> Vibrations:
    """Harmonic wavenumbers from central differences of the forces."""
    atoms = structure(relaxed.name)
    atoms.calc = calculator(method, relaxed.unpaired, accuracy=0.1)
    start = np.array(relaxed.positions)
    hessian = np.empty((start.size, start.size))
    for i in range(start.size):
        step = np.zeros(start.size)
        step[i] = DISPLACEMENT_ANGSTROM
        atoms.positions = start + step.reshape(-1, 3)
        forward = atoms.get_forces().ravel()
        atoms.positions = start - step.reshape(-1, 3)
        hessian[i] = (atoms.get_forces().ravel() - forward) / (2 * DISPLACEMENT_ANGSTROM)
    return Vibrations(wavenumbers_per_cm=internal_modes(start, atoms.get_masses(), hessian))


@xd.task(cores=1, memory="512MiB", time="5m")
def atomization(relaxed: Relaxed, atoms_hartree: Sequence[float]) -> Atomization:
    """Combine a molecule with its atoms, given in the order of its symbols."""
    symbols, known = symbols_of(relaxed.name), experiment[relaxed.name]
    binding_ev = (sum(atoms_hartree) - relaxed.energy_hartree) * units.Hartree
    electronic = float(binding_ev / KCAL)
    to_298 = len(symbols) * ATOM_ENTHALPY - known["ZPE"] - known["thermal correction"]
    formation = known["enthalpy"]
    of_the_atoms = sum(atom_formation_298(symbol) for symbol in symbols)
    return Atomization(
        calculated_electronic=electronic,
        measured_electronic=of_the_atoms - formation - to_298,
        calculated_298=electronic + to_298,
        measured_298=of_the_atoms - formation,
        calculated_formation_298=of_the_atoms - electronic - to_298,
        measured_formation_298=formation,
    )


@xd.task(cores=1, memory="1GiB", time="10m")
def analyse(
    outcomes: Sequence[Outcome], atoms: Sequence[FreeAtom], *, method: str, results: Path
) -> Summary:
    """Write the tables, the summary and the plots, and return the summary."""
    summary = summarise(outcomes, method)
    results.mkdir(parents=True, exist_ok=True)
    write_table(outcomes, results)
    write_atoms(atoms, results / "atoms.csv")
    (results / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    (results / "summary.txt").write_text(summary_text(summary) + "\n")
    draw_png(outcomes, method, results / "parity.png")
    draw_html(outcomes, method, results / "parity.html")
    return summary


# -- physics --------------------------------------------------------------------------------


def calculator(method: str, unpaired: int, accuracy: float = 1.0) -> Any:
    """Make an ASE calculator; the prefix "sp" adds the spin polarization energy."""
    from tblite.ase import TBLite

    return TBLite(
        method=method.removeprefix("sp"),
        spin_polarization=1.0 if method.startswith("sp") else None,
        multiplicity=unpaired + 1,
        electronic_temperature=ELECTRONIC_TEMPERATURE_K,
        accuracy=accuracy,
        verbosity=0,
    )


def internal_modes(positions: Any, masses: Any, hessian: Any) -> tuple[float, ...]:
    """Diagonalise a Hessian [eV/Angstrom^2] in the space of the internal motions [1/cm]."""
    root = np.sqrt(masses)[:, None]
    centred = positions - np.average(positions, axis=0, weights=masses)
    rigid = [root * axis for axis in np.eye(3)]
    rigid += [root * np.cross(axis, centred) for axis in np.eye(3)]
    basis, sizes, _ = np.linalg.svd(np.reshape(rigid, (6, -1)).T)
    internal = basis[:, int((sizes > 1e-4 * sizes[0]).sum()) :]  # a linear one rotates in two ways
    weights = np.repeat(root.ravel(), 3)
    weighted = (hessian + hessian.T) / 2 / np.outer(weights, weights)
    squares = np.linalg.eigvalsh(internal.T @ weighted @ internal)
    to_ev = units._hbar * 1e10 / np.sqrt(units._e * units._amu)
    return tuple((np.sign(squares) * np.sqrt(abs(squares)) * to_ev / units.invcm).tolist())


# -- the run --------------------------------------------------------------------------------


def main(
    *,
    molecules: tuple[str, ...] = (),
    method: str = "GFN2-xTB",
    fmax: float = 0.01,
    results: Path = Path("results/g2-atomization"),
) -> Path:
    """Run for these molecules, or for all; returns the folder with the results."""
    if method not in METHODS:
        raise xd.errors.RecipeError(f"method={method!r} is not known.", f"Known: {METHODS}.")
    began = time.perf_counter()
    chosen = list(dict.fromkeys(molecules or g2.names))
    names = [name for name in chosen if len(symbols_of(name)) != 1]  # the set has atoms as well
    symbols = sorted({symbol for name in chosen for symbol in symbols_of(name)})
    atoms = {symbol: free_atom.submit(symbol, method) for symbol in symbols}
    relaxed = {name: relax.submit(name, method, fmax) for name in names}
    shaken = {name: vibrations.submit(relaxed[name], method) for name in names}
    rows = {
        name: atomization.submit(relaxed[name], [atoms[symbol] for symbol in symbols_of(name)])
        for name in names
    }
    futures: list[xd.Future[Any]] = [
        *atoms.values(),
        *relaxed.values(),
        *shaken.values(),
        *rows.values(),
    ]
    for _ in xd.as_completed(futures, progress=True):
        pass  # what became of each is looked at below, in the order of the set
    outcomes = [outcome_of(name, relaxed[name], rows[name], shaken[name]) for name in names]
    free = [atom_of(symbol, atoms[symbol]) for symbol in symbols]
    done = analyse.submit(outcomes, free, method=method, results=results.resolve())
    print(summary_text(done.result()))
    print(f"\n{time.perf_counter() - began:.1f} s; tables and plots in {results}")
    return results


def outcome_of(
    name: str,
    relaxed: xd.Future[Relaxed],
    row: xd.Future[Atomization],
    vibration: xd.Future[Vibrations],
) -> Outcome:
    """Gather the futures of one molecule; of a chain of failures the root is the reason."""
    steps: dict[str, xd.Future[Any]]
    steps = {"relaxation": relaxed, "atomization": row, "vibrations": vibration}
    values: dict[str, Any] = {}
    reasons: list[str] = []
    for step, future in steps.items():
        error = future.exception()
        values[step] = future.result() if error is None else None
        reasons += [f"failed: {step}: {reason_of(error)}"] if error is not None else []
    return Outcome(
        name=name,
        status=reasons[0] if reasons else "ok",
        relaxed=values["relaxation"],
        atomization=values["atomization"],
        vibrations=values["vibrations"],
    )


def atom_of(symbol: str, future: xd.Future[float]) -> FreeAtom:
    """Gather the future of one free atom."""
    error = future.exception()
    if error is not None:
        return FreeAtom(symbol=symbol, status=f"failed: {reason_of(error)}")
    return FreeAtom(symbol=symbol, energy_hartree=future.result())


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong first."""
    if isinstance(error, xd.errors.DependencyFailed):
        text = f"{error.chain[-1]}: {error.root_error}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
