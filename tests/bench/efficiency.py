"""How much of two cores short tasks get: the ideal time over the measured one.

The tasks keep a core busy until the wall clock says so, in a map. Where one can choose how many
calls make a task, it is as many as last 20 ms.
"""

from __future__ import annotations

import time

from tests.bench import contest, peers, work
from tests.bench.measure import Options, Report

CHUNK_S = 0.02
AT_LEAST = {0.001: 0.90, 0.01: 0.97}


def case_of(seconds: float) -> str:
    """Name a case."""
    return f"{1e3 * seconds:g} ms tasks [share]"


def share(peer: peers.Maps, count: int, seconds: float) -> contest.Figures:
    """Map a function that takes so long [s]; returns the ideal time over the measured."""
    start = time.perf_counter()
    for _ in peer.map(work.busy, [seconds] * count, chunk=max(1, round(CHUNK_S / seconds))):
        pass
    took_s = time.perf_counter() - start
    return {case_of(seconds): [count * seconds / peers.WORKERS / took_s]}


def block_of(options: Options, seconds: float) -> contest.Block:
    """Make the block of tasks that take so long [s]."""
    rounds, total_s = (1, 0.2) if options.quick else (3, 10.0)
    count = round(total_s / seconds)
    few = count if options.quick or count <= 200 else max(200, count // 10)
    return contest.Block(
        name=case_of(seconds),
        work=share,
        arguments=lambda peer, _: (few if peer.is_slow else count, seconds),
        rounds=rounds,
    )


def bench(options: Options) -> Report:
    """Compare with every peer that can map."""
    title = f"share of {peers.WORKERS} cores that a map of busy tasks gets"
    report = Report(name="efficiency", title=title, more_is_better=True)
    theirs = peers.chosen(options, report, "map")
    contest.hold(report, [block_of(options, one) for one in (0.001, 0.01, 0.1)], theirs)
    for seconds, limit in AT_LEAST.items():
        report.require(case_of(seconds), limit, "at least")
    return report
