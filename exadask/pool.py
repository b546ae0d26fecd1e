"""A pool: a kind of allocation, and everything the batch system must be told to get one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from exadask import pool_facts as facts
from exadask.cpulist import END_OF_IDS
from exadask.errors import ExadaskError, InvalidRequest
from exadask.resources import GpuVendor, NodeShape

BatchName = Literal["slurm", "pbs", "lsf", "sge", "oar", "htcondor", "flux", "psij", "local"]
LauncherName = Literal[
    "srun", "mpiexec", "pals", "jsrun", "blaunch", "flux", "pbsdsh", "ibrun", "ssh", "oarsh", "none"
]
GpuOption = Literal["gpus-per-node", "gres", "gpus", "select", "none"]
MemoryOption = Literal["all", "shape", "none"]

BATCH_SYSTEMS: tuple[str, ...] = get_args(BatchName)
LAUNCHERS: tuple[str, ...] = get_args(LauncherName)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBin:
    """A rule of a site: allocations of so many nodes may last so long.

    Parameters
    ----------
    least, most : int
        Nodes of an allocation, both ends included.
    walltime_s : float
        Longest walltime [s].
    """

    least: int
    most: int
    walltime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a site allows one user in one queue; None where nothing is known.

    Parameters
    ----------
    queued, running : int, optional
        Jobs at the same time, waiting and running.
    bins : tuple of NodeBin
        Allowed sizes and their walltimes; empty: any.
    """

    queued: int | None = None
    running: int | None = None
    bins: tuple[NodeBin, ...] = ()

    def longest_s(self, nodes: int) -> float | None:
        """Return the longest walltime for so many nodes [s]; None: any; 0: no such size."""
        if not self.bins:
            return None
        return max(
            (one.walltime_s for one in self.bins if one.least <= nodes <= one.most), default=0.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHints:
    """What a node cannot find out about itself; what it can find out, it does.

    Parameters
    ----------
    blocked_cores : tuple of int
        Core ids that tasks must not use.
    threads_per_core : int, optional
        Hardware threads of each physical core that count as cores. None: all that the batch system
        gives.
    gpu_ids : tuple of str
        Names of the GPUs, as the vendor's variable wants them; empty: detected.
    gpu_vendor : {"none", "nvidia", "amd", "intel"}, optional
        Whose they are. None: detected.
    gpu_cores : tuple of tuple of int
        For each GPU the core ids near it; empty: detected.
    rank_launcher : str, optional
        What starts the ranks of programs whose tasks do not say ``launcher=``; see
        `exadask.mpi_task.mpi`. None: the ``mpiexec`` that the node finds.
    """

    blocked_cores: tuple[int, ...] = ()
    threads_per_core: int | None = None
    gpu_ids: tuple[str, ...] = ()
    gpu_vendor: GpuVendor | None = None
    gpu_cores: tuple[tuple[int, ...], ...] = ()
    rank_launcher: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A kind of allocation. Use `Pool.declare` to write walltime and memory as text.

    Parameters
    ----------
    name : str
        Its name; tasks say ``pool=name`` to be pinned to it.
    batch : str
        The batch system: slurm, pbs, lsf, sge, oar, htcondor, flux, psij, or local (processes on
        this machine).
    min_nodes, max_nodes : int
        Nodes of one allocation.
    max_allocations : int
        Allocations at the same time, queued ones included.
    walltime_s : float
        How long an allocation lasts [s].
    idle_s : float
        How long a node may idle before its allocation is given back [s].
    shape : NodeShape, optional
        What a node is expected to have. None: asked of the batch system.
    queue, account, qos : str, optional
        Partition or queue, who pays, quality of service.
    exclusive : bool
        Whether whole nodes are asked for; otherwise the cores, GPUs and memory of `shape`.
    memory_option : {"all", "shape", "none"}
        Whether to ask for all of a node's memory, for that of the shape, or not to mention it.
    is_memory_option_said : bool
        Whether the user has chosen it; otherwise `updated` chooses: a part of a node asks for the
        memory that was stated.
    gpu_option : {"gpus-per-node", "gres", "gpus", "select", "none"}
        How GPUs are asked for.
    gpu_type : str, optional
        Slurm: which GPUs are asked for, such as ``v100-32``; written before their number. None:
        any.
    select : str, optional
        PBS: what else a chunk needs, such as ``system=polaris``. SGE: the parallel environment.
        OAR: properties. HTCondor: requirements.
    place : str, optional
        PBS: placement, ``scatter`` by default.
    directives : tuple of str
        Further directives, such as ``-C nvme``; one that repeats a flag replaces it.
    skip_directives : tuple of str
        Flags not to mention, such as ``--mem``; compared as whole flags.
    launcher : str, optional
        What starts an agent on each node. None: what suits the batch system.
    launcher_options : tuple of str
        Further options of it.
    prologue : tuple of str
        Shell lines that run once, before the launcher.
    setup : tuple of str
        Shell lines that run on each node before its agent: modules, environments.
    env : tuple of (str, str)
        Environment variables of agents and tasks, proxies among them. Values are taken literally:
        a ``$HOME`` in them stays as it is. Write ``export X=$HOME/x`` in `setup` instead.
    python : str, optional
        The interpreter on the nodes. None: the one that runs now.
    interface, scheduler_interface : str, optional
        Network interfaces of the nodes and of the scheduler's machine.
    scratch : str, optional
        Fast local folder on the nodes; shell variables in it are expanded there. A node where it
        cannot be made ends, so name only what is sure to be there, such as ``${TMPDIR:-/tmp}``.
        Files with ``stage=True`` are copied there.
    hints : NodeHints
        What a node cannot find out about itself.
    limits : Limits
        What the site allows.
    psij_executor : str, optional
        For ``batch="psij"``: which of PSI/J's executors.
    """

    name: str
    batch: BatchName = "local"
    min_nodes: int = 1
    max_nodes: int = 1
    max_allocations: int = 1
    walltime_s: float = 3600.0
    idle_s: float = 120.0
    shape: NodeShape | None = None
    queue: str | None = None
    account: str | None = None
    qos: str | None = None
    exclusive: bool = True
    memory_option: MemoryOption = "none"
    is_memory_option_said: bool = False
    gpu_option: GpuOption = "gpus-per-node"
    gpu_type: str | None = None
    select: str | None = None
    place: str | None = None
    directives: tuple[str, ...] = ()
    skip_directives: tuple[str, ...] = ()
    launcher: LauncherName | None = None
    launcher_options: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    python: str | None = None
    interface: str | None = None
    scheduler_interface: str | None = None
    scratch: str | None = None
    hints: NodeHints = field(default_factory=NodeHints)
    limits: Limits = field(default_factory=Limits)
    psij_executor: str | None = None

    @classmethod
    def declare(cls, name: str, **stated: Any) -> Pool:
        """Describe a pool as a user or a site profile writes it.

        Parameters
        ----------
        name : str
            Its name.
        **stated
            The fields of `Pool`, and: ``nodes`` (a number, or [least, most]), ``walltime`` and
            ``idle`` ("2h"), ``cores``, ``gpus``, ``memory`` (of a node), ``blocked_cores``
            ("0,8,16"), ``threads_per_core``, ``gpu_ids``, ``gpu_vendor``, ``gpu_cores`` (a list of
            core lists), ``rank_launcher``, ``max_queued``, ``max_running``, ``bins`` (a list of
            ``{nodes = [least, most], walltime = "2h"}``), ``modules``, ``conda``, ``venv`` (become
            lines of ``setup``, in this order, before its own). ``batch`` may be "psij:EXECUTOR". A
            text may be None: what was said before is taken back.

        Returns
        -------
        Pool
            The pool.

        Raises
        ------
        InvalidRequest
            Facts are unknown, contradict each other or make no sense; all of them are named.

        Examples
        --------
        >>> pool = Pool.declare("gpu", batch="slurm", queue="gpu", nodes=2, walltime="2h", gpus=4,
        ...     cores=64)
        >>> pool.max_nodes, pool.walltime_s, str(pool.shape)
        (2, 7200.0, '64 cores, 4 GPUs, memory not stated')
        """
        return cls(name=facts.pool_name(name)).updated(**stated)

    def updated(self, **stated: Any) -> Pool:
        """Return the same pool with other facts; see `Pool.declare`.

        Raises
        ------
        InvalidRequest
            Facts are unknown, contradict each other or make no sense; all of them are named.
        """
        parsed, problems = dict[str, Any](), list[str]()
        for key, value in stated.items():
            try:
                if key not in _READERS:
                    advice = facts.near(key, _READERS)
                    raise InvalidRequest(f"{key!r} is not a fact of a pool.", advice)
                parsed |= _READERS[key](key, value)
            except ExadaskError as error:
                problems.append(str(error))
        changed = self if problems else _assembled(self, parsed)
        problems = problems or _contradictions(changed)
        if problems:
            raise InvalidRequest(f"pool {self.name!r} cannot be used:", " ".join(problems))
        return changed

    @property
    def memory_asked_bytes(self) -> int | None:
        """Memory of a node that is asked for by its amount [bytes]; None: it is not mentioned."""
        if self.memory_option != "shape" or self.shape is None or not self.shape.is_memory_stated:
            return None
        return self.shape.memory_bytes

    @property
    def is_batch(self) -> bool:
        """Whether a batch system is asked; otherwise agents are processes on this machine."""
        return self.batch != "local"


def _assembled(pool: Pool, parsed: dict[str, Any]) -> Pool:
    """Put what was written into the places where it belongs."""
    places = ("", "shape", "hints", "limits", "environment")
    parts: dict[str, dict[str, Any]] = {place: {} for place in places}
    for key, value in parsed.items():
        place, _, name = key.rpartition(".")
        parts[place][name] = value
    changes, limits, environment = parts[""], parts["limits"], parts["environment"]
    if parts["shape"]:
        changes["shape"] = _shape(pool.shape, parts["shape"])
    if "bins" in limits:
        limits["bins"] = tuple(
            NodeBin(least=least, most=most, walltime_s=longest_s)
            for least, most, longest_s in limits["bins"]
        )
    first = [line for name in _ENVIRONMENTS for line in environment.get(name, ())]
    changes["setup"] = (*first, *changes.get("setup", pool.setup))
    changes["is_memory_option_said"] = "memory_option" in changes or pool.is_memory_option_said
    changes["hints"] = replace(pool.hints, **parts["hints"])
    changes["limits"] = replace(pool.limits, **limits)
    return _with_usual_memory_option(replace(pool, **changes))


def _with_usual_memory_option(pool: Pool) -> Pool:
    """Ask for the memory that was stated of a part of a node, unless the user decides."""
    if pool.is_memory_option_said:
        return pool
    is_part = not pool.exclusive and pool.shape is not None and pool.shape.is_memory_stated
    return replace(pool, memory_option="shape" if is_part else "none")


def _shape(before: NodeShape | None, stated: dict[str, Any]) -> NodeShape:
    known: dict[str, Any] = {"cores": 1, "memory": None}
    if before is not None:
        known |= {"cores": before.cores, "gpus": before.gpus}
    if before is not None and before.is_memory_stated:
        known["memory"] = before.memory_bytes
    return NodeShape.declare(**known | stated)


def _contradictions(pool: Pool) -> list[str]:
    """Say what cannot be true together."""
    found = []
    if pool.batch == "psij" and pool.psij_executor is None:
        found.append('batch="psij" needs an executor of PSI/J: write batch="psij:slurm".')
    if pool.batch in ("sge", "htcondor") and pool.max_nodes > 1:
        found.append(
            f"nodes={pool.max_nodes}: {pool.batch} gives one node per job here; "
            "use max_allocations= for more."
        )
    if pool.gpu_type and pool.batch not in ("slurm", "local"):
        found.append(
            f"gpu_type={pool.gpu_type!r}: only Slurm is asked for GPUs by their type; "
            "for others use select= or directives=."
        )
    if pool.memory_option == "shape" and pool.shape and not pool.shape.is_memory_stated:
        found.append(
            "memory_option='shape' asks for the memory of a node, which is not stated: "
            "say memory=, or memory_option='none'."
        )
    if pool.hints.gpu_cores and pool.shape and len(pool.hints.gpu_cores) != pool.shape.gpus:
        found.append(
            f"gpu_cores names the cores of {len(pool.hints.gpu_cores)} GPUs, "
            f"but a node has {pool.shape.gpus}."
        )
    return found + _against_the_rules(pool)


def _against_the_rules(pool: Pool) -> list[str]:
    """Say why no size of the pool is allowed for its walltime; one that is allowed is enough."""
    rules = pool.limits.bins
    sizes = f"{pool.min_nodes} to {pool.max_nodes} nodes"
    if pool.min_nodes == pool.max_nodes:
        sizes = f"{pool.max_nodes} node{'s' if pool.max_nodes > 1 else ''}"
    met = [one for one in rules if one.least <= pool.max_nodes and pool.min_nodes <= one.most]
    if rules and not met:
        known = ", ".join(f"{one.least} to {one.most}" for one in rules)
        return [f"the site has no allocations of {sizes} here, but of {known}: change nodes=."]
    longest_s = max((one.walltime_s for one in met), default=pool.walltime_s)
    if longest_s < pool.walltime_s:
        return [
            f"walltime={pool.walltime_s:g} s is more than the site allows for {sizes} "
            f"({longest_s:g} s)."
        ]
    return []


_ENVIRONMENTS = ("modules", "conda", "venv")
"""Facts that become lines of the setup, in the order of these lines."""

_READERS: dict[str, facts.Reader] = {
    "batch": facts.batch(BATCH_SYSTEMS),
    "nodes": facts.nodes,
    "max_allocations": facts.count("max_allocations", least=1),
    "walltime": facts.seconds,
    "idle": facts.seconds,
    "cores": facts.count("shape.cores", least=1, end=END_OF_IDS),
    "gpus": facts.count("shape.gpus", least=0, end=END_OF_IDS),
    "memory": facts.memory("shape.memory"),
    "queue": facts.text,
    "account": facts.text,
    "qos": facts.text,
    "exclusive": facts.flag,
    "memory_option": facts.choice(get_args(MemoryOption)),
    "gpu_option": facts.choice(get_args(GpuOption)),
    "gpu_type": facts.word,
    "select": facts.text,
    "place": facts.text,
    "directives": facts.texts,
    "skip_directives": facts.texts,
    "launcher": facts.choice(LAUNCHERS),
    "launcher_options": facts.texts,
    "prologue": facts.texts,
    "setup": facts.texts,
    "modules": facts.environment(lambda name: f"module load {name}"),
    "venv": facts.environment(lambda path: f"source {path}/bin/activate"),
    "conda": facts.environment(
        lambda name: f'eval "$(conda shell.bash hook)" && conda activate {name}'
    ),
    "env": facts.variables,
    "python": facts.text,
    "interface": facts.text,
    "scheduler_interface": facts.text,
    "scratch": facts.text,
    "blocked_cores": facts.core_ids("hints.blocked_cores"),
    "threads_per_core": facts.count("hints.threads_per_core", least=1),
    "gpu_ids": facts.gpu_ids("hints.gpu_ids"),
    "gpu_vendor": facts.choice(get_args(GpuVendor), "hints.gpu_vendor"),
    "gpu_cores": facts.gpu_cores("hints.gpu_cores"),
    "rank_launcher": facts.rank_launcher("hints.rank_launcher"),
    "max_queued": facts.count("limits.queued", least=1),
    "max_running": facts.count("limits.running", least=1),
    "bins": facts.bins("limits.bins"),
}

FACTS = tuple(_READERS)
"""The names of all facts that `Pool.declare` knows."""
