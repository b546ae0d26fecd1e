"""What a small MPI program costs: functions on two ranks, one after the other.

Beside exadask the same function is started by hand: by the same ``mpiexec``, and by ``srun`` where
this runs inside an allocation of a Slurm (``salloc -N1 -n2 python -m tests.bench ranks``). By hand
it gives no value back, is bound to nothing, and nobody watches it. On two nodes, which are embedded
ones, it is compared with the same ``mpiexec`` on one.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import exadask as xd
from tests.bench import contest, measure, work
from tests.bench.measure import Options, Report

CASE = "two ranks of a function [s]"
CASE_APART = "the same on two nodes [s]"
BY_HAND = "from mpi4py import MPI; MPI.COMM_WORLD.allreduce(1)"
AT_MOST = 1.2


def ours(executor: xd.Executor, calls: int, _: int) -> contest.Figures:
    """Run calls one after the other; returns how long one took."""
    together = xd.mpi(nodes=1, ranks_per_node=2)(work.sum_of_ones)
    apart = xd.mpi(nodes=2)(work.sum_of_ones)
    return {
        case: [timed(lambda: executor.submit(task).result(), calls)]  # noqa: B023  # called at once
        for case, task in ((CASE, together), (CASE_APART, apart))
    }


def theirs(command: Sequence[str], calls: int, _: int) -> contest.Figures:
    """Start as many by hand."""
    program = [*command, sys.executable, "-c", BY_HAND]
    run = functools.partial(subprocess.run, program, check=True, stdout=subprocess.DEVNULL)
    found = [timed(run, calls)]
    return {case: list(found) for case in (CASE, CASE_APART)}


def timed(call: Callable[[], object], calls: int) -> float:
    """Say how long one call lasts [s]."""
    call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def commands() -> dict[str, list[str]]:
    """Name the ways to start two ranks by hand that there are here."""
    found = {}
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    mpiexec = beside or shutil.which("mpiexec")
    if mpiexec is not None:
        found["mpiexec"] = [mpiexec, "-n", "2"]
    if shutil.which("srun") is not None and "SLURM_JOB_ID" in os.environ:
        found["srun"] = ["srun", "--overlap", "-n2", "-N1", "--overcommit", "--mpi=pmi2"]
    return found


def bench(options: Options) -> Report:
    """Compare with starting ranks by hand."""
    calls, rounds = (2, 1) if options.quick else (20, 5)
    report = Report(name="ranks", title="small MPI programs, one after the other")
    for peer, command in commands().items():
        measure.progress(f"{report.name}: {peer} ...")
        with xd.Executor(nodes=[xd.NodeShape.declare(cores=2)] * 2) as executor:
            pairs = measure.interleaved(
                functools.partial(ours, executor, calls),
                functools.partial(theirs, command, calls),
                rounds,
            )
        contest.paired(report, peer, pairs)
        report.require_ratio(CASE, peer, AT_MOST, "at most")
    return report
