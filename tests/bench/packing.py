"""How well tasks of different widths are packed on four nodes of four cores.

The tasks sleep, so two real cores suffice. exadask does not know how long a task takes; it is
compared with the best of several list schedules that know all durations (`offline.py`), and with
Dask's ``resources={"cores": n}`` on a cluster of four workers in one process. Both are warm: all
slots have run a task before.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.bench import contest, peers
from tests.bench.measure import Options, Report
from tests.bench.offline import Item, best_makespan

CORES, NODES = 4, 4
LATE_S = 2.0
LIMIT = 1.05
OFFLINE = "offline schedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Tasks, in the order of their submission, and when each node joins [s]."""

    name: str
    items: tuple[Item, ...]
    joins: tuple[float, ...]


class Cluster(Protocol):
    """Nodes of four cores under test."""

    name: str

    def start(self) -> None:
        """Get ready, with all nodes."""

    def begin(self, nodes: int) -> None:
        """Start over with some nodes, all warm."""

    def add_node(self) -> None:
        """Let one more join; need not wait for it."""

    def submit(self, item: Item) -> peers.Pending:
        """Run a task that sleeps."""

    def close(self) -> None:
        """End all."""


class Exadask:
    """`exadask.Executor` on declared nodes."""

    name = "exadask"

    def start(self) -> None:
        self._executor: Any = None

    def begin(self, nodes: int) -> None:
        import exadask as xd

        self.close()
        self._shape = xd.NodeShape.declare(cores=CORES)
        self._executor = xd.Executor(nodes=[self._shape] * nodes)
        warming = [self.submit(Item(cores=1, seconds=0.3)) for _ in range(CORES * nodes)]
        for one in warming:
            one.result()

    def add_node(self) -> None:
        self._executor._cluster.add_node(self._shape)

    def submit(self, item: Item) -> peers.Pending:
        pending: peers.Pending = self._executor.options(cores=item.cores).submit(
            time.sleep, item.seconds
        )
        return pending

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()


class Dask:
    """Workers in one process with as many threads as could ever be of use."""

    name = "dask"

    def start(self) -> None:
        self._cluster: Any = None

    def begin(self, nodes: int) -> None:
        from distributed import Client, LocalCluster

        self.close()
        self._cluster = LocalCluster(
            n_workers=nodes,
            processes=False,
            threads_per_worker=16,
            resources={"cores": CORES},
            memory_limit=0,
            dashboard_address=None,
        )
        self._client, self._nodes = Client(self._cluster), nodes
        for one in [self.submit(Item(cores=1, seconds=0.1)) for _ in range(CORES * nodes)]:
            one.result()

    def add_node(self) -> None:
        self._nodes += 1
        self._cluster.scale(self._nodes)

    def submit(self, item: Item) -> peers.Pending:
        pending: peers.Pending = self._client.submit(
            time.sleep, item.seconds, pure=False, resources={"cores": item.cores}
        )
        return pending

    def close(self) -> None:
        if self._cluster is not None:
            self._client.close()
            self._cluster.close()


def makespan(cluster: Cluster, scenario: Scenario) -> contest.Figures:
    """Run a scenario, from the first submit to the last result."""
    cluster.begin(sum(join == 0 for join in scenario.joins))
    start = time.perf_counter()
    pending = [cluster.submit(item) for item in scenario.items]
    for join in sorted(scenario.joins):
        if join > 0:
            time.sleep(max(0.0, start + join - time.perf_counter()))
            cluster.add_node()
    for one in pending:
        one.result()
    return {scenario.name: [time.perf_counter() - start]}


def scenarios(*, quick: bool) -> list[Scenario]:
    """Make the scenarios: always the same."""
    count, scale = (16, 0.2) if quick else (240, 1.0)

    def items(widths: Callable[[int], int], count: int) -> tuple[Item, ...]:
        seconds = [scale * rng.uniform(0.2, 0.8) for _ in range(count)]
        return tuple(Item(cores=widths(n), seconds=s) for n, s in enumerate(seconds))

    rng = random.Random(1)
    all_there = (0.0,) * NODES
    one_late = (*all_there[1:], scale * LATE_S)
    return [
        Scenario(
            name="1, 2 and 4 cores [s]",
            items=items(lambda _: rng.choice((1, 2, 4)), count),
            joins=all_there,
        ),
        Scenario(
            name="3 and 1 in turns [s]",
            items=items(lambda n: 3 - 2 * (n % 2), count),
            joins=all_there,
        ),
        Scenario(
            name="1 of 4 nodes late [s]",
            items=items(lambda _: rng.choice((1, 2, 4)), count),
            joins=one_late,
        ),
    ]


def bench(options: Options) -> Report:
    """Run all scenarios."""
    rounds = 1 if options.quick else 3
    title = f"makespan of sleeping tasks on {NODES} nodes of {CORES} cores"
    report = Report(name="mixed", title=title)
    theirs = [Dask] if not options.peers or Dask.name in options.peers else []
    chosen = scenarios(quick=options.quick)
    blocks = [
        contest.Block(
            name=one.name,
            work=makespan,
            arguments=functools.partial(_arguments, one),
            rounds=rounds,
        )
        for one in chosen
    ]
    contest.hold(report, blocks, theirs, ours=Exadask)
    for one in chosen:
        best = best_makespan(one.items, [(join, CORES) for join in one.joins])
        report.beside(one.name, OFFLINE, best)
        report.require_ratio(one.name, OFFLINE, LIMIT, "at most")
    return report


def _arguments(scenario: Scenario, *_: object) -> tuple[object, ...]:
    return (scenario,)
