"""One picture per scenario: for each case a bar for exadask and for each peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.measure import Report, Spread, figure

OURS, THEIRS = "#c0392b", "#95a5a6"
WIDE_RANGE = 30.0


def draw(report: Report, path: Path) -> None:
    """Draw a report that has lines; the bars are medians, the whiskers 5th to 95th percentiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [bars_of(report, case) for case in report.cases]
    heights = [len(bars) + 1.5 for bars in cases]
    drawing = Figure(figsize=(7.5, 0.26 * sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(drawing)
    better = "more" if report.more_is_better else "less"
    drawing.suptitle(f"{report.name}: {report.title} ({better} is better)", fontsize=9)
    panels = drawing.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, case, bars in zip(panels, report.cases, cases, strict=True):
        _draw_case(axes, case, bars)
    drawing.savefig(path, dpi=130)


def bars_of(report: Report, case: str) -> dict[str, Spread]:
    """Give the bars of a case by name."""
    lines = [line for line in report.lines if line.case == case and line.theirs]
    return {"exadask": report.ours(case), **{one.peer: Spread.of(one.theirs) for one in lines}}


def _draw_case(axes: Any, case: str, bars: dict[str, Spread]) -> None:
    medians = [spread.median for spread in bars.values()]
    lower = [max(0.0, spread.median - spread.p5) for spread in bars.values()]
    upper = [max(0.0, spread.p95 - spread.median) for spread in bars.values()]
    colours = [OURS if name == "exadask" else THEIRS for name in bars]
    places = range(len(bars))
    whiskers = {"elinewidth": 1, "capsize": 2}
    axes.barh(places, medians, xerr=[lower, upper], color=colours, error_kw=whiskers)
    axes.set_yticks(places, list(bars), fontsize=8)
    axes.invert_yaxis()
    axes.set_title(case, fontsize=8, loc="left")
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if min(medians) > 0 and max(medians) / min(medians) > WIDE_RANGE:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    for place, spread in zip(places, bars.values(), strict=True):
        end = max(spread.median, spread.p95)
        axes.annotate(
            figure(spread.median),
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
