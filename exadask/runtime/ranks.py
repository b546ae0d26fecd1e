"""How the ranks of an MPI program are started on this node, inside the share of a task.

The task's own process calls this. Whatever starts the ranks (`mpiexec` of MPICH, Intel MPI or Open
MPI) is told to do so here and now: it shall neither look for the batch system's nodes, nor bind.
Each rank binds itself to its part of the task's cores and GPUs before it becomes the program.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exadask.errors import InvalidRequest
from exadask.resources import GPU_UNIT, Resources
from exadask.runtime import binding

_START = Path(__file__).with_name("ranks.sh")
# What outer MPI programs say, and inner ones would believe.
_OF_OTHERS = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL")
# What batch systems say, and process managers would follow: they shall look no further than here.
_OF_JOBS = ("SLURM_", "PBS_", "LSB_", "PALS_", "HYDRA_")
_VERSION_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many ranks there are, and what each asks for.

    Parameters
    ----------
    ranks : int
        How many [ranks], >= 1.
    each : Resources
        What one asks for.
    """

    ranks: int
    each: Resources

    @property
    def request(self) -> Resources:
        """What all ask for together."""
        each = self.each
        memory = each.memory_bytes
        return Resources(
            cores=self.ranks * each.cores,
            gpu_units=self.ranks * each.gpu_units,
            memory_bytes=None if memory is None else self.ranks * memory,
            time_s=each.time_s,
        )


def prefix(layout: Layout, launcher: str | None) -> tuple[list[str], dict[str, str]]:
    """Give the words before a program that start it as so many ranks, and their environment.

    Parameters
    ----------
    layout : Layout
        The ranks.
    launcher : str, optional
        The command to start them with; ``{ranks}`` and ``{cores}`` (of a rank) stand for numbers,
        ``{node}`` for the batch system's name of this node. None: the ``mpiexec`` that is found.

    Raises
    ------
    InvalidRequest
        There is no such command.
    """
    if launcher is None:
        found = _mpiexec()
        flags = ("--oversubscribe", "--bind-to", "none") if _is_open_mpi(found) else ()
        words = [found, *flags, "-n", str(layout.ranks)]
    else:
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        text = launcher.format(ranks=layout.ranks, cores=layout.each.cores, node=node)
        words = shlex.split(text)
        if shutil.which(words[0]) is None:
            raise InvalidRequest(
                f"launcher={launcher!r}: there is no {words[0]!r} on this node.",
                "Load the module that has it where the job begins, or leave launcher= out.",
            )
    misleading = (*_OF_OTHERS, *_OF_JOBS) if launcher is None else _OF_OTHERS
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(misleading)
    }
    environment |= _here_and_now() | _parts(layout, os.environ)
    if _is_open_mpi(words[0]):  # mpi4py of PyPI speaks to any MPI, and might choose another one
        environment.setdefault("MPI4PY_MPIABI", "openmpi")
    return [*words, "/bin/sh", str(_START)], environment


def _here_and_now() -> dict[str, str]:
    """Tell process managers of all kinds to start processes on this node, and to bind none."""
    told = {
        "HYDRA_LAUNCHER": "fork",
        "HYDRA_RMK": "user",
        "HYDRA_BINDING": "none",
        "I_MPI_HYDRA_BOOTSTRAP": "fork",
        "I_MPI_PIN": "0",
        "OMPI_MCA_plm": "isolated",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_ras": "^slurm,pbs,lsf",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if os.getuid() == 0:
        told |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        told |= {"PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return told


def _parts(layout: Layout, environ: Mapping[str, str]) -> dict[str, str]:
    """Say which cores and GPUs of the task are those of which rank."""
    ranks, each = layout.ranks, layout.each
    told = binding.thread_environment(each.cores)
    told |= {"EXADASK_RANK_CORES": "", "EXADASK_RANK_GPUS": ""}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) == ranks * each.cores:  # otherwise the shape is declared, and binds nobody
        told["EXADASK_RANK_CORES"] = ":".join(
            ",".join(map(str, cores[rank * each.cores : (rank + 1) * each.cores]))
            for rank in range(ranks)
        )
    variable = next((name for name in binding.GPU_VARIABLES.values() if environ.get(name)), None)
    if each.gpu_units and variable is not None:
        gpus = environ[variable].split(",")
        told["EXADASK_RANK_GPU_VARIABLE"] = variable
        told["EXADASK_RANK_GPUS"] = ":".join(
            ",".join(_gpus_of(rank, each.gpu_units, gpus)) for rank in range(ranks)
        )
    return told


def _gpus_of(rank: int, units: int, gpus: Sequence[str]) -> Sequence[str]:
    first = rank * units // GPU_UNIT
    return gpus[first : first + max(1, units // GPU_UNIT)]


@functools.lru_cache(maxsize=8)
def _mpiexec() -> str:
    """Find what starts ranks: beside this Python, or on the path."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if found is None:
        raise InvalidRequest(
            "there is no mpiexec on this node.",
            "Load the site's MPI module where the job begins (setup= of the pool), say "
            "launcher=, or on a laptop: pip install mpich.",
        )
    return found


@functools.lru_cache(maxsize=8)
def _is_open_mpi(launcher: str) -> bool:
    """Find out whose command this is."""
    asked = subprocess.run(
        [launcher, "--version"],
        capture_output=True,
        text=True,
        timeout=_VERSION_TIMEOUT_S,
        check=False,
    )
    return "Open MPI" in asked.stdout or "OpenRTE" in asked.stdout
