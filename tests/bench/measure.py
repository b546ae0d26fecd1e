"""What all benchmarks share: options, spreads, bars, and a report as a table.

A figure of one machine means little on another, so every benchmark compares with peers in the
same run, block by block in turns: what disturbs one disturbs the other too.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says.

    Parameters
    ----------
    quick : bool
        Whether to run only long enough to see that the benchmark works.
    peers : tuple of str
        Whom to compare with; empty: all that are installed.
    """

    quick: bool
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and the 5th and 95th percentiles of some samples."""

    median: float
    p5: float
    p95: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise samples (at least one)."""
        if len(samples) == 1:
            return cls(median=samples[0], p5=samples[0], p95=samples[0])
        cuts = statistics.quantiles(samples, n=20, method="inclusive")
        return cls(median=statistics.median(samples), p5=cuts[0], p95=cuts[-1])

    def __str__(self) -> str:
        if self.p5 == self.p95:
            return figure(self.median)
        return f"{figure(self.median)} [{figure(self.p5)} {figure(self.p95)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure with a limit.

    Parameters
    ----------
    what : str
        What the figure is, with its unit.
    value, limit : float
        The figure, and what it must not exceed or fall below.
    side : str
        Which of the two: "at most" or "at least".
    """

    what: str
    value: float
    limit: float
    side: Literal["at most", "at least"] = "at most"

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of its limit."""
        if self.side == "at least":
            return self.value >= self.limit
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return f"bar {verdict}: {self.what}: {figure(self.value)}, {self.side} {figure(self.limit)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A case with a peer: a line of the table.

    Parameters
    ----------
    case : str
        What was measured, with its unit.
    peer : str
        With whom exadask is compared; empty: with nobody.
    ours, theirs, ratios : tuple of float
        The samples of exadask, those of the peer, and exadask's in units of the peer's, round by
        round. The last two are empty without a peer.
    """

    case: str
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()


@dataclass(slots=True, kw_only=True)
class Report:
    """What a scenario has found.

    Parameters
    ----------
    name, title : str
        The scenario, and what it measures.
    more_is_better : bool
        Whether the larger figure is the better one.
    lines : list of Line
        The table.
    bars : list of Bar
        What must hold.
    notes : list of str
        What else a reader must know, such as peers that are left out.
    is_broken : bool
        Whether exadask itself has failed.
    """

    name: str
    title: str
    more_is_better: bool = False
    lines: list[Line] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_broken: bool = False

    @property
    def cases(self) -> list[str]:
        """The cases, in their order."""
        return list(dict.fromkeys(line.case for line in self.lines))

    def ours(self, case: str) -> Spread:
        """Summarise exadask in a case, beside whichever peer."""
        return Spread.of([one for line in self.lines if line.case == case for one in line.ours])

    def line(self, case: str, peer: str) -> Line | None:
        """Find a line of the table."""
        found = (line for line in self.lines if (line.case, line.peer) == (case, peer))
        return next(found, None)

    def beside(self, case: str, what: str, value: float) -> None:
        """Compare exadask in a case, if it was measured, with a reference that is no peer."""
        ours = tuple(one for line in self.lines if line.case == case for one in line.ours)
        if ours:
            ratios = tuple(one / value for one in ours)
            self.lines.append(Line(case=case, peer=what, ours=ours, theirs=(value,), ratios=ratios))

    def require(
        self, case: str, limit: float, side: Literal["at most", "at least"] = "at most"
    ) -> None:
        """State a bar for exadask's median in a case, if it was measured."""
        if case in self.cases:
            value = self.ours(case).median
            self.bars.append(Bar(what=case, value=value, limit=limit, side=side))

    def require_ratio(
        self, case: str, peer: str, limit: float, side: Literal["at most", "at least"]
    ) -> None:
        """State a bar for the median ratio to a peer, if it was measured."""
        line = self.line(case, peer)
        if line is not None and line.ratios:
            value = statistics.median(line.ratios)
            what = f"{case}: exadask / {peer}"
            self.bars.append(Bar(what=what, value=value, limit=limit, side=side))


def interleaved(first: Callable[[int], T], second: Callable[[int], T], rounds: int) -> Pairs[T]:
    """Call two in turns with the number of the round, each of them first every other time."""
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            after, before = second(turn), first(turn)
        else:
            before, after = first(turn), second(turn)
        pairs.append((before, after))
    return pairs


Pairs = list[tuple[T, T]]


def figure(value: float) -> str:
    """Render a figure with three digits, without an exponent where that reads well."""
    if abs(value) >= 1e9:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(text, file=sys.stderr, flush=True)


def rendered_text(report: Report) -> str:
    """Render a report for people."""
    table = [["case", "peer", "exadask", "peer's", "exadask / peer"]]
    for line in sorted(report.lines, key=lambda line: report.cases.index(line.case)):
        spreads = [
            str(Spread.of(samples)) if samples else "-"
            for samples in (line.ours, line.theirs, line.ratios)
        ]
        table.append([line.case, line.peer or "-", *spreads])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    texts[1:1] = ["  ".join("-" * width for width in widths)]
    better = "more" if report.more_is_better else "less"
    title = f"{report.name}: {report.title}; {better} is better; median [p5 p95]"
    return "\n".join([title, "", *texts, "", *map(str, report.bars), *report.notes, ""])
