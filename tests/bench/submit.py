"""How many calls a second through a loop of `submit`, from the first to the last result.

The calls do nothing. Slow peers get fewer of them, so their start and end count a little more.
"""

from __future__ import annotations

import time

from tests.bench import contest, peers
from tests.bench.measure import Options, Report

CASE = "submit [calls/s]"
AT_LEAST = {"dask": 20.0, "parsl": 10.0, "ray": 4.0, "processes": 1.0}


def rate(peer: peers.Submits, count: int) -> contest.Figures:
    """Submit all, wait for all."""
    start = time.perf_counter()
    results = peer.gather([peer.submit(abs, -number) for number in range(count)])
    took_s = time.perf_counter() - start
    assert sum(results) == count * (count - 1) // 2
    return {CASE: [count / took_s]}


def bench(options: Options) -> Report:
    """Compare with every peer that has single calls."""
    rounds, fast, slow = (2, 200, 50) if options.quick else (5, 20_000, 2_000)
    title = f"a loop of submit, {fast:,} calls that do nothing ({slow:,} for slow peers)"
    report = Report(name="submit", title=title, more_is_better=True)
    theirs = peers.chosen(options, report, "submit")
    arguments = contest.by_pace(fast=fast, slow=slow)
    block = contest.Block(name=CASE, work=rate, arguments=arguments, rounds=rounds)
    contest.hold(report, [block], theirs)
    for peer, limit in AT_LEAST.items():
        report.require_ratio(CASE, peer, limit, "at least")
    return report
