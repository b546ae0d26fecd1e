"""How long a call takes that gets or gives a NumPy array of 1 MB or 100 MB.

One call after the other, each with an array never sent before; the task or the caller looks at
one element of it. A copy of such an array by memcpy stands beside it.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np

from tests.bench import contest, peers, work
from tests.bench.measure import Options, Report

MB = 10**6


def given(peer: peers.Submits, megabytes: int, count: int) -> contest.Figures:
    """Pass arrays as arguments."""
    arrays = [work.filled(MB * megabytes, number) for number in range(count)]
    return {
        argument_case(megabytes): [
            timed_ms(lambda: peer.submit(work.last, array).result())  # noqa: B023  # called at once
            for array in arrays
        ]
    }


def taken(peer: peers.Submits, megabytes: int, count: int) -> contest.Figures:
    """Get arrays as results."""

    def take(number: int) -> None:
        assert work.last(peer.submit(work.filled, MB * megabytes, number).result()) == number

    return {
        result_case(megabytes): [
            timed_ms(functools.partial(take, number)) for number in range(count)
        ]
    }


def argument_case(megabytes: int) -> str:
    """Name the case of an argument."""
    return f"{megabytes} MB argument [ms]"


def result_case(megabytes: int) -> str:
    """Name the case of a result."""
    return f"{megabytes} MB result [ms]"


def timed_ms(action: Callable[[], object]) -> float:
    """Call; returns how long it took [ms]."""
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def memcpy_ms(megabytes: int) -> float:
    """Copy an array into memory that is there already; returns the median time [ms]."""
    array = work.filled(MB * megabytes, 1)
    target = np.ones_like(array)
    return statistics.median(timed_ms(lambda: np.copyto(target, array)) for _ in range(9))


def bench(options: Options) -> Report:
    """Compare with every peer that has single calls."""
    sizes = {1: 2, 10: 1} if options.quick else {1: 20, 100: 2}
    rounds = 1 if options.quick else 3
    report = Report(name="data", title="a call that gets or gives an array")
    theirs = peers.chosen(options, report, "submit")
    blocks = [
        contest.Block(
            name=case(megabytes),
            work=passing,
            arguments=functools.partial(_arguments, megabytes, count),
            rounds=rounds,
        )
        for megabytes, count in sizes.items()
        for case, passing in ((argument_case, given), (result_case, taken))
    ]
    contest.hold(report, blocks, theirs)
    for megabytes in sizes:
        copy_ms = memcpy_ms(megabytes)
        report.beside(argument_case(megabytes), "memcpy", copy_ms)
        report.beside(result_case(megabytes), "memcpy", copy_ms)
    return report


def _arguments(megabytes: int, count: int, *_: object) -> tuple[object, ...]:
    return megabytes, count
