"""How long a single call takes, from `submit` until `result` returns.

Warm calls of a function that does nothing, one after the other. And, of exadask alone, calls of
higher priority while both cores run a long map of 1 ms calls.
"""

from __future__ import annotations

import time
from typing import Any

from tests.bench import contest, peers, work
from tests.bench.measure import Options, Report

WARM, UNDER_MAP = "warm call [ms]", "call above a running map [ms]"
LIMIT_MS, UNDER_MAP_LIMIT_MS, DASK_LIMIT = 3.0, 50.0, 0.5
PAUSE_S = 0.02


def calls(peer: peers.Submits, count: int) -> contest.Figures:
    """Call one after the other."""
    return {WARM: [call_ms(peer) for _ in range(count)]}


def call_ms(executor: Any) -> float:
    """Call once; returns the time it takes [ms]."""
    start = time.perf_counter()
    executor.submit(abs, -1).result()
    return 1e3 * (time.perf_counter() - start)


def calls_above_map(peer: peers.Exadask, count: int, mapped_s: list[float]) -> contest.Figures:
    """Call now and then while a map of lower priority runs; ends the map."""
    executor = peer.executor
    urgent = executor.options(priority=1)
    futures = executor.options(priority=-1).map(work.busy, mapped_s)
    futures[0].result()
    took = []
    for _ in range(count):
        time.sleep(PAUSE_S)
        took.append(call_ms(urgent))
    is_running = not futures[-1].done()
    for one in futures:
        one.cancel()
    assert is_running, "the map has ended before the last call"
    return {UNDER_MAP: took}


def bench(options: Options) -> Report:
    """Compare with every peer that has single calls."""
    rounds, count = (2, 10) if options.quick else (12, 40)
    report = Report(name="latency", title="a single call, from submit to its result")
    theirs = peers.chosen(options, report, "submit")
    block = contest.Block(name=WARM, work=calls, arguments=lambda *_: (count,), rounds=rounds)
    contest.hold(report, [block], theirs)
    urgent, mapped_s = (3, [0.03] * 200) if options.quick else (100, [0.001] * 100_000)
    block = contest.Block(
        name=UNDER_MAP, work=calls_above_map, arguments=lambda *_: (urgent, mapped_s), rounds=1
    )
    contest.hold(report, [block], [])
    report.require(WARM, LIMIT_MS)
    report.require_ratio(WARM, "dask", DASK_LIMIT, "at most")
    report.require(UNDER_MAP, UNDER_MAP_LIMIT_MS)
    return report
