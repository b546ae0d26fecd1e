"""The conformance suite on all batch systems that can be had here, and on imitations of others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from exadask.pool import Pool
from exadask.testing.conformance import *  # noqa: F403
from exadask.testing.fake_batch import FakeBatch
from exadask.testing.harness import CAPABILITIES, Harness, StandIn

_MINUTE_S = 2.0  # of the imitations


@contextmanager
def local(folder: Path) -> Iterator[Harness]:
    yield Harness(Pool.declare("local", batch="local"), folder)


@contextmanager
def psij_local(folder: Path) -> Iterator[Harness]:
    pytest.importorskip("psij")
    yield Harness(Pool.declare("psij", batch="psij:local"), folder)


@contextmanager
def slurm(folder: Path) -> Iterator[Harness]:
    _needs("slurm")
    pool = Pool.declare("cpu", batch="slurm", queue="cpu")
    yield Harness(pool, folder, kill_node=_lost_by_slurm, early={"queue": "gpu"})


@contextmanager
def grid_engine(folder: Path) -> Iterator[Harness]:
    _needs("gridengine")
    pool = Pool.declare("sge", batch="sge", queue="all.q", cores=4, select="smp", exclusive=False)
    yield Harness(pool, folder)


@contextmanager
def _fake(name: str, folder: Path) -> Iterator[Harness]:
    with FakeBatch(name, folder / name, minute_s=_MINUTE_S):
        yield Harness(Pool.declare(name, batch=name, cores=4), folder)


@contextmanager
def fake_pbs(folder: Path) -> Iterator[Harness]:
    with _fake("pbs", folder) as made:
        yield made


@contextmanager
def fake_lsf(folder: Path) -> Iterator[Harness]:
    with _fake("lsf", folder) as made:
        made.can = replace(CAPABILITIES["lsf"], overtime_s=30.0)
        yield made


@contextmanager
def fake_flux(folder: Path) -> Iterator[Harness]:
    with _fake("flux", folder) as made:
        yield made


@pytest.fixture(
    scope="module",
    params=[slurm, grid_engine, local, psij_local, fake_pbs, fake_lsf, fake_flux],
    ids=lambda make: make.__name__,
)
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    make: Callable[[Path], contextmanager[Harness]] = request.param
    with make(tmp_path_factory.mktemp("conformance")) as made:
        yield made
        made.close()


def _needs(name: str) -> None:
    """Skip without a batch system that was made for tests; where it must be there, fail."""
    if f"EXADASK_CI_{name.upper()}" in os.environ:
        return
    reason = os.environ.get(f"EXADASK_CI_{name.upper()}_MISSING", "")
    reason = reason or f"none was started for tests: run ci/test, or: ci/{name} up DIR; . DIR/env"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def _lost_by_slurm(agent: StandIn) -> Iterator[None]:
    node = f"nodename={agent.facts['SLURMD_NODENAME']}"
    subprocess.run(["scontrol", "update", node, "state=down", "reason=test"], check=True)
    try:
        yield
    finally:
        subprocess.run(["scontrol", "update", node, "state=resume"], check=True)
