"""How long dependent calls take: a chain of 200, and a sum of 256 numbers, two by two.

The calls themselves take no time. Who takes pending results as arguments gets them; for others
the caller waits for the results and passes those.
"""

from __future__ import annotations

import operator
import time
from typing import Any

from tests.bench import contest, peers, work
from tests.bench.measure import Options, Report


def chain(peer: peers.Submits, length: int) -> contest.Figures:
    """Add one so many times."""
    start = time.perf_counter()
    value: Any = 0
    for _ in range(length):
        value = peer.submit(work.increment, value)
        if not peer.takes_futures:
            value = value.result()
    total = value.result() if peer.takes_futures else value
    took_s = time.perf_counter() - start
    assert total == length
    return {f"chain of {length} [s]": [took_s]}


def tree(peer: peers.Submits, leaves: int) -> contest.Figures:
    """Add so many numbers, a power of two, two by two."""
    start = time.perf_counter()
    values: list[Any] = [peer.submit(abs, -number) for number in range(leaves)]
    while len(values) > 1:
        if not peer.takes_futures:
            values = peer.gather(values)
        halves = zip(values[::2], values[1::2], strict=True)
        values = [peer.submit(operator.add, first, second) for first, second in halves]
    total = values[0].result()
    took_s = time.perf_counter() - start
    assert total == leaves * (leaves - 1) // 2
    return {f"tree of {leaves} leaves [s]": [took_s]}


def bench(options: Options) -> Report:
    """Compare with every peer that has single calls."""
    rounds, length, leaves = (1, 10, 16) if options.quick else (5, 200, 256)
    report = Report(name="graphs", title="calls that depend on each other, until the last result")
    theirs = peers.chosen(options, report, "submit")
    blocks = [
        contest.Block(name="chain", work=chain, arguments=lambda *_: (length,), rounds=rounds),
        contest.Block(name="tree", work=tree, arguments=lambda *_: (leaves,), rounds=rounds),
    ]
    contest.hold(report, blocks, theirs)
    waiting = [peer.name for peer in theirs if not peer.takes_futures]
    if waiting:
        report.notes.append(f"the caller waits for each result with: {', '.join(waiting)}")
    return report
