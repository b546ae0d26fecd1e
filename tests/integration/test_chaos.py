"""Random work on random nodes that come, go and die, under Dask's own consistency checks."""

from __future__ import annotations

import random
from concurrent.futures import CancelledError
from contextlib import suppress

import dask
import pytest

import exadask as xd
from exadask.runtime.cluster import EmbeddedCluster
from exadask.testing.waiting import eventually

pytestmark = pytest.mark.dask

# A task may by chance be on each node that dies, and is then suspected.
BY_CHANCE = (xd.errors.DependencyFailed, xd.errors.NodeLost)
_VALIDATE = {"distributed.scheduler.validate": True, "distributed.worker.validate": True}
_N_TASKS = 150


def work(seed: int, inputs: list[int]) -> int:
    """Compute for a moment; sometimes fail."""
    rng = random.Random(seed)
    total = sum(inputs)
    for _ in range(rng.randrange(50_000)):
        total += 1
    if rng.random() < 0.1:
        raise ArithmeticError(f"seed {seed}")
    return total


def submit_some(executor: xd.Executor, rng: random.Random) -> list[xd.Future[int]]:
    """Submit tasks of mixed widths, some of which need earlier ones."""
    futures: list[xd.Future[int]] = []
    for seed in range(_N_TASKS):
        inputs = rng.sample(futures, k=min(len(futures), rng.randrange(3)))
        options = {
            "cores": rng.choice((1, 1, 1, 2, 4)),
            "gpus": rng.choice((0, 0, 0, 0.5, 1)),
            "priority": rng.randrange(3),
            "retries": rng.randrange(3),
        }
        futures.append(executor.options(**options).submit(work, seed, inputs))
    return futures


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_future_ends_and_the_books_balance(seed: int) -> None:
    rng = random.Random(seed)
    shape = xd.NodeShape.declare(cores=4, gpus=1)
    with dask.config.set(_VALIDATE), xd.Executor(nodes=[shape, shape], reserve_after_s=0.5) as ex:
        cluster = ex._cluster
        assert isinstance(cluster, EmbeddedCluster)
        futures = submit_some(ex, rng)
        for count in (20, 50, 80, 110):
            eventually(lambda count=count: sum(map(xd.Future.done, futures)) >= count)  # type: ignore[misc]  # bound now
            joined = cluster.add_node(shape)
            cluster.lose_node(rng.choice([name for name in cluster.shapes if name != joined]))
            for future in rng.sample(futures, k=5):
                future.cancel()
        for future in futures:
            with suppress(CancelledError, ArithmeticError, *BY_CHANCE):
                assert isinstance(future.result(60), int)
        placement = cluster.plugin.placement
        eventually(lambda: all(node.ledger.is_idle for node in placement.nodes.values()))
        placement.check()
