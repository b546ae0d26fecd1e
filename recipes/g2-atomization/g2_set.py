"""The G2/97 set as ASE ships it, and what the recipe learns about one molecule of it.

Energies are in kcal/mol unless a name says otherwise.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ase import Atoms, units
from ase.collections import g2
from ase.data.g2 import data as experiment

KCAL = units.kcal / units.mol  # [eV]
ROOM_TEMPERATURE_K = 298.15
ATOM_ENTHALPY = 2.5 * units.kB * ROOM_TEMPERATURE_K / KCAL  # H(298 K) - H(0 K) of an ideal gas atom
IMAGINARY_BELOW_PER_CM = -30.0  # weaker ones are noise of forces that are not quite zero
CLASSES = {
    "open shell": "#c1272d",
    "halogen compound": "#2e8b57",
    "hydrocarbon": "#222222",
    "other organic": "#2b6cb0",
    "other inorganic": "#d98c00",
}


class UnknownMolecule(ValueError):
    """A name that the G2/97 set does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """A molecule where the forces vanish."""

    name: str
    positions: tuple[tuple[float, float, float], ...]  # [Angstrom]
    unpaired: int
    energy_hartree: float
    steps: int
    rms_displacement: float  # from the MP2 geometry of the set [Angstrom]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vibrations:
    """Harmonic wavenumbers without translations and rotations; negative ones are imaginary."""

    wavenumbers_per_cm: tuple[float, ...]

    @property
    def zero_point(self) -> float:
        """Zero-point energy of the real modes [kcal/mol]."""
        real = (w for w in self.wavenumbers_per_cm if w > 0)
        return float(sum(real) / 2 * units.invcm / KCAL)

    @property
    def imaginary(self) -> int:
        """How many directions go downhill: 0 in a minimum."""
        return sum(w < IMAGINARY_BELOW_PER_CM for w in self.wavenumbers_per_cm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Atomization:
    """Atomization and formation of one molecule, calculated and measured [kcal/mol]."""

    calculated_electronic: float  # from the bottom of the well, without vibrations
    measured_electronic: float
    calculated_298: float
    measured_298: float
    calculated_formation_298: float
    measured_formation_298: float

    @property
    def error(self) -> float:
        """Calculated minus measured: positive is bound too strongly."""
        return self.calculated_298 - self.measured_298


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeAtom:
    """A free atom in its ground state."""

    symbol: str
    status: str = "ok"
    energy_hartree: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one molecule; what is None failed, and ``status`` says why."""

    name: str
    status: str = "ok"
    relaxed: Relaxed | None = None
    atomization: Atomization | None = None
    vibrations: Vibrations | None = None


def structure(name: str) -> Atoms:
    """Find the geometry of the set: MP2(full)/6-31G(d)."""
    if name not in experiment:
        near = difflib.get_close_matches(name, experiment, n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UnknownMolecule(f"{name!r} is not in ase.collections.g2{hint}")
    return g2[name]


def unpaired_electrons(atoms: Atoms) -> int:
    """Count unpaired electrons: the magnetic moments of the set [Bohr magnetons]."""
    return round(float(atoms.get_initial_magnetic_moments().sum()))


def symbols_of(name: str) -> list[str]:
    """Elements of a molecule, one for each atom; none if there is no such molecule."""
    return list(g2[name].get_chemical_symbols()) if name in experiment else []


def atom_formation_298(symbol: str) -> float:
    """Heat of formation of the free atom at 298 K, from the value at 0 K that ASE ships.

    The atoms' "thermal correction" is that of the element in its standard state.
    """
    known = experiment[symbol]
    return float(known["enthalpy"] + ATOM_ENTHALPY - known["thermal correction"])


def class_of(name: str) -> str:
    """Class of a molecule: the first that fits, in the order of `CLASSES`."""
    elements = set(symbols_of(name))
    if unpaired_electrons(g2[name]):
        return "open shell"
    if elements & {"F", "Cl"}:
        return "halogen compound"
    if {"C", "H"} <= elements:
        return "hydrocarbon" if elements == {"C", "H"} else "other organic"
    return "other inorganic"
