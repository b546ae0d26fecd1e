"""What one long task does to a map: 100 tasks of 20 ms, of which one takes 50 times as long.

Its position is drawn anew each round, from the first half: beyond that not even the best schedule
that does not know durations would end in time. The reference is the best that knows them. What
bundles calls must not let others wait behind the long one.
"""

from __future__ import annotations

import random
import time

from tests.bench import contest, peers, work
from tests.bench.measure import Options, Report
from tests.bench.offline import Item, best_makespan

CASE = "makespan / best"
LONGER, LIMIT = 50, 1.10


def makespan(peer: peers.Maps, seconds: list[float]) -> contest.Figures:
    """Map a function that takes so long each [s]; returns the measured time over the best."""
    items = [Item(cores=1, seconds=one) for one in seconds]
    best_s = best_makespan(items, [(0.0, peers.WORKERS)])
    start = time.perf_counter()
    for _ in peer.map(work.busy, seconds, chunk=1):
        pass
    return {CASE: [(time.perf_counter() - start) / best_s]}


def durations(count: int, short_s: float, turn: int) -> list[float]:
    """Draw the durations of a round [s]."""
    seconds = [short_s] * count
    seconds[random.Random(turn).randrange(count // 2)] *= LONGER
    return seconds


def bench(options: Options) -> Report:
    """Compare with every peer that can map."""
    rounds, count, short_s = (1, 100, 0.002) if options.quick else (7, 100, 0.02)
    title = f"a map of {count} tasks of {1e3 * short_s:g} ms, one of them {LONGER} times as long"
    report = Report(name="tail", title=title)
    theirs = peers.chosen(options, report, "map")
    block = contest.Block(
        name=CASE,
        work=makespan,
        arguments=lambda _, turn: (durations(count, short_s, turn),),
        rounds=rounds,
    )
    contest.hold(report, [block], theirs)
    report.require(CASE, LIMIT)
    return report
