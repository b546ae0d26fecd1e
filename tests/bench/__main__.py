"""Measure exadask beside its peers: the same work on the same machine in the same run.

    python -m tests.bench                        all scenarios, all peers that are installed
    python -m tests.bench submit map --quick     some of them, only to see that they work

Every scenario prints a table. One JSON file with everything and a picture of each scenario go
into a folder. The exit status is 1 if exadask itself failed; a bar that is missed is only told.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
from pathlib import Path

from tests.bench import measure, peers, results
from tests.bench.facts import Facts
from tests.bench.measure import Options, Report

NOBODY = "none"
# In the order of running; each module has `bench`.
SCENARIOS = {
    "submit": "submit",
    "map": "mapping",
    "efficiency": "efficiency",
    "tail": "tail",
    "latency": "latency",
    "data": "data",
    "graphs": "graphs",
    "mixed": "packing",
    "startup": "startup",
    "ranks": "ranks",
    "gangs": "gangs",
    "memory": "memory",
    "futures": "futures",
    "stream": "stream",
    "placement": "placement_scale",
    "simulated": "simulated",
}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(SCENARIOS)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: all of {names}")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    known = ", ".join(peer.name for peer in peers.PEERS)
    parser.add_argument(
        "--peers", default="", help=f"with commas, or {NOBODY}; default: all of {known}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="the folder")
    given = parser.parse_args(arguments)
    given.peers = tuple(name for name in given.peers.split(",") if name)
    for unknown in sorted({*given.scenarios} - {*SCENARIOS}):
        parser.error(f"there is no scenario {unknown!r}: choose from {names}")
    for unknown in sorted({*given.peers} - {NOBODY, *(peer.name for peer in peers.PEERS)}):
        parser.error(f"there is no peer {unknown!r}: choose from {known}")
    return given


def run(name: str, options: Options) -> Report:
    """Run a scenario."""
    report: Report = importlib.import_module(f"tests.bench.{SCENARIOS[name]}").bench(options)
    return report


def main() -> int:
    """Run what the command line says."""
    given = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so all is cleaned up
    options = Options(quick=given.quick, peers=given.peers)
    facts = Facts.gather()
    can_draw = importlib.util.find_spec("matplotlib") is not None
    given.out.mkdir(parents=True, exist_ok=True)
    is_for_people = not (given.json or given.markdown)
    if is_for_people:
        print(f"{facts}\n")
    if not can_draw:
        measure.progress("no pictures: matplotlib is not installed")
    reports: list[Report] = []
    for name in given.scenarios or SCENARIOS:
        reports.append(run(name, options))
        everything = results.rendered_json(facts, reports, quick=options.quick)
        (given.out / "results.json").write_text(everything)
        if can_draw and reports[-1].lines:
            from tests.bench import plots

            plots.draw(reports[-1], given.out / f"{name}.png")
        if is_for_people:
            print(measure.rendered_text(reports[-1]), flush=True)
    if given.json:
        print(everything)
    if given.markdown:
        print(results.rendered_markdown(facts, reports, quick=options.quick))
    return int(any(report.is_broken for report in reports))


if __name__ == "__main__":
    sys.exit(main())
