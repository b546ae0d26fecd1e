"""How much memory a future takes that is done: the growth of the client's process, per future.

All futures are held, and their results were small integers. For exadask and Dask the scheduler is
in the client's process, so what it remembers of each task counts too.
"""

from __future__ import annotations

import gc

import psutil

from tests.bench import contest, peers
from tests.bench.measure import Options, Report

CASE = "future held [bytes]"


def held(peer: peers.Submits, count: int) -> contest.Figures:
    """Submit so many and wait for all."""
    contest.warm_up(peer)
    gc.collect()
    before = rss_bytes()
    pending = [peer.submit(abs, -number) for number in range(count)]
    peer.gather(pending)
    gc.collect()
    return {CASE: [(rss_bytes() - before) / len(pending)]}


def rss_bytes() -> int:
    """Give the memory that this process has in use."""
    return int(psutil.Process().memory_info().rss)


def bench(options: Options) -> Report:
    """Compare with every peer that has single calls."""
    rounds, fast, slow = (1, 200, 100) if options.quick else (3, 100_000, 5_000)
    title = f"memory of the client per future, with {fast:,} of them ({slow:,} for slow peers)"
    report = Report(name="futures", title=title)
    theirs = peers.chosen(options, report, "submit")
    arguments = contest.by_pace(fast=fast, slow=slow)
    block = contest.Block(name=CASE, work=held, arguments=arguments, rounds=rounds)
    contest.hold(report, [block], theirs, way=contest.renewed)
    return report
