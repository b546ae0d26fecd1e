"""A pool: a kind of allocation, and everything the batch system must be told to get one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from exadask.cpulist import parse_cpulist
from exadask.errors import ExadaskError, InvalidQuantity, InvalidRequest
from exadask.resources import GpuVendor, NodeShape
from exadask.units import parse_bytes, parse_seconds

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
    """

    blocked_cores: tuple[int, ...] = ()
    threads_per_core: int | None = None
    gpu_ids: tuple[str, ...] = ()
    gpu_vendor: GpuVendor | None = None
    gpu_cores: tuple[tuple[int, ...], ...] = ()


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
    gpu_option : {"gpus-per-node", "gres", "gpus", "select", "none"}
        How GPUs are asked for.
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
        Environment variables of agents and tasks, proxies among them.
    python : str, optional
        The interpreter on the nodes. None: the one that runs now.
    interface, scheduler_interface : str, optional
        Network interfaces of the nodes and of the scheduler's machine.
    scratch : str, optional
        Fast local folder on the nodes; shell variables in it are expanded there.
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
    gpu_option: GpuOption = "gpus-per-node"
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
    def declare(cls, name: str, **facts: Any) -> Pool:
        """Describe a pool as a user or a site profile writes it.

        Parameters
        ----------
        name : str
            Its name.
        **facts
            The fields of `Pool`, and: ``nodes`` (a number, or [least, most]), ``walltime`` and
            ``idle`` ("2h"), ``cores``, ``gpus``, ``memory`` (of a node), ``blocked_cores``
            ("0,8,16"), ``threads_per_core``, ``gpu_ids``, ``gpu_vendor``, ``gpu_cores`` (a list of
            core lists), ``max_queued``, ``max_running``, ``bins`` (a list of ``{nodes = [least,
            most], walltime = "2h"}``), ``modules``, ``venv`` or ``conda`` (become lines of
            ``setup``). ``batch`` may be "psij:EXECUTOR".

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
        (2, 7200.0, '64 cores, 4 GPUs, 1 TiB of memory')
        """
        return cls(name=_name(name)).updated(**facts)

    def updated(self, **facts: Any) -> Pool:
        """Return the same pool with other facts; see `Pool.declare`.

        Raises
        ------
        InvalidRequest
            Facts are unknown, contradict each other or make no sense; all of them are named.
        """
        parsed, problems = dict[str, Any](), list[str]()
        for key, value in facts.items():
            try:
                if key not in _READERS:
                    raise InvalidRequest(f"{key!r} is not a fact of a pool.", _near(key, _READERS))
                parsed |= _READERS[key](key, value)
            except ExadaskError as error:
                problems.append(str(error))
        changed = self if problems else _assembled(self, parsed)
        problems = problems or _contradictions(changed)
        if problems:
            raise InvalidRequest(f"pool {self.name!r} cannot be used:", " ".join(problems))
        return changed

    @property
    def is_batch(self) -> bool:
        """Whether a batch system is asked; otherwise agents are processes on this machine."""
        return self.batch != "local"


def _assembled(pool: Pool, parsed: dict[str, Any]) -> Pool:
    """Put what was written into the places where it belongs."""
    parts: dict[str, dict[str, Any]] = {"shape": {}, "hints": {}, "limits": {}, "": {}}
    setup = list(parsed.pop("setup", pool.setup))
    setup = [*parsed.pop("environment", ()), *setup]
    for key, value in parsed.items():
        place, _, name = key.rpartition(".")
        parts[place][name] = value
    changes = parts[""] | {"setup": tuple(setup)}
    if parts["shape"]:
        changes["shape"] = _shape(pool.shape, parts["shape"])
        if "memory" in parts["shape"] and not changes.get("exclusive", pool.exclusive):
            changes.setdefault("memory_option", "shape")
    changes["hints"] = replace(pool.hints, **parts["hints"])
    changes["limits"] = replace(pool.limits, **parts["limits"])
    if "max_nodes" in changes and "min_nodes" not in changes:
        changes["min_nodes"] = min(pool.min_nodes, changes["max_nodes"])
    return replace(pool, **changes)


