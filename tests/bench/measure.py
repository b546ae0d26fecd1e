"""What all benchmarks share: options, spreads, bars, and a report as a table or as JSON.

A figure of one machine means little on another, so every benchmark compares with a peer in the
same run, block by block in turns: what disturbs one disturbs the other too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says.

    Parameters
    ----------
    quick : bool
        Whether to run only long enough to see that the benchmark works.
    as_json : bool
        Whether to print JSON.
    peers : tuple of str
        Whom to compare with; empty: all that are installed.
    """

    quick: bool
    as_json: bool
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and the 5th and 95th percentiles of some samples."""

    median: float
    p5: float
    p95: float

    @classmethod
    def of(cls, samples: Sequence[float], scale: float = 1) -> Spread:
        """Summarise samples (at least one), each times `scale`."""
        scaled = [scale * one for one in samples]
        if len(scaled) == 1:
            return cls(median=scaled[0], p5=scaled[0], p95=scaled[0])
        cuts = statistics.quantiles(scaled, n=20, method="inclusive")
        return cls(median=statistics.median(scaled), p5=cuts[0], p95=cuts[-1])

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.p5:.3g} {self.p95:.3g}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure that must not be exceeded."""

    what: str
    value: float
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the bar."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return f"bar {verdict}: {self.what}: {self.value:.3g}, at most {self.limit:g}"


Cell = str | float | Spread


@dataclass(slots=True, kw_only=True)
class Report:
    """What a benchmark has found.

    Parameters
    ----------
    title : str
        What was measured, with units.
    rows : list of dict
        The table: for each row the cells by column; all rows have the same columns.
    bars : list of Bar
        What must hold.
    notes : list of str
        What else a reader must know, such as peers that are absent.
    """

    title: str
    rows: list[Mapping[str, Cell]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(doc: str | None, bench: Callable[[Options], Report]) -> None:
    """Run a benchmark from the command line and print its report."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--peers", default="", help="names, with commas; default: all installed")
    given = parser.parse_args()
    names = tuple(name for name in given.peers.split(",") if name)
    options = Options(quick=given.quick, as_json=given.json, peers=names)
    report = bench(options)
    print(rendered_json(report) if options.as_json else rendered_text(report))


def interleaved(first: Callable[[], float], second: Callable[[], float], rounds: int) -> Pairs:
    """Call two in turns, and each first every other time."""
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            after, before = second(), first()
        else:
            before, after = first(), second()
        pairs.append((before, after))
    return pairs


Pairs = list[tuple[float, float]]


def ratio(pairs: Pairs) -> Spread:
    """Compare pair by pair: the first in units of the second."""
    return Spread.of([first / second for first, second in pairs])


def rendered_json(report: Report) -> str:
    """Render a report for programs."""
    rows = [{name: _plain(cell) for name, cell in row.items()} for row in report.rows]
    bars = [
        {"what": bar.what, "value": bar.value, "limit": bar.limit, "is_met": bar.is_met}
        for bar in report.bars
    ]
    content = {"title": report.title, "machine": machine(), "rows": rows, "bars": bars}
    return json.dumps(content | {"notes": report.notes}, indent=1)


def rendered_text(report: Report) -> str:
    """Render a report for people."""
    columns = list(report.rows[0]) if report.rows else []
    table = [columns, *([_text(cell) for cell in row.values()] for row in report.rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    lines[1:1] = ["  ".join("-" * width for width in widths)]
    body = [report.title, machine(), "", *lines, "", *map(str, report.bars), *report.notes]
    return "\n".join(body)


def machine() -> str:
    """Say where this ran."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"{cores} cores, load {load:.1f}, Python {platform.python_version()}"


def _text(cell: Cell) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _plain(cell: Cell) -> object:
    if isinstance(cell, Spread):
        return {"median": cell.median, "p5": cell.p5, "p95": cell.p95}
    return cell
