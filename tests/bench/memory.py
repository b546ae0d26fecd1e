"""What it costs to pass an array of 1 GB to four tasks on one node.

The rise of the node's memory while the tasks run, sampled, from when the array exists: the private
memory of the whole process tree (proportional shares, Pss) plus the shared memory of the machine
(Shmem: /dev/shm and memfd, each page once). The fall of MemAvailable is a cross-check.

The time per task, in copies of the same array by memcpy in the same process: ``hand over`` are
tasks that look at one element, ``read`` are tasks that sum all of it (for comparison, the same sum
without tasks). Peers get the array as their manuals advise: Dask by `Client.scatter`. A pool of
processes is slow at this, and measured only if ``--peers`` names it.
"""

from __future__ import annotations

import contextlib
import operator
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tests.bench import contest, peers
from tests.bench.measure import Options, Report

TASKS = 4
RISE_LIMIT, TIME_LIMIT = 2.05, 3.0
SAMPLE_INTERVAL_S = 0.02
Array = NDArray[np.float64]
look, total = operator.itemgetter(-1), np.sum
RISE, FALL = "rise of memory [arrays]", "fall of MemAvailable [arrays]"
HAND_OVER, READ, SUM = "hand over [memcpy]", "read [memcpy]", "sum without tasks [memcpy]"


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


def batch(peer: peers.Submits, task: Any, array: Array) -> float:
    """Pass an array to all tasks at once; returns the time per task [s]."""
    start = time.perf_counter()
    argument = peer.client.scatter(array) if isinstance(peer, peers.Dask) else array
    values = peer.gather([peer.submit(task, argument) for _ in range(TASKS)])
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


def once(peer: peers.Submits, nbytes: int) -> contest.Figures:
    """Measure with a new array."""
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
    return {
        RISE: [watch.rise / nbytes],
        FALL: [watch.fall / nbytes],
        HAND_OVER: [hand_over_s / memcpy_s],
        READ: [read_s / memcpy_s],
        SUM: [sum_s / memcpy_s],
    }


def bench(options: Options) -> Report:
    """Compare with Dask, and on demand with a pool of processes."""
    rounds, nbytes = (1, 2**25) if options.quick else (5, 10**9)
    report = Report(name="memory", title=f"an array of {nbytes / 1e9:.2g} GB to {TASKS} tasks")
    theirs: list[type[peers.Peer]] = []
    if not options.peers or peers.Dask.name in options.peers:
        theirs.append(peers.Dask)
    if peers.Processes.name in options.peers:
        theirs.append(peers.Processes)
    block = contest.Block(name="memory", work=once, arguments=lambda *_: (nbytes,), rounds=rounds)
    contest.hold(report, [block], theirs, way=contest.renewed)
    report.require(RISE, RISE_LIMIT)
    report.require(HAND_OVER, TIME_LIMIT)
    return report
