"""Measure the core alone: what a decision costs where many tasks wait for thousands of nodes.

    python tests/bench/placement_scale.py [--quick]

Nothing is acted upon and no time passes: a heap of ends stands for the cluster. After each handful
of ends the shares are released and `dispatch` is called, as the scheduler plugin does. The nodes
are those of Frontier: 56 cores for tasks, 8 GPUs, 512 GiB. The tasks have 20 shapes, from one core
to the whole node, with shares of GPUs, memory and time limits. With *many* priorities tasks of all
shapes run side by side; with *one* the widest go first as long as there are any. *Bundles* that
are asked to yield do so after 0.1 s.
"""

from __future__ import annotations

import gc
import heapq
import multiprocessing
import random
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from exadask.core.ledger import NodeId, ShareId, TaskId
from exadask.core.placement import Place, Placement, WaitingTask, Yield
from exadask.resources import NodeShape, Resources
from tests.bench import measure

LIMIT_US = 100.0
LIMIT_GROWTH = 1.5
LIMIT_BYTES = 1000.0
_N_FEW, _N_NODES = 98, 9_408
_DECISION = "decision [us]"
_MEMORY = "memory per waiting task [B]"
_HANDFUL = 8
_MEAN_S = 60.0
_CALL_S = 0.1

NODE = NodeShape(
    core_ids=tuple(core for core in range(64) if core % 8),
    memory_bytes=512 * 2**30,
    numa=tuple(tuple(core for core in range(64) if core % 8 and core // 16 == n) for n in range(4)),
    gpu_ids=tuple(str(gpu) for gpu in range(8)),
    gpu_vendor="amd",
    gpu_cores=tuple(
        tuple(range(8 * group + 1, 8 * group + 8)) for group in (6, 7, 2, 3, 0, 1, 4, 5)
    ),
)

SHAPES = [
    Resources.parse(cores=cores, gpus=gpus, memory=memory, time=time_s)
    for cores, gpus, memory, time_s in (
        (1, 0, None, None),
        (1, 0, "4GiB", None),
        (1, 0, "2GiB", "10m"),
        (1, 0.125, None, None),
        (1, 0.25, "8GiB", None),
        (2, 0, None, None),
        (2, 0, "8GiB", "1h"),
        (2, 0.5, None, "30m"),
        (3, 0, "64GiB", None),
        (4, 0, None, None),
        (4, 1, "32GiB", None),
        (7, 0, None, None),
        (7, 1, None, None),
        (8, 0, "100GiB", "2h"),
        (14, 2, "128GiB", None),
        (16, 0, None, None),
        (28, 4, None, "1h"),
        (32, 0, "256GiB", None),
        (56, 0, None, None),
        (56, 8, "500GiB", "1h"),
    )
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One cluster with its queue."""

    nodes: int
    tasks: int
    priorities: int
    decisions: int
    are_bundles: bool = False

    @property
    def title(self) -> str:
        """The case in words."""
        priorities = "many priorities" if self.priorities > 1 else "one priority"
        bundles = ", bundles" if self.are_bundles else ""
        return f"{self.nodes:,} nodes, {self.tasks:,} tasks, {priorities}{bundles}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one case costs: seconds of processor time, and bytes."""

    submit_s: float
    fill_s: float
    decision_s: float
    running: int
    yields: int
    task_bytes: float


class Cluster:
    """Nodes that do nothing but end their tasks."""

    def __init__(self, case: Case) -> None:
        self._rng = random.Random(0)
        self._case = case
        self._core = Placement()
        self._ends: list[tuple[float, ShareId]] = []
        self._now = 0.0
        self.n_yields = 0
        for index in range(case.nodes):
            self._core.add_node(NodeId(f"frontier{index:05d}"), NODE)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return len(self._ends)

    def tasks(self) -> list[WaitingTask]:
        """Make the tasks, as the plugin does."""
        rng, n_priorities = self._rng, self._case.priorities
        return [
            WaitingTask(
                task=TaskId(f"f-{index:032x}"),
                request=rng.choice(SHAPES),
                priority=(rng.randrange(n_priorities), 1, index),
                is_bundle=self._case.are_bundles,
            )
            for index in range(self._case.tasks)
        ]

    def submit(self, tasks: list[WaitingTask]) -> None:
        """Queue tasks."""
        for task in tasks:
            self._core.submit(task, self._now)

    def dispatch(self) -> int:
        """Dispatch; returns how many tasks were placed."""
        n_placed = 0
        for command in self._core.dispatch(self._now):
            if isinstance(command, Place):
                n_placed += 1
                end = self._now + self._rng.expovariate(1 / _MEAN_S)
                heapq.heappush(self._ends, (end, command.share.share_id))
            elif isinstance(command, Yield):
                self.n_yields += 1
                heapq.heappush(self._ends, (self._now + _CALL_S, command.share.share_id))
        self._core.next_deadline()
        return n_placed

    def end_some(self) -> None:
        """Let the next few tasks end."""
        for _ in range(self._rng.randint(1, _HANDFUL)):
            self._now, share_id = heapq.heappop(self._ends)
            self._core.release(share_id)  # the second time is a late report

    def go_on(self, decisions: int) -> float:
        """Go on until so many tasks are placed; returns what a decision cost [s]."""
        n_placed, began = 0, time.process_time()
        while n_placed < decisions:
            self.end_some()
            n_placed += self.dispatch()
        return (time.process_time() - began) / n_placed


def run_case(case: Case) -> Found:
    """Measure one case; in a process of its own, since memory is measured too."""
    cluster = Cluster(case)
    gc.collect()
    before_bytes = _resident_bytes()
    tasks = cluster.tasks()
    began = time.process_time()
    cluster.submit(tasks)
    submit_s = (time.process_time() - began) / case.tasks
    del tasks
    gc.collect()
    task_bytes = (_resident_bytes() - before_bytes) / case.tasks
    began = time.process_time()
    n_placed = cluster.dispatch()
    fill_s = (time.process_time() - began) / n_placed
    cluster.go_on(case.decisions // 2)
    decision_s = cluster.go_on(case.decisions)
    return Found(
        submit_s=submit_s,
        fill_s=fill_s,
        decision_s=decision_s,
        running=cluster.running,
        yields=cluster.n_yields,
        task_bytes=task_bytes,
    )


def bench(options: measure.Options) -> measure.Report:
    """Measure all cases."""
    report = measure.Report(name="placement", title="what a decision of the core costs")
    found = {}
    for case in _cases(quick=options.quick):
        measure.progress(f"placement_scale: {case.title}")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            one = found[case] = fresh.submit(run_case, case).result()
        report.lines += [
            measure.Line(case=f"{case.title}: {what}", peer="", ours=(value,))
            for what, value in (
                (_DECISION, 1e6 * one.decision_s),
                ("first fill [us]", 1e6 * one.fill_s),
                ("submission [us]", 1e6 * one.submit_s),
                (_MEMORY, one.task_bytes),
            )
        ]
        rate = measure.figure(1 / one.decision_s)
        report.notes.append(
            f"{case.title}: {one.running:,} run, {one.yields:,} were asked to yield; "
            f"{rate} decisions per second"
        )
        if case.nodes == _N_NODES:
            report.require(f"{case.title}: {_DECISION}", LIMIT_US)
            report.require(f"{case.title}: {_MEMORY}", LIMIT_BYTES)
    for case, one in found.items():
        few = found.get(replace(case, nodes=_N_FEW))
        if few is not None and few is not one:
            growth = one.decision_s / few.decision_s
            what = f"{case.title}: time per decision / that on {_N_FEW} nodes"
            report.bars.append(measure.Bar(what=what, value=growth, limit=LIMIT_GROWTH))
    return report


def _cases(*, quick: bool) -> list[Case]:
    tasks, decisions = (20_000, 1_000) if quick else (1_000_000, 40_000)
    return [
        Case(
            nodes=nodes,
            tasks=tasks,
            priorities=priorities,
            decisions=decisions,
            are_bundles=are_bundles,
        )
        for priorities, are_bundles in ((1000, False), (1000, True), (1, False))
        for nodes in (_N_FEW, 980 if quick else _N_NODES)
    ]


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    print(measure.rendered_text(bench(measure.Options(quick="--quick" in sys.argv[1:]))))