def _shape(before: NodeShape | None, stated: dict[str, Any]) -> NodeShape:
    facts: dict[str, Any] = {"cores": 1}
    if before is not None:
        facts = {"cores": before.cores, "gpus": before.gpus, "memory": before.memory_bytes}
    return NodeShape.declare(**facts | stated)


def _contradictions(pool: Pool) -> list[str]:
    """Say what cannot be true together."""
    found = []
    if pool.min_nodes > pool.max_nodes:
        found.append(f"nodes: at least {pool.min_nodes} and at most {pool.max_nodes}.")
    if pool.batch == "psij" and pool.psij_executor is None:
        found.append('batch="psij" needs an executor of PSI/J: write batch="psij:slurm".')
    if pool.batch in ("sge", "htcondor") and pool.max_nodes > 1:
        found.append(
            f"nodes={pool.max_nodes}: {pool.batch} gives one node per job here; "
            "use max_allocations= for more."
        )
    if pool.hints.gpu_cores and pool.shape and len(pool.hints.gpu_cores) != pool.shape.gpus:
        found.append(
            f"gpu_cores names the cores of {len(pool.hints.gpu_cores)} GPUs, "
            f"but a node has {pool.shape.gpus}."
        )
    sizes = range(pool.min_nodes, pool.max_nodes + 1)
    allowed = [pool.limits.longest_s(nodes) for nodes in (sizes[0], sizes[-1])] if sizes else []
    if allowed and all(one is not None and one < pool.walltime_s for one in allowed):
        longest = max(one for one in allowed if one is not None)
        found.append(
            f"walltime={pool.walltime_s:g} s is more than the site allows for "
            f"{pool.min_nodes} to {pool.max_nodes} nodes ({longest:g} s)."
            if longest
            else f"the site has no allocations of {pool.min_nodes} to {pool.max_nodes} nodes here."
        )
    return found


# -- reading what a user writes: each reader gives places in a Pool and what belongs there ------


def _name(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if not text or not all(one.isalnum() or one in "-_." for one in text) or text[0] in "-.":
        raise InvalidRequest(
            f"a pool cannot be called {value!r}.", "Use letters, digits, '-', '_' and '.'."
        )
    return text


def _near(key: str, known: Mapping[str, object] | Sequence[str]) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}."


def _text(key: str, value: object) -> dict[str, Any]:
    if value is not None and (not isinstance(value, str) or not value.strip() or "\n" in value):
        raise InvalidQuantity(key, value, "a text of one line")
    return {key: value}


def _flag(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, bool):
        raise InvalidQuantity(key, value, "true or false")
    return {key: value}


def _seconds(key: str, value: Any) -> dict[str, Any]:
    return {f"{key}_s": parse_seconds(value, name=key)}


def _whole(value: object, key: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise InvalidQuantity(key, value, f"a whole number, at least {least}")
    return value


def _count(place: str, *, least: int) -> Callable[[str, object], dict[str, Any]]:
    return lambda key, value: {place: _whole(value, key, least=least)}


def _range(value: object, key: str) -> tuple[int, int]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        least, most = (_whole(one, key, least=1) for one in value)
        return least, most
    return 1, _whole(value, key, least=1)


def _nodes(key: str, value: object) -> dict[str, Any]:
    least, most = _range(value, key)
    if not isinstance(value, (list, tuple)):
        least = most
    return {"min_nodes": least, "max_nodes": most}


def _choice(choices: Sequence[str]) -> Callable[[str, object], dict[str, Any]]:
    def read(key: str, value: object) -> dict[str, Any]:
        if value not in choices:
            raise InvalidRequest(f"{key}={value!r} is not known.", _near(str(value), choices))
        return {key: value}

    return read


def _batch(key: str, value: object) -> dict[str, Any]:
    name, _, executor = str(value).partition(":")
    found = _choice(BATCH_SYSTEMS)(key, name)
    return found | {"psij_executor": executor} if executor else found


def _lines(value: object, key: str) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, (list, tuple)) or not all(isinstance(one, str) for one in lines):
        raise InvalidQuantity(key, value, "a text, or a list of texts")
    return tuple(line for one in lines for line in one.splitlines() if line.strip())


