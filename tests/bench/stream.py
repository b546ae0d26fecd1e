"""What a long map from a generator costs the client: its memory, which must stay flat.

1,000,000 calls that do nothing through `Executor.map`, whose results are added as they come. The
memory of the process is sampled; the scheduler is in it. exadask alone.
"""

from __future__ import annotations

import time

from tests.bench import contest, peers
from tests.bench.futures import rss_bytes
from tests.bench.measure import Options, Report

PER_CALL, PEAK = "time per call [us]", "peak of the process [MB]"
GROWTH, LATE_GROWTH = "peak above the start [MB]", "peak of the second half above the first's [MB]"
PEAK_LIMIT_MB, LATE_GROWTH_LIMIT_MB = 1000.0, 50.0
SAMPLES = 200


def stream(peer: peers.Maps, count: int) -> contest.Figures:
    """Map over a generator of so many; samples the memory between the results."""
    contest.warm_up(peer)
    samples = [rss_bytes()]
    start = time.perf_counter()
    total = 0
    for number, result in enumerate(peer.map(abs, (-one for one in range(count)), chunk=1)):
        total += result
        if number % (count // SAMPLES) == 0:
            samples.append(rss_bytes())
    took_s = time.perf_counter() - start
    assert total == count * (count - 1) // 2
    halves = max(samples[: SAMPLES // 2]), max(samples[SAMPLES // 2 :])
    return {
        PEAK: [max(samples) / 1e6],
        GROWTH: [(max(samples) - samples[0]) / 1e6],
        LATE_GROWTH: [(halves[1] - halves[0]) / 1e6],
        PER_CALL: [1e6 * took_s / count],
    }


def bench(options: Options) -> Report:
    """Measure exadask."""
    count = 400 if options.quick else 1_000_000
    report = Report(name="stream", title=f"a map of {count:,} calls from a generator")
    block = contest.Block(name="stream", work=stream, arguments=lambda *_: (count,), rounds=1)
    contest.hold(report, [block], [])
    report.require(PEAK, PEAK_LIMIT_MB)
    report.require(LATE_GROWTH, LATE_GROWTH_LIMIT_MB)
    return report
