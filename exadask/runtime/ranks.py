"""How the ranks of an MPI program are started, inside what a task holds of one node or of several.

The task's own process calls this. Whatever starts the ranks (`mpiexec` of MPICH, Intel MPI or Open
MPI) is told where and how: it shall neither look for the batch system's nodes, nor bind. On other
nodes it starts its helpers through `reach.sh`, which goes through the agents. Each rank binds
itself to its part of the node's cores and GPUs before it becomes the program.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exadask import inside
from exadask.errors import InvalidRequest
from exadask.rank_launcher import SRUN, VARIABLE, launcher_here, takes_several_nodes
from exadask.resources import Resources
from exadask.runtime import binding

PROBLEMS = "problem.*"
"""The files where ranks on several nodes write what went wrong; see `exadask.runtime.rank`."""

_START, _REACH = (str(Path(__file__).with_name(name)) for name in ("ranks.sh", "reach.sh"))
# What outer MPI programs say, and inner ones would believe.
_OF_OTHERS = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL")
# What batch systems say, and process managers would follow: they shall look no further than here.
_OF_JOBS = ("SLURM_", "PBS_", "LSB_", "PALS_", "HYDRA_")
_VERSION_TIMEOUT_S = 30.0
_LAST_WORD_S = 5.0
_POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many ranks there are, where, and what each asks for.

    Parameters
    ----------
    ranks : int
        How many [ranks], >= 1.
    each : Resources
        What one asks for.
    nodes : int, optional
        On how many nodes, equally many on each [nodes]. None: on as few as have room.
    """

    ranks: int
    each: Resources
    nodes: int | None = None

    @property
    def request(self) -> Resources:
        """What all ask for together."""
        if self.nodes is None:
            return replace(self.each, parts=self.ranks)
        here = self.each.times(self.ranks // self.nodes)
        return here if self.nodes == 1 else replace(here, parts=self.nodes, is_apart=True)

    def on_each(self, gang: inside.Gang | None) -> list[int]:
        """Say how many ranks are on each node of a task [ranks]."""
        if gang is None:
            return [self.ranks]
        return [n_cores // self.each.cores for n_cores in gang.n_cores]


def prefix(layout: Layout, launcher: str | None) -> tuple[list[str], dict[str, str]]:
    """Give the words before a program that start it as so many ranks, and their environment.

    Parameters
    ----------
    layout : Layout
        The ranks.
    launcher : str, optional
        The command to start them with; ``{ranks}`` and ``{cores}`` (of a rank) stand for numbers,
        ``{node}`` for the batch system's name of this node, ``{nodes}`` and ``{n_nodes}`` for all
        nodes of the task, ``{hostfile}`` for a file that tells an ``mpiexec`` how many ranks go to
        each. "srun" stands for Slurm's, however many nodes there are. None: the ``mpiexec`` that is
        found; in an allocation of Slurm where there is none, "srun".

    Raises
    ------
    InvalidRequest
        There is no such command, or it cannot start ranks on several nodes.
    """
    here = inside.current()
    gang = None if here is None else here.gang
    launcher = _chosen(launcher, os.environ, is_gang=gang is not None)
    is_told = launcher is None or "{hostfile}" in launcher
    parts = {} if gang is None or is_told else _parts(gang)
    if launcher is None:
        words = _mpiexec_words(layout, gang)
    else:
        words = _words_of(launcher, layout, gang, list(parts) or [_node_name()])
    misleading = (*_OF_OTHERS, *_OF_JOBS) if launcher is None else _OF_OTHERS
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(misleading)
    }
    cores = here.cores if here is not None else ()
    environment |= _how(gang) | _who(layout, gang, cores) | {"EXADASK_STARTER": words[0]}
    if gang is not None and parts:  # the batch system starts the ranks: each finds its part itself
        numbered = zip(parts, layout.on_each(gang), strict=True)
        ranks = Path(gang.folder) / "ranks"
        ranks.write_text("".join(f"{name}\n" * n_ranks for name, n_ranks in numbered))
        environment["SLURM_HOSTFILE"] = str(ranks)
        environment["EXADASK_PARTS"] = " ".join(f"{one}={parts[one]}" for one in parts)
    if _is_open_mpi(words[0]):  # mpi4py of PyPI speaks to any MPI, and might choose another one
        environment.setdefault("MPI4PY_MPIABI", "openmpi")
    return [*words, "/bin/sh", _START], environment


def starter_of_ranks(said: str | None) -> str:
    """Say what starts ranks on this node, if no task says otherwise.

    Parameters
    ----------
    said : str, optional
        What the pool says.

    Raises
    ------
    InvalidRequest
        There is nothing that can.
    """
    return _chosen(None, {VARIABLE: said or ""}, is_gang=False) or str(_mpiexec())


def await_ends(folder: Path) -> None:
    """Wait until the agents of the other nodes have said how all ended there.

    What starts the ranks need not wait for that if it ends them itself.
    """
    deadline_s = time.monotonic() + _LAST_WORD_S
    while time.monotonic() < deadline_s:
        asked = {path.suffix for path in folder.glob("end.*")}
        if asked <= {path.suffix for path in folder.glob("over.*")}:
            return
        time.sleep(_POLL_S)


def _chosen(said: str | None, environ: Mapping[str, str], *, is_gang: bool) -> str | None:
    """Choose the command that starts ranks on this node; None: the ``mpiexec`` that is found."""
    launcher = launcher_here(said, environ, is_gang=is_gang)
    if launcher is None and _mpiexec() is None:
        launcher = launcher_here(_without_mpiexec(), {}, is_gang=is_gang)
    return launcher


def _mpiexec_words(layout: Layout, gang: inside.Gang | None) -> list[str]:
    found = _mpiexec()
    assert found is not None, "otherwise another launcher was chosen"
    words = [found]
    if gang is not None:
        words += ["--hostfile"] if _is_open_mpi(found) else ["-localhost", gang.address, "-f"]
        words.append(_hostfile(found, layout, gang))
    if _is_open_mpi(found):
        words += ["--oversubscribe", "--bind-to", "none"]
    return [*words, "-n", str(layout.ranks)]


def _words_of(
    launcher: str, layout: Layout, gang: inside.Gang | None, nodes: Sequence[str]
) -> list[str]:
    if gang is not None and not takes_several_nodes(launcher):
        raise InvalidRequest(
            f"launcher={launcher!r} starts ranks on one node, and these are on "
            f"{len(gang.n_cores)}.",
            "Say where it takes the nodes: 'mpiexec -f {hostfile} -n {ranks}'. Or say 'srun', "
            "which knows, or leave launcher= out, or say nodes=1.",
        )
    program = (shlex.split(launcher) or [""])[0]
    if shutil.which(program) is None:
        raise InvalidRequest(
            f"launcher={launcher!r}: there is no {program!r} on this node.",
            "Load the module that has it where the job begins, or leave launcher= out.",
        )
    hostfile = "" if gang is None else shlex.quote(_hostfile(program, layout, gang))
    return shlex.split(
        launcher.format(
            ranks=layout.ranks,
            cores=layout.each.cores,
            node=_node_name(),
            nodes=",".join(nodes),
            n_nodes=len(nodes),
            hostfile=hostfile,
        )
    )


def _node_name() -> str:
    """Give the batch system's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _parts(gang: inside.Gang) -> dict[str, str]:
    """Ask all nodes of a task for their names, and for the folders of its parts there."""
    ask = 'printf "%s %s" "${SLURMD_NODENAME:-$(hostname)}" "$EXADASK_PART" >&2; exit 1'
    environment = {**os.environ, "EXADASK_GANG": gang.folder}
    asked = [
        subprocess.Popen(
            ["/bin/sh", _REACH, f"exadask-{place}", ask],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in range(1, len(gang.n_cores))
    ]
    found = {_node_name(): gang.folder}
    for one in asked:
        name, _, folder = one.communicate()[1].partition(" ")
        found[name] = folder
    return found


def _hostfile(program: str, layout: Layout, gang: inside.Gang) -> str:
    """Write which places there are, and how many ranks go to each."""
    form = "exadask-{} slots={}\n" if _is_open_mpi(program) else "exadask-{}:{}\n"
    path = Path(gang.folder) / "hosts"
    lines = (form.format(place, ranks) for place, ranks in enumerate(layout.on_each(gang)))
    path.write_text("".join(lines))
    return str(path)


def _how(gang: inside.Gang | None) -> dict[str, str]:
    """Tell process managers of all kinds where to start processes, and to bind none."""
    told = {
        "HYDRA_LAUNCHER": "fork",
        "HYDRA_RMK": "user",
        "HYDRA_BINDING": "none",
        "I_MPI_HYDRA_BOOTSTRAP": "fork",
        "I_MPI_PIN": "0",
        "OMPI_MCA_plm": "isolated",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        # Open MPI 4 maps what it knows of the machine where its stack will grow, one time in 15.
        "OMPI_MCA_rtc_hwloc_vmhole": "none",
        "PRTE_MCA_ras": "^slurm,pbs,lsf",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if gang is not None:
        told |= {
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": _REACH,
            "I_MPI_HYDRA_BOOTSTRAP": "ssh",
            "I_MPI_HYDRA_BOOTSTRAP_EXEC": _REACH,
            "OMPI_MCA_plm": "rsh",
            "OMPI_MCA_plm_rsh_agent": _REACH,
            "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
            "OMPI_MCA_orte_leave_session_attached": "1",
            "PRTE_MCA_plm": "ssh",
            "PRTE_MCA_plm_ssh_agent": _REACH,
            "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
            "PRTE_MCA_prte_leave_session_attached": "1",
        }
    if os.getuid() == 0:
        told |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        told |= {"PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return told


def _who(layout: Layout, gang: inside.Gang | None, cores: tuple[int, ...]) -> dict[str, str]:
    """Say which cores and GPUs are those of which rank."""
    each = layout.each
    told = binding.thread_environment(each.cores) | {
        "EXADASK_RANKS": str(layout.ranks),
        "EXADASK_RANKS_PER_NODE": ",".join(map(str, layout.on_each(gang))),
        "EXADASK_RANK_CORES": str(each.cores),
        "EXADASK_RANK_GPU_UNITS": str(each.gpu_units),
    }
    if gang is not None:  # what is different from node to node stands in a file on each
        return told | {"EXADASK_GANG": gang.folder, "EXADASK_HOSTFILE": f"{gang.folder}/hosts"}
    # A declared shape binds nobody, nor does a program that is called inside a smaller task.
    is_enough = len(cores) >= layout.ranks * each.cores
    told["EXADASK_PART_CORES"] = ",".join(map(str, cores if is_enough else ()))
    return told


@functools.lru_cache(maxsize=8)
def _mpiexec() -> str | None:
    """Find what starts ranks: beside this Python, or on the path."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")


def _without_mpiexec() -> str:
    """Choose what starts ranks where there is no ``mpiexec``: Cray's MPI has none under Slurm."""
    if "SLURM_JOB_ID" in os.environ and shutil.which(SRUN) is not None:
        return SRUN
    raise InvalidRequest(
        "there is no mpiexec on this node.",
        "Load the site's MPI module where the job begins (setup= of the pool), say "
        "launcher=, or on a laptop: pip install mpich.",
    )


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
