"""Measure how well tasks of different widths are packed on four nodes of four cores.

    python tests/bench/packing.py [--json] [--quick]

The tasks sleep, so two real cores suffice. exadask does not know how long a task takes; it is
compared with the best of several list schedules that know all durations (`offline.py`), and with
Dask's ``resources={"cores": n}`` on a cluster of four workers in one process. Both are warm: all
slots have run a task before. Utilisation is core-seconds of the tasks by those the nodes had.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import measure, peers
from tests.bench.offline import Item, best_makespan

CORES, NODES = 4, 4
LATE_S = 2.0
LIMIT = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Tasks, in the order of their submission, and when each node joins [s]."""

    name: str
    items: tuple[Item, ...]
    joins: tuple[float, ...]


class Cluster(Protocol):
    """Nodes of four cores under test."""

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


def makespan(cluster: Cluster, scenario: Scenario) -> float:
    """Run a scenario; returns the time from the first submit to the last result [s]."""
    cluster.begin(sum(join == 0 for join in scenario.joins))
    start = time.perf_counter()
    pending = [cluster.submit(item) for item in scenario.items]
    for join in sorted(scenario.joins):
        if join > 0:
            time.sleep(max(0.0, start + join - time.perf_counter()))
            cluster.add_node()
    for one in pending:
        one.result()
    return time.perf_counter() - start


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
            name="1, 2 and 4 cores",
            items=items(lambda _: rng.choice((1, 2, 4)), count),
            joins=all_there,
        ),
        Scenario(
            name="3 and 1 in turns", items=items(lambda n: 3 - 2 * (n % 2), count), joins=all_there
        ),
        Scenario(
            name="1 of 4 nodes late",
            items=items(lambda _: rng.choice((1, 2, 4)), count),
            joins=one_late,
        ),
    ]


def compare(
    scenario: Scenario, rounds: int, ours: peers.Session, theirs: peers.Session
) -> dict[str, measure.Cell]:
    """Run a scenario on both in turns; returns a line of the table."""
    best = best_makespan(scenario.items, [(join, CORES) for join in scenario.joins])
    pairs = measure.interleaved(
        lambda: ours.run(makespan, scenario), lambda: theirs.run(makespan, scenario), rounds
    )
    ours_s = [first for first, _ in pairs]
    theirs_s = [second for _, second in pairs]
    return {
        "tasks": scenario.name,
        "offline [s]": best,
        "exadask [s]": measure.Spread.of(ours_s),
        "Dask [s]": measure.Spread.of(theirs_s),
        "exadask / offline": measure.Spread.of(ours_s, 1 / best),
        "exadask / Dask": measure.ratio(pairs),
        "used, exadask": utilisation(scenario, ours_s),
        "used, Dask": utilisation(scenario, theirs_s),
    }


def utilisation(scenario: Scenario, times: list[float]) -> measure.Spread:
    """Give the core-seconds of the tasks by those the nodes had until the end."""
    work = sum(item.cores * item.seconds for item in scenario.items)
    return measure.Spread.of(
        [work / sum(CORES * (took - join) for join in scenario.joins) for took in times]
    )


def bench(options: measure.Options) -> measure.Report:
    """Run all scenarios."""
    rounds = 1 if options.quick else 3
    report = measure.Report(title="sleeping tasks on 4 nodes of 4 cores: median [p5 p95]")
    with peers.session(Exadask) as ours, peers.session(Dask) as theirs:
        for scenario in scenarios(quick=options.quick):
            line = compare(scenario, rounds, ours, theirs)
            report.rows.append(line)
            against = line["exadask / offline"]
            assert isinstance(against, measure.Spread)
            what = f"{scenario.name}: makespan / offline"
            report.bars.append(measure.Bar(what=what, value=against.median, limit=LIMIT))
    return report


if __name__ == "__main__":
    measure.run(__doc__, bench)
