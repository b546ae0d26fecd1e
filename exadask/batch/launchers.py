"""What starts one agent on each node of an allocation, and how a node learns its rank.

Whatever the batch system, the launcher decides: under ``mpiexec`` inside a Slurm job SLURM_PROCID
is there too, and is wrong.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent

from exadask.batch.model import AllocationRequest
from exadask.errors import InvalidRequest

_BASH = "/bin/bash"  # found without PATH, which pbsdsh does not pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """A way to start agents.

    Parameters
    ----------
    words : tuple of str
        The words of its command, before the agent's; ``{nodes}`` is their number.
    rank : tuple of str
        The variables that may hold the rank of a node, best first. Empty: the rank is an argument.
    per_host : bool
        Whether it starts one agent on the host that is its last word, and is run once per host.
    is_shell : bool
        Whether what follows is read by a shell on the node, as ssh does.
    """

    words: tuple[str, ...]
    rank: tuple[str, ...] = ()
    per_host: bool = False
    is_shell: bool = False


_SRUN = (
    "srun",
    "--nodes={nodes}",
    "--ntasks={nodes}",
    "--ntasks-per-node=1",
    "--kill-on-bad-exit=0",  # agents do not need each other:
    "--wait=0",  # neither the end of one
    "--no-kill",  # nor the loss of a node ends the rest
    "--overlap",
    "--cpu-bind=none",  # agents bind tasks themselves; no --cpus-per-task, it implies --exact
    "--mpi=none",
)
_JSRUN = ("jsrun", "-n", "{nodes}", "-r", "1", "-a", "1", "-c", "ALL_CPUS", "-g", "ALL_GPUS")
_FLUX = ("flux", "run", "-N", "{nodes}", "--exclusive")
_FLUX_OPTIONS = ("-o", "exit-timeout=none", "-o", "cpu-affinity=off", "-o", "gpu-affinity=off")

LAUNCHERS: dict[str, Launcher] = {
    "srun": Launcher(words=_SRUN, rank=("SLURM_PROCID",)),
    "mpiexec": Launcher(
        words=("mpiexec", "-n", "{nodes}"), rank=("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
    ),
    "pals": Launcher(
        words=("mpiexec", "-n", "{nodes}", "--ppn", "1", "--cpu-bind", "none"),
        rank=("PALS_RANKID", "PMI_RANK"),
    ),
    "jsrun": Launcher(words=(*_JSRUN, "--bind=none"), rank=("JSM_NAMESPACE_RANK",)),
    "flux": Launcher(words=(*_FLUX, *_FLUX_OPTIONS), rank=("FLUX_TASK_RANK",)),
    "ibrun": Launcher(
        words=("ibrun",),  # as many tasks as the directives ask for: one per node
        rank=("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MPIRUN_RANK", "SLURM_PROCID"),
    ),
    "pbsdsh": Launcher(words=("pbsdsh",), rank=("PBS_NODENUM",)),
    "blaunch": Launcher(words=("blaunch",), per_host=True),
    "ssh": Launcher(words=("ssh", "-n", "-o", "BatchMode=yes"), per_host=True, is_shell=True),
    "oarsh": Launcher(words=("oarsh",), per_host=True, is_shell=True),
    "none": Launcher(words=()),
}

# It returns 0 whatever its tasks return, and only says so when they have ended (pbsdsh.c).
_PBSDSH = """\
exadask_pbsdsh() {{
    said=pbsdsh.$BASHPID
    {command} "$@" >"$said" &
    pid=$!
    trap 'kill -TERM "$pid" 2>/dev/null' TERM
    wait "$pid"
    code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
    cat "$said"
    failed=$(sed -n 's/.*: task .* exit status \\([0-9]*\\)$/\\1/p' "$said" | sort -n | tail -n 1)
    rm -f "$said"
    exit "${{failed:-$code}}"
}}
"""

_OF_ONE_NODE = {"pbs": "none", "lsf": "none", "oar": "none"}
_OF_SEVERAL = {
    "slurm": "srun",
    "pbs": "pbsdsh",
    "pbs_classic": "pbsdsh",
    "lsf": "blaunch",
    "oar": "oarsh",
    "flux": "flux",
}
_HOSTS = {
    "slurm": 'scontrol show hostnames "$SLURM_JOB_NODELIST"',
    "pbs": 'cat "$PBS_NODEFILE"',
    "lsf": 'cat "${LSB_DJOB_HOSTFILE:-/dev/null}"; echo "${LSB_HOSTS:-}"',
    "sge": 'cat "${PE_HOSTFILE:-/dev/null}"',
    "oar": 'cat "$OAR_NODEFILE"',
    "flux": "flux hostlist --expand local",
    "psij": 'cat "$PSIJ_NODEFILE"',
}
# The first word of a line is a host; of LSF and Flux each word is.
_WORDS_OF_LINES = {"lsf": "tr -s ' ' '\\n' | ", "flux": "tr -s ' ' '\\n' | "}


def launcher_name(request: AllocationRequest) -> str:
    """Choose the launcher: the pool's, or what suits the batch system.

    Raises
    ------
    InvalidRequest
        There are several nodes, and nothing to start agents on them.
    """
    if request.first_node_only:
        return "none"
    pool = request.pool
    system = (pool.psij_executor or "") if pool.batch == "psij" else pool.batch
    usual = _OF_SEVERAL.get(system, "none")
    if request.nodes == 1:
        usual = _OF_ONE_NODE.get(system, usual)
    name = pool.launcher or usual
    if name == "none" and request.nodes > 1:
        raise InvalidRequest(
            f"pool {pool.name!r} asks for {request.nodes} nodes, and nothing starts agents there.",
            "Set launcher= to what the site has (such as 'mpiexec' or 'ssh'), or nodes=1.",
        )
    return name


def rank_expression(request: AllocationRequest) -> str:
    """Write the shell expression that gives the rank on a node: its argument, or a variable."""
    variables = LAUNCHERS[launcher_name(request)].rank
    expression = ""
    for name in reversed(variables):
        expression = f"${{{name}:-{expression}}}"
    return f"${{2:-{expression}}}"


def launch_lines(request: AllocationRequest) -> list[str]:
    """Write the body of a shell function that starts the agents and stays until they end.

    Parameters
    ----------
    request : AllocationRequest
        The allocation. In the shell, `exadask_began` says when it began.

    Returns
    -------
    list of str
        Shell lines; the function runs in a shell of its own, which ends with it.

    Raises
    ------
    InvalidRequest
        There are several nodes, and nothing to start agents on them.
    """
    name = launcher_name(request)
    launcher = LAUNCHERS[name]
    agent = f'{_BASH} {shlex.quote(str(request.node_script))} "$exadask_began"'
    options = [word for text in request.pool.launcher_options for word in shlex.split(text)]
    words = [word.format(nodes=request.nodes) for word in launcher.words]
    if name == "none":
        return [f"exec {agent} 0"]
    if name == "mpiexec":
        return _mpiexec(words, options, agent)
    if name == "pbsdsh":
        return _pbsdsh([*words, *options], agent)
    command = shlex.join([*words, *options])
    if not launcher.per_host:
        return [f"exec {command} {agent}"]
    if launcher.is_shell:
        on_node = shlex.quote(f"exec {_BASH} {shlex.quote(str(request.node_script))}")
        agent = f'{on_node} "$exadask_began"'
    return _for_each("host", f"$({_hosts(request)})", f'{command} "$host" {agent}')


def _hosts(request: AllocationRequest) -> str:
    """Write the shell command that names each host of the allocation once."""
    batch = request.pool.batch
    if batch not in _HOSTS:
        raise InvalidRequest(
            f"pool {request.pool.name!r}: {batch} does not tell a job what its hosts are.",
            "Use another launcher=.",
        )
    once = "awk 'NF && !seen[$1]++ { print $1 }'"
    return f"{{ {_HOSTS[batch]}; }} | {_WORDS_OF_LINES.get(batch, '')}{once}"


def _mpiexec(words: Sequence[str], options: Sequence[str], agent: str) -> list[str]:
    """Start one agent per node with Open MPI or a relative of Hydra (MPICH, Intel, MVAPICH)."""
    end = f"{shlex.join(options)} {agent}" if options else agent
    common = shlex.join(words)
    open_mpi = "--map-by ppr:1:node --bind-to none --mca orte_abort_on_non_zero_status 0"
    return [
        'case "$(mpiexec --version 2>&1)" in',
        f"    *'Open MPI'* | *OpenRTE* | *PRRTE*) exec {common} {open_mpi} {end} ;;",
        f"    *HYDRA*) exec {common} -ppn 1 -disable-auto-cleanup {end} ;;",
        f"    *) exec {common} -ppn 1 {end} ;;",
        "esac",
    ]


def _pbsdsh(words: Sequence[str], agent: str) -> list[str]:
    """Start one agent per line of the node file, or on one line of each node if it repeats some."""
    first_lines = """$(awk 'NF && !seen[$1]++ { print NR - 1 }' "$PBS_NODEFILE")"""
    return [
        *_PBSDSH.format(command=shlex.join(words)).splitlines(),
        'if [ -z "$(sort "$PBS_NODEFILE" | uniq -d)" ]; then',
        f"    exadask_pbsdsh -- {agent}",
        "fi",
        *_for_each("line", first_lines, f'exadask_pbsdsh -n "$line" -- {agent}'),
    ]


def _for_each(name: str, words: str, command: str) -> list[str]:
    """Run a command for each word at the same time; the rank is its last argument."""
    body = f'{command} "$rank" &\npids+=($!)\nrank=$((rank + 1))'
    text = f"""\
rank=0 code=0 pids=()
for {name} in {words}; do
{indent(body, "    ")}
done
trap 'kill -TERM "${{pids[@]}}" 2>/dev/null' TERM
[ "$rank" -gt 0 ] || {{ echo "exadask: the batch system named no nodes" >&2; exit 1; }}
for pid in "${{pids[@]}}"; do
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done
done
exit "$code\""""
    return re.split("\n", text)
