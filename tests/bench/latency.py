"""Measure the latency of a warm call: from submit() until result() returns, with nothing else.

    python tests/bench/latency.py [--json] [--quick] [--peers dask,ray]

exadask and one peer at a time, each in its own process, take turns with blocks of calls of a
function that does nothing. The ratio is that of the blocks' medians, pair by pair.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import measure, peers

LIMIT = 0.5


def calls(peer: peers.Peer, count: int) -> list[float]:
    """Call one after the other; returns how long each took [s]."""
    took = []
    for number in range(count):
        start = time.perf_counter()
        peer.submit(abs, -number).result()
        took.append(time.perf_counter() - start)
    return took


def compare(peer: type[peers.Peer], rounds: int, count: int) -> tuple[list[float], ...]:
    """Measure exadask and a peer in turns; returns the times of both [s], and the ratios."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    with peers.session(peers.Exadask) as ours, peers.session(peer) as theirs:

        def block(who: str, there: peers.Session) -> float:
            took = there.run(calls, count)
            times[who] += took
            return statistics.median(took)

        for warming in (ours, theirs):
            warming.run(calls, count)
        pairs = measure.interleaved(
            lambda: block("ours", ours), lambda: block("theirs", theirs), rounds
        )
    return times["ours"], times["theirs"], [first / second for first, second in pairs]


def bench(options: measure.Options) -> measure.Report:
    """Compare with every peer."""
    rounds, count = (2, 10) if options.quick else (12, 40)
    found, notes = peers.chosen(options)
    report = measure.Report(title="latency of a warm call [ms]: median [p5 p95]", notes=notes)
    for peer in found:
        ours, theirs, ratios = compare(peer, rounds, count)
        report.rows.append(
            {
                "peer": peers.title_of(peer),
                "exadask": measure.Spread.of(ours, 1e3),
                "peer's": measure.Spread.of(theirs, 1e3),
                "exadask / peer": measure.Spread.of(ratios),
            }
        )
        if peer is peers.Dask:
            value = statistics.median(ours) / statistics.median(theirs)
            report.bars.append(
                measure.Bar(what="median latency / Dask's", value=value, limit=LIMIT)
            )
    return report


if __name__ == "__main__":
    measure.run(__doc__, bench)