def _texts(key: str, value: object) -> dict[str, Any]:
    return {key: _lines(value, key)}


def _environment(render: Callable[[str], str]) -> Callable[[str, object], dict[str, Any]]:
    return lambda key, value: {"environment": tuple(render(one) for one in _lines(value, key))}


def _env(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and name.isidentifier() and isinstance(text, str)
        for name, text in value.items()
    ):
        raise InvalidQuantity(key, value, "a table of names and texts")
    return {key: tuple(sorted(value.items()))}


def _core_list(value: object, key: str) -> tuple[int, ...]:
    try:
        return parse_cpulist(value) if isinstance(value, str) else tuple(int(one) for one in value)  # type: ignore[attr-defined]  # a wrong type is reported below
    except (TypeError, ValueError, OverflowError) as error:  # inf is none, for example
        raise InvalidQuantity(key, value, 'core ids such as "0,8-15"') from error


def _gpu_cores(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidQuantity(key, value, 'a list with the cores of each GPU, such as ["0-7"]')
    return {"hints.gpu_cores": tuple(_core_list(one, key) for one in value)}


def _bins(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidQuantity(key, value, 'a list of {nodes = [1, 8], walltime = "2h"}')
    found = []
    for one in value:
        if not isinstance(one, Mapping) or not {"nodes", "walltime"} <= one.keys():
            raise InvalidQuantity(key, one, '{nodes = [1, 8], walltime = "2h"}')
        least, most = _range(one["nodes"], f"{key}.nodes")
        walltime_s = parse_seconds(one["walltime"], name=f"{key}.walltime")
        found.append(NodeBin(least=least, most=most, walltime_s=walltime_s))
    return {"limits.bins": tuple(found)}


_READERS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "batch": _batch,
    "nodes": _nodes,
    "max_allocations": _count("max_allocations", least=1),
    "walltime": _seconds,
    "idle": _seconds,
    "cores": _count("shape.cores", least=1),
    "gpus": _count("shape.gpus", least=0),
    "memory": lambda key, value: {"shape.memory": parse_bytes(value, name=key)},
    "queue": _text,
    "account": _text,
    "qos": _text,
    "exclusive": _flag,
    "memory_option": _choice(get_args(MemoryOption)),
    "gpu_option": _choice(get_args(GpuOption)),
    "select": _text,
    "place": _text,
    "directives": _texts,
    "skip_directives": _texts,
    "launcher": _choice(LAUNCHERS),
    "launcher_options": _texts,
    "prologue": _texts,
    "setup": _texts,
    "modules": _environment(lambda name: f"module load {name}"),
    "venv": _environment(lambda path: f"source {path}/bin/activate"),
    "conda": _environment(lambda name: f'eval "$(conda shell.bash hook)" && conda activate {name}'),
    "env": _env,
    "python": _text,
    "interface": _text,
    "scheduler_interface": _text,
    "scratch": _text,
    "blocked_cores": lambda key, value: {"hints.blocked_cores": _core_list(value, key)},
    "threads_per_core": _count("hints.threads_per_core", least=1),
    "gpu_ids": lambda key, value: {"hints.gpu_ids": _lines(value, key)},
    "gpu_vendor": lambda key, value: {
        "hints.gpu_vendor": _choice(get_args(GpuVendor))(key, value)[key]
    },
    "gpu_cores": _gpu_cores,
    "max_queued": _count("limits.queued", least=1),
    "max_running": _count("limits.running", least=1),
    "bins": _bins,
}

FACTS = tuple(_READERS)
"""The names of all facts that `Pool.declare` knows."""
