"""How full two nodes are of programs on both of them, programs on part of one, and small tasks.

All tasks sleep, so that two real cores suffice. What a task holds counts from the start of its
process to its end, that of the ranks included; the bound is a schedule without a gap. The nodes are
embedded ones of four cores or, where there is a Slurm (``. ci/slurm``'s environment), one
allocation of its two nodes.
"""

from __future__ import annotations

import os
import time
from typing import Any

import exadask as xd
from tests.bench import measure
from tests.bench.measure import Line, Options, Report

NODES, CORES = 2, 4
AT_LEAST = 0.9
CASE = "part of the cores that was held, of {}"


def asleep(comm: Any, seconds: float) -> None:
    """Let all ranks sleep together."""
    comm.Barrier()
    time.sleep(seconds)


def used(executor: xd.Executor, scale: float) -> float:
    """Run the mixture; returns what part of the cores was held until the last task ended."""
    both = xd.mpi(nodes=NODES, ranks_per_node=2, name="both")(asleep)
    pair = xd.mpi(ranks=2, name="pair")(asleep)
    n_gangs, n_singles = max(1, round(6 * scale)), max(8, round(200 * scale))
    start = time.perf_counter()
    futures = [(4, executor.submit(both, 4.0 * scale)) for _ in range(n_gangs)]
    futures += [(2, executor.submit(pair, 2.0 * scale)) for _ in range(2 * n_gangs)]
    futures += [(1, executor.submit(time.sleep, 0.5 * scale)) for _ in range(n_singles)]
    for _, one in futures:
        one.result()
    wall_s = time.perf_counter() - start
    held_s = sum(cores * one.usage.wall_s for cores, one in futures if one.usage is not None)
    return held_s / (wall_s * NODES * CORES)


def opened() -> tuple[str, xd.Executor]:
    """Open what there is, and say what that is."""
    if "SLURM_CONF" in os.environ:
        return "Slurm", xd.Executor(site="slurm", queue="cpu", nodes=NODES, interface="lo")
    return "this machine", xd.Executor(nodes=[xd.NodeShape.declare(cores=CORES)] * NODES)


def bench(options: Options) -> Report:
    """Fill the nodes."""
    title = "gangs, small MPI programs and one-core tasks together"
    report = Report(name="gangs", title=title, more_is_better=True)
    where, executor = opened()
    case = CASE.format(where)
    with executor:
        for one in [executor.submit(time.sleep, 0.1) for _ in range(2 * NODES * CORES)]:
            one.result()  # all nodes are there, and their processes warm
        samples = []
        for _ in range(1 if options.quick else 3):
            measure.progress(f"{report.name}: {where} ...")
            samples.append(used(executor, 0.1 if options.quick else 1.0))
    report.lines.append(Line(case=case, peer="", ours=tuple(samples)))
    report.require(case, AT_LEAST, "at least")
    return report
