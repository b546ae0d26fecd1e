"""Active learning: the next simulations are chosen by a surrogate of those that have ended.

Several searches for the fastest wire of a bead run side by side, half of them at random. Each keeps
some simulations in flight; whenever one ends, in whatever order, its search learns and chooses the
next. Simulations that fail teach the surrogate that their wires are bad.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from bead import Stuck, best_time, travel_time
from surrogate import Point, propose, random_point

import exadask as xd

STUCK_S = 3.0  # what a wire counts for on which the bead does not arrive [s]
N_FIRST = 8

Strategy = Literal["active", "random"]


@dataclass(slots=True, kw_only=True)
class Search:
    """One search.

    Parameters
    ----------
    strategy : {"active", "random"}
        How it chooses.
    seed : int
        Decides about all that is random.
    tried : list of (tuple of float, float)
        Wires in the order in which their simulations ended, and the time on each [s].
    n_stuck : int
        On how many of them the bead did not arrive.
    """

    strategy: Strategy
    seed: int
    tried: list[tuple[Point, float]] = field(default_factory=list)
    n_stuck: int = 0
    in_flight: dict[xd.Future[Any], Point | None] = field(default_factory=dict)
    n_started: int = 0

    @property
    def pending(self) -> list[Point]:
        """Wires that are being tried."""
        return [point for point in self.in_flight.values() if point is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the searches found.

    Parameters
    ----------
    budget : int
        Simulations of each search.
    exact : float
        The time on the fastest wire of all [s].
    active, random : float
        How much longer the best wire of a search takes, relative; the median of the searches.
    gain : float
        How many times smaller that is with a surrogate.
    catches_up_after : int or None
        After so many simulations the searches with a surrogate are where random ones end (median).
    n_stuck : int
        Simulations in which the bead did not arrive.
    """

    budget: int
    exact: float
    active: float
    random: float
    gain: float
    catches_up_after: int | None
    n_stuck: int


# -- tasks ----------------------------------------------------------------------------------

simulate = xd.task(cores=1, memory="512MiB", time="2m", name="simulate")(travel_time)
choose = xd.task(cores=1, memory="1GiB", time="5m", priority=1, name="choose")(propose)


@xd.task(cores=1, memory="1GiB", time="5m")
def summarise(searches: Sequence[Any], budget: int, results: Path) -> Summary:
    """Write the table, the summary and the plot."""
    exact = best_time()
    curves = {
        strategy: np.array([
            np.minimum.accumulate([seconds for _, seconds in tried])[:budget] / exact - 1
            for kind, _, tried, _ in searches
            if kind == strategy
        ])
        for strategy in ("active", "random")
    }  # fmt: skip
    active, at_random = (np.median(curves[one], axis=0) for one in ("active", "random"))
    (level,) = np.nonzero(active <= at_random[-1])
    summary = Summary(
        budget=budget,
        exact=exact,
        active=float(active[-1]),
        random=float(at_random[-1]),
        gain=float(at_random[-1] / active[-1]),
        catches_up_after=int(level[0]) + 1 if len(level) else None,
        n_stuck=sum(n_stuck for *_, n_stuck in searches),
    )
    results.mkdir(parents=True, exist_ok=True)
    with (results / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "seed", "number", "seconds", "excess", "wire"])
        for strategy, seed, tried, _ in searches:
            for number, (point, seconds) in enumerate(tried, 1):
                wire = " ".join(f"{value:.4f}" for value in point)
                excess = f"{seconds / exact - 1:.6f}"
                writer.writerow([strategy, seed, number, f"{seconds:.6f}", excess, wire])
    (results / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    (results / "summary.txt").write_text(text_of(summary) + "\n")
    draw(curves, results / "searches.png")
    return summary


# -- what belongs to the summary ------------------------------------------------------------


def text_of(summary: Summary) -> str:
    """Say it in words."""
    lines = [
        f"the fastest wire of all takes {summary.exact:.5f} s; after {summary.budget} simulations",
        f"  a search with a surrogate is {summary.active:.3%} above it,",
        f"  one at random {summary.random:.3%}: {summary.gain:.0f} times as much",
    ]
    if summary.catches_up_after is not None:
        lines.append(
            f"what random choice found in {summary.budget} simulations, the surrogate found in "
            f"{summary.catches_up_after}"
        )
    lines.append(f"on {summary.n_stuck} wires the bead got stuck")
    return "\n".join(lines)


def draw(curves: dict[str, Any], path: Path) -> None:
    """Plot how far each search was from the best, over its simulations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (strategy, lines), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        numbers = np.arange(1, lines.shape[1] + 1)
        for line in lines:
            axes.semilogy(numbers, line, color=colour, alpha=0.3, linewidth=1)
        axes.semilogy(numbers, np.median(lines, axis=0), color=colour, label=strategy)
    axes.set(xlabel="simulations that have ended", ylabel="excess over the fastest wire of all")
    axes.legend(title="next wire")
    figure.savefig(path, dpi=120)


# -- the run --------------------------------------------------------------------------------


def main(
    *,
    budget: int = 40,
    searches: int = 3,
    width: int = 2,
    results: Path = Path("results/active-learning"),
) -> Path:
    """Run so many searches of each kind, each of so many simulations, so many of them at once."""
    if budget < N_FIRST or searches < 1 or width < 1:
        raise xd.errors.RecipeError(
            f"budget={budget}, searches={searches}, width={width} make no campaign.",
            f"Give at least {N_FIRST} simulations, one search, and one at a time.",
        )
    began = time.perf_counter()
    running = [
        Search(strategy=strategy, seed=seed)
        for seed in range(searches)
        for strategy in ("active", "random")
    ]
    for search in running:
        for _ in range(width):
            go_on(search, budget)
    while open_futures := {one: search for search in running for one in search.in_flight}:
        done, _ = xd.wait(list(open_futures), return_when="FIRST_COMPLETED")
        for future in done:
            learn(open_futures[future], future, budget)
    told = [(one.strategy, one.seed, one.tried, one.n_stuck) for one in running]
    summary = summarise.submit(told, budget, results.resolve()).result()
    print(text_of(summary))
    print(f"\n{time.perf_counter() - began:.1f} s; table and plot in {results}")
    return results


def go_on(search: Search, budget: int) -> None:
    """Start the next simulation of a search, or the choice of its wire."""
    if search.n_started >= budget:
        return
    search.n_started += 1
    seed = 1000 * search.seed + search.n_started
    if search.strategy == "random" or len(search.tried) < N_FIRST:
        start(search, random_point(np.random.default_rng(seed)))
    else:
        choice = choose.submit(list(search.tried), search.pending, seed)
        search.in_flight[choice] = None


def start(search: Search, point: Point) -> None:
    """Try a wire."""
    search.in_flight[simulate.submit(point)] = point


def learn(search: Search, future: xd.Future[Any], budget: int) -> None:
    """Take in what has ended: a choice, whose wire is tried now, or a simulation."""
    point = search.in_flight.pop(future)
    if point is None:
        start(search, future.result())
        return
    error = future.exception()
    if error is not None and not isinstance(error, Stuck):
        raise error
    search.n_stuck += error is not None
    search.tried.append((point, STUCK_S if error is not None else future.result()))
    go_on(search, budget)
