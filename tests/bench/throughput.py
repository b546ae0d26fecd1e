"""Measure how many tasks a second: 1,000 that do nothing, submitted at once, until the last result.

    python tests/bench/throughput.py [--json] [--quick] [--peers dask,ray]

exadask and one peer at a time, each in its own process, take turns. The ratio is that of their
rates, pair by pair: more than 1 means that exadask is faster.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import measure, peers


def rate(peer: peers.Peer, count: int) -> float:
    """Submit all, wait for all; returns tasks per second."""
    start = time.perf_counter()
    pending = [peer.submit(abs, -number) for number in range(count)]
    total = sum(one.result() for one in pending)
    took_s = time.perf_counter() - start
    assert total == count * (count - 1) // 2
    return count / took_s


def compare(peer: type[peers.Peer], rounds: int, count: int) -> measure.Pairs:
    """Measure exadask and a peer in turns; returns the rates of both, pair by pair [1/s]."""
    with peers.session(peers.Exadask) as ours, peers.session(peer) as theirs:
        for warming in (ours, theirs):
            warming.run(rate, min(count, 100))
        return measure.interleaved(
            lambda: ours.run(rate, count), lambda: theirs.run(rate, count), rounds
        )


def bench(options: measure.Options) -> measure.Report:
    """Compare with every peer."""
    rounds, count = (2, 50) if options.quick else (8, 1000)
    found, notes = peers.chosen(options)
    report = measure.Report(title=f"rate of {count} tasks [1/s]: median [p5 p95]", notes=notes)
    for peer in found:
        pairs = compare(peer, rounds, count)
        report.rows.append(
            {
                "peer": peers.title_of(peer),
                "exadask": measure.Spread.of([ours for ours, _ in pairs]),
                "peer's": measure.Spread.of([theirs for _, theirs in pairs]),
                "exadask / peer": measure.ratio(pairs),
            }
        )
    return report


if __name__ == "__main__":
    measure.run(__doc__, bench)
