"""What the errors have in common, and the files that show it."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from ase.collections import g2
from ase.data.g2 import data as experiment
from g2_set import (
    CLASSES,
    Atomization,
    FreeAtom,
    Outcome,
    atom_formation_298,
    class_of,
    symbols_of,
    unpaired_electrons,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtomFit:
    """One constant per element, fitted to the errors: what of them is additive in the atoms."""

    constants: dict[str, float]
    mae: float
    mae_left_out: float  # each molecule predicted by a fit to all others
    n_left_out: int
    worst: dict[str, float]  # what the constants do not explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Errors of some molecules."""

    n: int
    mae: float
    mse: float
    mean_relative: float  # of the electronic atomization energy


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the analysis found."""

    method: str
    failures: dict[str, str]
    whole: Group | None
    classes: dict[str, Group]
    worst: dict[str, float]
    fit: AtomFit | None
    zero_point: Group | None  # own harmonic values against those of the set
    saddle_points: tuple[str, ...]


# -- analysis -------------------------------------------------------------------------------


def summarise(outcomes: Sequence[Outcome], method: str) -> Summary:
    rows = {o.name: o.atomization for o in outcomes if o.atomization is not None}
    errors = {name: row.error for name, row in rows.items()}
    measured = {name: row.measured_electronic for name, row in rows.items()}
    classes = {kind: [n for n in rows if class_of(n) == kind] for kind in CLASSES}
    shaken = {o.name: o.vibrations for o in outcomes if o.vibrations is not None}
    known = {name: float(experiment[name]["ZPE"]) for name in shaken}
    return Summary(
        method=method,
        failures={o.name: o.status for o in outcomes if o.status != "ok"},
        whole=group(list(rows), errors, measured) if rows else None,
        classes={kind: group(names, errors, measured) for kind, names in classes.items() if names},
        worst=largest(errors),
        fit=fit_atoms(errors),
        zero_point=group(
            list(shaken), {n: v.zero_point - known[n] for n, v in shaken.items()}, known
        )
        if shaken
        else None,
        saddle_points=tuple(name for name, v in shaken.items() if v.imaginary),
    )


def group(names: Sequence[str], errors: dict[str, float], scale: dict[str, float]) -> Group:
    chosen = [errors[name] for name in names]
    return Group(
        n=len(names),
        mae=statistics.fmean(abs(error) for error in chosen),
        mse=statistics.fmean(chosen),
        mean_relative=statistics.fmean(errors[name] / scale[name] for name in names),
    )


def largest(errors: dict[str, float]) -> dict[str, float]:
    return {name: errors[name] for name in sorted(errors, key=lambda n: -abs(errors[n]))[:5]}


def listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.1f}" for name, value in values.items())


def fit_atoms(errors: dict[str, float]) -> AtomFit | None:
    """Fit one constant per element; None with too few molecules to say anything."""
    counts = {name: Counter(symbols_of(name)) for name in errors}
    elements = sorted({symbol for count in counts.values() for symbol in count})
    if len(errors) < 3 * len(elements) or not elements:
        return None
    matrix = np.array([[count[e] for e in elements] for count in counts.values()], float)
    target = np.array(list(errors.values()))
    inverse = np.linalg.pinv(matrix)
    constants = inverse @ target
    residuals = target - matrix @ constants
    leverages = np.diag(matrix @ inverse)
    testable = leverages < 1 - 1e-9  # the only molecule of an element cannot be predicted
    left_out = abs(residuals[testable] / (1 - leverages[testable]))
    return AtomFit(
        constants=dict(zip(elements, constants.tolist(), strict=True)),
        mae=float(abs(residuals).mean()),
        mae_left_out=float(left_out.mean()),
        n_left_out=int(testable.sum()),
        worst=largest(dict(zip(errors, residuals.tolist(), strict=True))),
    )


# -- output ---------------------------------------------------------------------------------


def table_row(outcome: Outcome) -> dict[str, str]:
    """One row of the table; what is not known stays empty."""
    relaxed, vibration, energy = outcome.relaxed, outcome.vibrations, outcome.atomization
    is_known = outcome.name in experiment
    row = {
        "name": outcome.name,
        "class": class_of(outcome.name) if is_known else "",
        "unpaired": str(unpaired_electrons(g2[outcome.name])) if is_known else "",
        "status": outcome.status,
        "energy_hartree": f"{relaxed.energy_hartree:.6f}" if relaxed else "",
        "steps": str(relaxed.steps) if relaxed else "",
        "rms_displacement_angstrom": f"{relaxed.rms_displacement:.3f}" if relaxed else "",
        "error": f"{energy.error:.2f}" if energy else "",
        "set_zpe": f"{experiment[outcome.name]['ZPE']:.2f}" if is_known else "",
        "own_zpe": f"{vibration.zero_point:.2f}" if vibration else "",
        "imaginary_modes": str(vibration.imaginary) if vibration else "",
    }
    for field in fields(Atomization):
        row[field.name] = f"{getattr(energy, field.name):.2f}" if energy else ""
    return row


def write_table(outcomes: Sequence[Outcome], results: Path) -> None:
    rows = [table_row(outcome) for outcome in outcomes]
    with (results / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table_row(Outcome(name=""))))
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "Atomization and formation enthalpies at 298 K [kcal/mol]; error = atomization,",
        "calculated - measured: positive is bound too strongly.",
        "",
        f"{'molecule':<22}{'unpaired':>8}{'atomization':>13}{'measured':>10}{'error':>9}"
        f"{'formation':>11}{'measured':>10}  status",
    ]
    lines += [
        f"{row['name']:<22}{row['unpaired']:>8}{row['calculated_298']:>13}"
        f"{row['measured_298']:>10}{row['error']:>9}{row['calculated_formation_298']:>11}"
        f"{row['measured_formation_298']:>10}  {row['status']}"
        for row in rows
    ]
    (results / "table.txt").write_text("\n".join(lines) + "\n")


def write_atoms(atoms: Sequence[FreeAtom], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["symbol", "unpaired", "status", "energy_hartree", "formation_298"])
        for atom in atoms:
            energy = "" if atom.energy_hartree is None else f"{atom.energy_hartree:.6f}"
            unpaired, formation = (
                unpaired_electrons(g2[atom.symbol]),
                atom_formation_298(atom.symbol),
            )
            writer.writerow([atom.symbol, unpaired, atom.status, energy, f"{formation:.2f}"])


def summary_text(summary: Summary) -> str:
    n_ok = summary.whole.n if summary.whole else 0
    lines = [f"{summary.method}: {n_ok} molecules, {len(summary.failures)} with a failure"]
    lines += [f"  {name}: {reason}" for name, reason in summary.failures.items()]
    if summary.whole is None:
        return "\n".join(lines)
    lines += [
        "",
        "Atomization enthalpy at 298 K, calculated - measured [kcal/mol]",
        f"  {'':<18}{'n':>4}{'MAE':>8}{'MSE':>8}{'relative':>10}",
    ]
    for label, one in {"all": summary.whole, **summary.classes}.items():
        lines += [
            f"  {label:<18}{one.n:>4}{one.mae:>8.1f}{one.mse:>+8.1f}{one.mean_relative:>+10.1%}"
        ]
    lines += [f"  worst: {listed(summary.worst)}"]
    if (fit := summary.fit) is not None:
        lines += [
            "",
            f"One constant per element removed: MAE {fit.mae:.1f}; "
            f"{fit.mae_left_out:.1f} for {fit.n_left_out} molecules left out of their fit",
            f"  constants: {listed(fit.constants)}",
            f"  worst: {listed(fit.worst)}",
        ]
    if (zero_point := summary.zero_point) is not None:
        saddles = ", ".join(summary.saddle_points) or "none"
        lines += [
            "",
            f"Zero-point energies against those of the set: MAE {zero_point.mae:.2f}, "
            f"MSE {zero_point.mse:+.2f}; not a minimum: {saddles}",
        ]
    return "\n".join(lines)


def points_by_class(outcomes: Sequence[Outcome]) -> dict[str, list[tuple[str, Atomization]]]:
    points: dict[str, list[tuple[str, Atomization]]] = {}
    for outcome in outcomes:
        if outcome.atomization is not None:
            points.setdefault(class_of(outcome.name), []).append(
                (outcome.name, outcome.atomization)
            )
    return points


def draw_png(outcomes: Sequence[Outcome], method: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    parity, additive = figure.subplots(1, 2)
    for kind, points in points_by_class(outcomes).items():
        measured = [row.measured_298 for _, row in points]
        calculated = [row.calculated_298 for _, row in points]
        sizes = [len(symbols_of(name)) for name, _ in points]
        errors = [row.error for _, row in points]
        parity.scatter(measured, calculated, s=16, color=CLASSES[kind], label=kind)
        additive.scatter(sizes, errors, s=16, color=CLASSES[kind])
    parity.axline((0, 0), slope=1, color="grey", linewidth=1)
    additive.axhline(0, color="grey", linewidth=1)
    parity.set(xlabel="measured [kcal/mol]", ylabel=f"{method} [kcal/mol]")
    parity.set_title("Atomization enthalpy at 298 K")
    additive.set(xlabel="atoms in the molecule", ylabel="calculated - measured [kcal/mol]")
    additive.set_title("Error")
    if points_by_class(outcomes):
        parity.legend()
    figure.savefig(path, dpi=150)


def draw_html(outcomes: Sequence[Outcome], method: str, path: Path) -> None:
    from bokeh.embed import file_html
    from bokeh.models.annotations import Slope
    from bokeh.models.sources import ColumnDataSource
    from bokeh.models.tools import HoverTool
    from bokeh.plotting import figure
    from bokeh.resources import INLINE

    title = f"Atomization enthalpy at 298 K: {method} against experiment [kcal/mol]"
    plot = figure(title=title, x_axis_label="measured", y_axis_label=method, width=800, height=700)
    plot.add_layout(Slope(gradient=1, y_intercept=0, line_color="grey"))
    for kind, points in points_by_class(outcomes).items():
        source = ColumnDataSource(
            {
                "name": [name for name, _ in points],
                "measured": [row.measured_298 for _, row in points],
                "calculated": [row.calculated_298 for _, row in points],
                "error": [row.error for _, row in points],
            }
        )
        plot.scatter(
            x="measured",
            y="calculated",
            source=source,
            size=7,
            color=CLASSES[kind],
            legend_label=kind,
        )
    tips = [(label, f"@{label}{{0.0}}") for label in ("measured", "calculated", "error")]
    plot.add_tools(HoverTool(tooltips=[("molecule", "@name"), *tips]))
    if plot.legend:
        plot.legend.location, plot.legend.click_policy = "top_left", "hide"
    path.write_text(file_html(plot, INLINE, title))
