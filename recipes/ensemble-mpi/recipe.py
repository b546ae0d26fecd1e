"""Seiches: an ensemble of MPI simulations of standing waves, each followed by its analysis.

Every member is a simulation on some ranks, for one depth and one grid; its analysis on one core
begins when it is done, beside the simulations of others. Some members may fail, and are told.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from seiche import Basin, Swing, frequency, swing

import exadask as xd


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One simulation, and what came of it.

    Parameters
    ----------
    depth : float
        Of the water [m].
    cells : int
        Of the grid along the width [cells].
    status : str
        "ok", or what went wrong.
    spacing, exact, found, error, leak : float or None
        Of the grid [m]; the angular frequency, as it should be and as it was [rad/s]; its relative
        error; the largest relative change of the volume.
    """

    depth: float
    cells: int
    status: str = "ok"
    spacing: float | None = None
    exact: float | None = None
    found: float | None = None
    error: float | None = None
    leak: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the ensemble says together.

    Parameters
    ----------
    n_ok, n_failed : int
        How many members there are [members].
    order : float or None
        With which power of the spacing the error falls; 2 for this method.
    speed_exponent : float or None
        With which power of the depth the frequency grows; 1/2 for long waves.
    worst_leak : float
        The largest relative change of the volume.
    """

    n_ok: int
    n_failed: int
    order: float | None
    speed_exponent: float | None
    worst_leak: float


# -- tasks ----------------------------------------------------------------------------------


@xd.task(cores=1, memory="512MiB", time="5m")
def analyse(result: Swing, basin: Basin, cells: int) -> Member:
    """Compare the frequency of a simulation with the exact one."""
    found = frequency(result)
    return Member(
        depth=basin.depth,
        cells=cells,
        spacing=result.spacing,
        exact=basin.omega,
        found=found,
        error=abs(found / basin.omega - 1),
        leak=result.leak,
    )


@xd.task(cores=1, memory="1GiB", time="5m")
def summarise(members: Sequence[Member], results: Path) -> Summary:
    """Write the table, the summary and the plot."""
    good = [one for one in members if one.status == "ok"]
    summary = Summary(
        n_ok=len(good),
        n_failed=len(members) - len(good),
        order=slope([one.spacing for one in good], [one.error for one in good]),
        speed_exponent=slope(
            *zip(*[(one.depth, one.found) for one in finest(good)], strict=True)
        ) if good else None,
        worst_leak=max((one.leak or 0.0 for one in good), default=0.0),
    )  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    with (results / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(members[0])))
        writer.writeheader()
        writer.writerows(map(asdict, members))
    (results / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    (results / "summary.txt").write_text(text_of(summary, members) + "\n")
    draw(good, results / "seiches.png")
    return summary


# -- what belongs to one member -----------------------------------------------------------------


def slope(xs: Sequence[Any], ys: Sequence[Any]) -> float | None:
    """Fit a power law; None where there is nothing to fit."""
    if len(set(xs)) < 2:
        return None
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def finest(members: Sequence[Member]) -> list[Member]:
    """Choose the finest grid for each depth."""
    return list({one.depth: one for one in sorted(members, key=lambda one: one.cells)}.values())


def text_of(summary: Summary, members: Sequence[Member]) -> str:
    """Say it in words."""
    lines = [f"{summary.n_ok} members, {summary.n_failed} failed"]
    if summary.order is not None:
        lines.append(f"the error of the frequency falls with spacing^{summary.order:.2f}")
    if summary.speed_exponent is not None:
        lines.append(f"the frequency grows with depth^{summary.speed_exponent:.4f}")
    lines.append(f"the volume of water is kept to {summary.worst_leak:.1e}")
    for one in members:
        if one.status != "ok":
            lines.append(f"failed: depth {one.depth:g} m, {one.cells} cells: {one.status}")
    return "\n".join(lines)


def draw(members: Sequence[Member], path: Path) -> None:
    """Plot the error over the spacing, and the frequency over the depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for depth in sorted({one.depth for one in members}):
        of_depth = [one for one in members if one.depth == depth]
        left.loglog(
            [one.spacing for one in of_depth], [one.error for one in of_depth], "o-",
            label=f"{depth:g} m",
        )  # fmt: skip
    left.set(xlabel="grid spacing [m]", ylabel="relative error of the frequency")
    left.legend(title="depth")
    best = finest(members)
    right.loglog([one.depth for one in best], [one.found for one in best], "o", label="simulated")
    right.loglog([one.depth for one in best], [one.exact for one in best], "-", label="exact")
    right.set(xlabel="depth [m]", ylabel="angular frequency [rad/s]")
    right.legend()
    figure.savefig(path, dpi=120)


# -- the run --------------------------------------------------------------------------------


def main(
    *,
    depths: tuple[str, ...] = ("10", "20", "50", "100", "200"),
    cells: tuple[str, ...] = ("20", "40", "80"),
    ranks: int = 2,
    nodes: int = 0,
    results: Path = Path("results/ensemble-mpi"),
) -> Path:
    """Run for these depths [m] and grids; returns the folder with the results.

    Without `nodes` the ranks of a member are on one node, if it has room for all.
    """
    began = time.perf_counter()
    layout = xd.mpi(ranks=ranks, nodes=nodes or None, memory_per_rank="512MiB", time="10m")
    simulate = layout(swing)
    futures: dict[tuple[float, int], xd.Future[Member]] = {}
    for depth in map(float, depths):
        for count in map(int, cells):
            basin = Basin(depth=depth)
            futures[depth, count] = analyse.submit(simulate.submit(basin, count), basin, count)
    for _ in xd.as_completed(list(futures.values()), progress=True):
        pass  # what became of each is looked at below, in the order of the ensemble
    members = [member_of(depth, count, one) for (depth, count), one in futures.items()]
    done = summarise.submit(members, results.resolve())
    print(text_of(done.result(), members))
    print(f"\n{time.perf_counter() - began:.1f} s; table and plot in {results}")
    return results


def member_of(depth: float, cells: int, future: xd.Future[Member]) -> Member:
    """Give a member; one that failed says why."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, xd.errors.DependencyFailed):
        return Member(depth=depth, cells=cells, status=error.root_error)
    return Member(depth=depth, cells=cells, status=f"{type(error).__name__}: {error}")
