"""Measure what it costs to pass an array of 1 GB to four tasks on one node.

    python tests/bench/memory.py [--json] [--quick] [--peers processes]

The rise of the node's memory while the tasks run, sampled, from when the array exists: the private
memory of the whole process tree (proportional shares, Pss) plus the shared memory of the machine
(Shmem: /dev/shm and memfd, each page once). The fall of MemAvailable is a cross-check.

The time per task, in copies of the same array by memcpy in the same process: ``hand over`` are
tasks that look at one element, ``read`` are tasks that sum all of it (for comparison, the same sum
without tasks). Peers get the array as their manuals advise: Dask by `Client.scatter`.
"""

from __future__ import annotations

import contextlib
import operator
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import measure, peers

TASKS = 4
RISE_LIMIT, TIME_LIMIT = 2.05, 3.0
SAMPLE_INTERVAL_S = 0.02
Array = NDArray[np.float64]
look, total = operator.itemgetter(-1), np.sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one round costs: times [s], and memory in units of the array."""

    memcpy_s: float
    hand_over_s: float
    read_s: float
    sum_s: float
    rise: float
    fall: float


class Watch:
    """Samples the memory of this process tree in a thread, and keeps the most."""

    def __init__(self) -> None:
        self._base = memory_bytes()
        self.rise, self.fall = 0, 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            used, available = memory_bytes()
            self.rise = max(self.rise, used - self._base[0])
            self.fall = max(self.fall, self._base[1] - available)
            if self._is_over.wait(SAMPLE_INTERVAL_S):
                return


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Watch the memory for a while."""
    watch = Watch()
    try:
        yield watch
    finally:
        watch.stop()


def memory_bytes() -> tuple[int, int]:
    """Give what this process tree and all shared memory use, and what the machine has left."""
    me = psutil.Process()
    private = sum(private_bytes(one.pid) for one in [me, *me.children(recursive=True)])
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return private + machine["Shmem"], machine["MemAvailable"]


def private_bytes(pid: int) -> int:
    """Give a process's proportional share of all pages that are not shared memory."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0
    parts = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    return 1024 * (int(parts["Pss_Anon"]) + int(parts["Pss_File"]))


def batch(peer: Any, task: Any, array: Array) -> float:
    """Pass an array to all tasks at once; returns the time per task [s]."""
    start = time.perf_counter()
    argument = peer._client.scatter(array) if isinstance(peer, peers.Dask) else array
    pending = [peer.submit(task, argument) for _ in range(TASKS)]
    values = [one.result() for one in pending]
    took_s = time.perf_counter() - start
    # A sum differs in its last digit with the alignment of the memory.
    assert np.allclose(values, task(array), rtol=1e-12)
    return took_s / TASKS


def timed(work: Any, *args: Any) -> float:
    """Call; returns how long it took [s]."""
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def memcpy_times(array: Array) -> list[float]:
    """Copy an array some times, into memory that is there already; returns the times [s]."""
    target = np.ones_like(array)
    return [timed(np.copyto, target, array) for _ in range(4)]


def once(peer: peers.Peer, nbytes: int) -> Finding:
    """Measure one round with a new array."""
    array: Array = np.random.default_rng(1).random(nbytes // 8)
    before_s = memcpy_times(array)
    hand_over_s = batch(peer, look, array)
    array = array + 1  # other bytes, never sent before
    sum_s = timed(total, array)
    read_s = batch(peer, total, array)
    memcpy_s = statistics.median(before_s + memcpy_times(array))
    array = array + 1
    with watched() as watch:  # in a batch that is not timed: watching takes time
        batch(peer, total, array)
    return Finding(
        memcpy_s=memcpy_s,
        hand_over_s=hand_over_s,
        read_s=read_s,
        sum_s=sum_s,
        rise=watch.rise / nbytes,
        fall=watch.fall / nbytes,
    )


def line(peer: type[peers.Peer], found: list[Finding]) -> dict[str, measure.Cell]:
    """Make a line of the table."""
    return {
        "who": peers.title_of(peer),
        "rise [arrays]": measure.Spread.of([one.rise for one in found]),
        "MemAvailable [arrays]": measure.Spread.of([one.fall for one in found]),
        "hand over [memcpy]": measure.Spread.of([one.hand_over_s / one.memcpy_s for one in found]),
        "read [memcpy]": measure.Spread.of([one.read_s / one.memcpy_s for one in found]),
        "sum, no task [memcpy]": measure.Spread.of([one.sum_s / one.memcpy_s for one in found]),
        "memcpy [s]": measure.Spread.of([one.memcpy_s for one in found]),
    }


def bench(options: measure.Options) -> measure.Report:
    """Compare with Dask, and on demand with a pool of processes (slow), in turns."""
    rounds, nbytes = (1, 2**26) if options.quick else (5, 10**9)
    subjects: list[type[peers.Peer]] = [peers.Exadask, peers.Dask]
    if peers.Processes.name in options.peers:
        subjects.append(peers.Processes)
    findings: dict[type[peers.Peer], list[Finding]] = {one: [] for one in subjects}
    for _ in range(rounds):
        for subject in subjects:
            with peers.session(subject) as there:
                findings[subject].append(there.run(once, nbytes))
    report = measure.Report(title=f"{nbytes / 1e9:.2g} GB to {TASKS} tasks: median [p5 p95]")
    report.rows += [line(subject, found) for subject, found in findings.items()]
    ours = findings[peers.Exadask]
    rise = measure.Spread.of([one.rise for one in ours]).median
    hand_over = measure.Spread.of([one.hand_over_s / one.memcpy_s for one in ours]).median
    report.bars = [
        measure.Bar(
            what="rise of memory, without the array itself [arrays]", value=rise, limit=RISE_LIMIT
        ),
        measure.Bar(what="time per task [memcpy]", value=hand_over, limit=TIME_LIMIT),
    ]
    return report


if __name__ == "__main__":
    measure.run(__doc__, bench)
