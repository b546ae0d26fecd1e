"""When and where the benchmarks ran, and with what."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench import peers
from tests.bench.sandbox import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a reader must know to judge the figures.

    Parameters
    ----------
    date : str
        When it began (UTC).
    cpu, system, python : str
        Model, operating system with its version, and version.
    cores : int
        Those that this process may use.
    memory_bytes : int
        Of the machine.
    load : float
        Processes that wanted to run in the minute before.
    commit : str
        Of this checkout; empty outside of one.
    versions, ways : dict
        By peer: its version if it is installed, and what of it is used.
    """

    date: str
    cpu: str
    cores: int
    memory_bytes: int
    load: float
    system: str
    python: str
    commit: str
    versions: dict[str, str]
    ways: dict[str, str]

    @classmethod
    def gather(cls) -> Facts:
        """Look around."""
        everyone: list[type[peers.Peer]] = [peers.Exadask, *peers.PEERS]
        installed = [one for one in everyone if peers.is_installed(one)]
        return cls(
            date=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=psutil.virtual_memory().total,
            load=os.getloadavg()[0],
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            commit=_commit(),
            versions={one.name: peers.version_of(one) for one in installed},
            ways={one.name: one.how for one in everyone},
        )

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.date}: {self.cores} cores of {self.cpu}, {memory}, load {self.load:.1f}, "
            f"{self.system}, Python {self.python}\n{versions}"
        )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
