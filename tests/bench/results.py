"""What is kept of a run: one JSON file, and the table for the README."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from tests.bench.facts import Facts
from tests.bench.measure import Line, Report, Spread, figure


def rendered_json(facts: Facts, reports: Sequence[Report], *, quick: bool) -> str:
    """Render everything for programs."""
    content = {
        "facts": dataclasses.asdict(facts),
        "quick": quick,
        "scenarios": [_plain(report) for report in reports],
    }
    return json.dumps(content, indent=1)


def rendered_markdown(facts: Facts, reports: Sequence[Report], *, quick: bool) -> str:
    """Render a table of medians: a row for each case, a column for each peer.

    What exadask is compared with that is no peer, such as memcpy, shares the last column.
    """
    names = dict.fromkeys(line.peer for report in reports for line in report.lines)
    columns = [name for name in names if name in facts.ways]
    rows = [["", "better", "exadask", *columns, "other"]]
    rows.append(["---"] * len(rows[0]))
    for report in reports:
        for case in report.cases:
            lines = [line for line in report.lines if line.case == case and line.ratios]
            cells = {line.peer: _cell(line) for line in lines}
            others = [f"{name}: {cell}" for name, cell in cells.items() if name not in columns]
            rows.append(
                [
                    case if case.startswith(report.name) else f"{report.name}: {case}",
                    "more" if report.more_is_better else "less",
                    figure(report.ours(case).median),
                    *(cells.get(name, "") for name in columns),
                    "; ".join(others),
                ]
            )
    table = ["| " + " | ".join(row) + " |" for row in rows]
    ways = "; ".join(f"{name} is `{facts.ways[name]}`" for name in columns)
    legend = f"Medians; in parentheses exadask's in units of the other's, round by round. {ways}"
    warning = ["", "**A quick run: the figures mean nothing.**"] if quick else []
    return "\n".join([*table, "", legend, "", *str(facts).splitlines(), *warning])


def _cell(line: Line) -> str:
    median, ratio = Spread.of(line.theirs).median, Spread.of(line.ratios).median
    return f"{figure(median)} ({figure(ratio)})"


def _plain(report: Report) -> dict[str, object]:
    return {
        "name": report.name,
        "title": report.title,
        "more_is_better": report.more_is_better,
        "lines": [
            {
                "case": line.case,
                "peer": line.peer,
                "exadask": _summary(line.ours),
                "peer's": _summary(line.theirs),
                "exadask / peer": _summary(line.ratios),
            }
            for line in report.lines
        ],
        "bars": [dataclasses.asdict(bar) | {"is_met": bar.is_met} for bar in report.bars],
        "notes": report.notes,
        "is_broken": report.is_broken,
    }


def _summary(samples: Sequence[float]) -> dict[str, float] | None:
    if not samples:
        return None
    return dataclasses.asdict(Spread.of(samples)) | {"samples": len(samples)}
