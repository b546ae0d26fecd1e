"""A real Slurm and a real Grid Engine for these tests, whose jobs must be gone after each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.testing.waiting import eventually


class Slurm:
    """What tests ask of the Slurm that runs here."""

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command of Slurm."""
        return subprocess.run(argv, capture_output=True, text=True, check=check).stdout

    def jobs(self) -> list[dict[str, str]]:
        """List the jobs that have not ended."""
        lines = self.run("squeue", "-h", "-o", "%i|%j|%P|%T|%D").splitlines()
        names = ("id", "name", "partition", "state", "nodes")
        return [dict(zip(names, line.split("|"), strict=True)) for line in lines]

    def cancel_all(self) -> None:
        """End whatever is left, and wait until it is gone."""
        self.run("scancel", *(job["id"] for job in self.jobs()), "--quiet")
        eventually(lambda: not self.jobs())

    def kill_daemon(self, node: str) -> None:
        """Kill the daemon of a node as a crash would."""
        os.kill(int(self._pid_file(node).read_text()), signal.SIGKILL)

    def start_daemon(self, node: str) -> None:
        """Start it again."""
        daemon = shutil.which("slurmd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert daemon is not None
        self.run(daemon, "-N", node, "-f", os.environ["SLURM_CONF"])

    def _pid_file(self, node: str) -> Path:
        lines = Path(os.environ["SLURM_CONF"]).read_text().splitlines()
        line = next(one for one in lines if one.startswith("SlurmdPidFile="))
        return Path(line.partition("=")[2].replace("%n", node))

    def nodes_are_up(self) -> bool:
        """Whether all nodes can take jobs."""
        states = self.run("sinfo", "-h", "-N", "-p", "cpu,gpu", "-o", "%T").split()
        return set(states) <= {"idle"}


class GridEngine:
    """What tests ask of the Grid Engine that runs here."""

    def jobs(self) -> list[str]:
        """List the ids of the jobs that have not ended."""
        argv = ("qstat", "-u", "*")
        lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line.split()[0] for line in lines[2:]]

    def cancel_all(self) -> None:
        """End whatever is left, and wait until it is gone."""
        subprocess.run(("qdel", *self.jobs()), capture_output=True, check=False)
        eventually(lambda: not self.jobs())


@pytest.fixture(scope="session")
def slurm_cluster() -> Slurm:
    """The Slurm that ``ci/slurm up`` has started."""
    if "SLURM_CONF" not in os.environ or shutil.which("sbatch") is None:
        _do_without("Slurm", "slurm")
    return Slurm()


def _do_without(title: str, name: str) -> None:
    """Skip a test without its batch system; fail where it must be there."""
    how = f"ci/{name} up DIR, then source DIR/env"
    why = f"no {title} runs here: {os.environ.get(f'CI_{name.upper()}_MISSING', how)}"
    pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


@pytest.fixture
def slurm(slurm_cluster: Slurm) -> Iterator[Slurm]:
    """The same, without jobs before and after."""
    eventually(slurm_cluster.nodes_are_up, timeout_s=60)
    yield slurm_cluster
    left = slurm_cluster.jobs()
    if left:
        slurm_cluster.cancel_all()
    assert left == [], "jobs were left behind"


@pytest.fixture
def gridengine() -> Iterator[GridEngine]:
    """The Grid Engine that ``ci/gridengine up`` has started, without jobs before and after."""
    if "SGE_ROOT" not in os.environ or shutil.which("qsub") is None:
        _do_without("Grid Engine", "gridengine")
    engine = GridEngine()
    eventually(lambda: not engine.jobs(), timeout_s=60)
    yield engine
    left = engine.jobs()
    if left:
        engine.cancel_all()
    assert left == [], "jobs were left behind"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs keep their files."""
    monkeypatch.setenv("EXADASK_RUN_FOLDER", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def pool() -> Callable[..., xd.Pool]:
    """Describe pools of the Slurm of the tests: everything on loopback."""

    def declare(name: str = "cpu", **facts: Any) -> xd.Pool:
        defaults: dict[str, Any] = {
            "batch": "slurm",
            "queue": name,
            "nodes": 1,
            "walltime": "5m",
            "interface": "lo",
        }
        return xd.Pool.declare(name, **defaults | facts)

    return declare
