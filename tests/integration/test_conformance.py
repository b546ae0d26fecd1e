"""The conformance suite on all batch systems that can be had here, and on imitations of others."""

from __future__ import annotations

import gc
import os
import subprocess
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from exadask.pool import Pool
from exadask.testing.conformance import *  # noqa: F403
from exadask.testing.fake_batch import FakeBatch
from exadask.testing.harness import CAPABILITIES, Harness, StandIn
from exadask.testing.waiting import eventually

_MINUTE_S = 2.0  # of the imitations
_SETTLED_S = 3.0  # all begin jobs in a second or two
# PSI/J leaves pipes open.
_LEAKY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextmanager
def local(folder: Path) -> Iterator[Harness]:
    yield Harness(Pool.declare("local", batch="local"), folder)


@contextmanager
def psij_local(folder: Path) -> Iterator[Harness]:
    pytest.importorskip("psij")
    made = Harness(Pool.declare("psij", batch="psij:local"), folder)
    yield made
    _forget(made)


@contextmanager
def psij_slurm(folder: Path) -> Iterator[Harness]:
    """PSI/J does not say why a job waits, and cannot read what Slurm says of a lost node."""
    pytest.importorskip("psij")
    _needs("slurm")
    from exadask.runtime.psij_backend import PsijBackend

    can = replace(
        CAPABILITIES["slurm"], held=(), impossible={}, walltime_s=None, settled_s=_SETTLED_S
    )
    pool = Pool.declare("psij", batch="psij:slurm", queue="cpu")
    made = Harness(pool, folder, capabilities=can, backend=PsijBackend("slurm", poll_s=1))
    yield made
    _forget(made)


def _forget(harness: Harness) -> None:
    """Let what PSI/J leaves open be found while its warnings are filtered."""
    remains = weakref.ref(harness.backend)
    del harness.backend
    eventually(lambda: gc.collect() >= 0 and remains() is None)


@contextmanager
def grid_engine(folder: Path) -> Iterator[Harness]:
    _needs("gridengine")
    pool = Pool.declare("sge", batch="sge", queue="all.q", cores=4, select="smp", exclusive=False)
    can = replace(CAPABILITIES["sge"], settled_s=_SETTLED_S)
    yield Harness(pool, folder, capabilities=can)


@contextmanager
def _fake(name: str, folder: Path) -> Iterator[Harness]:
    with FakeBatch(name, folder / name, minute_s=_MINUTE_S):
        can = replace(CAPABILITIES[name], settled_s=_SETTLED_S, overtime_s=30.0)
        yield Harness(Pool.declare(name, batch=name, cores=4), folder, capabilities=can)


@contextmanager
def fake_pbs(folder: Path) -> Iterator[Harness]:
    with _fake("pbs", folder) as made:
        yield made


@contextmanager
def fake_lsf(folder: Path) -> Iterator[Harness]:
    with _fake("lsf", folder) as made:
        yield made


@contextmanager
def fake_flux(folder: Path) -> Iterator[Harness]:
    with _fake("flux", folder) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness | None]:
    """A Slurm, if there is one: its shortest walltime is a minute, and begins before all tests."""
    if "CI_SLURM" not in os.environ:
        yield None
        return
    pool = Pool.declare("cpu", batch="slurm", queue="cpu")
    can = replace(CAPABILITIES["slurm"], settled_s=_SETTLED_S)
    folder = tmp_path_factory.mktemp("slurm")
    made = Harness(pool, folder, capabilities=can, kill_node=_lost_by_slurm, early={"queue": "gpu"})
    yield made
    made.close()


@pytest.fixture(
    scope="module",
    params=[
        grid_engine,
        local,
        fake_pbs,
        fake_lsf,
        fake_flux,
        pytest.param(psij_local, marks=_LEAKY),
        pytest.param(psij_slurm, marks=_LEAKY),
        None,
    ],
    ids=lambda make: make.__name__ if make else "slurm",
)
def harness(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    slurm: Harness | None,
) -> Iterator[Harness]:
    make: Callable[[Path], AbstractContextManager[Harness]] | None = request.param
    if make is None:
        _needs("slurm")
        assert slurm is not None
        yield slurm
        return
    with make(tmp_path_factory.mktemp("conformance")) as made:
        yield made
        made.close()


def _needs(name: str) -> None:
    """Skip without a batch system that was made for tests; where it must be there, fail."""
    if f"CI_{name.upper()}" in os.environ:
        return
    reason = os.environ.get(f"CI_{name.upper()}_MISSING", "")
    reason = reason or f"none was started for tests: run ci/test, or: ci/{name} up DIR; . DIR/env"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def _lost_by_slurm(agent: StandIn) -> Iterator[None]:
    node = agent.facts["SLURMD_NODENAME"]
    _slurm("kill", node)
    try:
        yield
    finally:
        _slurm("revive", node)


def _slurm(verb: str, node: str) -> None:
    script = Path(__file__).parents[2] / "ci/slurm"
    subprocess.run([script, verb, os.environ["CI_SLURM"], node], check=True, timeout=60)
