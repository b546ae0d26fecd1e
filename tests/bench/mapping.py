"""How many calls a second through a peer's own way to map, from the first to the last result.

The calls do nothing. Slow peers get fewer of them. Where one can choose how many calls make a
task, it is 500; exadask and joblib choose themselves.
"""

from __future__ import annotations

import time

from tests.bench import contest, peers
from tests.bench.measure import Options, Report

CASE = "map [calls/s]"
CHUNK = 500
LEAST_RATE, LEAST_RATIO = 100_000.0, 100.0


def rate(peer: peers.Maps, count: int) -> contest.Figures:
    """Map, and take all results."""
    start = time.perf_counter()
    total = sum(peer.map(abs, range(0, -count, -1), chunk=CHUNK))
    took_s = time.perf_counter() - start
    assert total == count * (count - 1) // 2
    return {CASE: [count / took_s]}


def bench(options: Options) -> Report:
    """Compare with every peer that can map."""
    rounds, fast, slow = (2, 200, 100) if options.quick else (5, 200_000, 5_000)
    title = f"a map of {fast:,} calls that do nothing ({slow:,} for slow peers)"
    report = Report(name="map", title=title, more_is_better=True)
    theirs = peers.chosen(options, report, "map")
    arguments = contest.by_pace(fast=fast, slow=slow)
    block = contest.Block(name=CASE, work=rate, arguments=arguments, rounds=rounds)
    contest.hold(report, [block], theirs)
    report.require(CASE, LEAST_RATE, "at least")
    report.require_ratio(CASE, "dask", LEAST_RATIO, "at least")
    return report
