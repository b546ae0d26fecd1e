"""What `exadask doctor` makes of facts: each check is a function from facts to findings.

The facts are gathered by `exadask.runtime.survey`, on this machine, and by the probe on a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from exadask.pool import Pool
from exadask.runtime.survey import Folder, MachineFacts, PoolFacts
from exadask.units import render_bytes, render_seconds

_OLDEST_PYTHON = (3, 10)
_OPTIONAL = ("numpy",)
_DESCRIPTORS_PER_NODE = 2
_DESCRIPTORS_FOR_RESULTS = 512
_LITTLE_SPACE = 2**30
_OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_IN_MEMORY = ("tmpfs", "ramfs")
_LOOPBACK = "127."
_SLOW_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Parameters
    ----------
    check : str
        What was looked at, in a word or two.
    ok : bool, optional
        Whether it is as it must be; None for a warning.
    found : str
        What there is; lines after the first are quoted as they are.
    advice : str
        What to do about it, in one sentence; empty if nothing.
    """

    check: str
    ok: bool | None
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where a scheduler on this machine would listen.

    Parameters
    ----------
    host : str
        Its address.
    problem : str
        Why there is none.
    """

    host: str = ""
    problem: str = ""


def check_machine(machine: MachineFacts, *, is_node: bool) -> list[Finding]:
    """Check what every use needs.

    Parameters
    ----------
    machine : MachineFacts
        This machine.
    is_node : bool
        Whether tasks will run on it.

    Returns
    -------
    list of Finding
        Interpreter, packages, temporary files, and what tasks would get here.
    """
    findings = [
        check_python(machine),
        check_packages(machine),
        check_temporary(machine.temporary),
    ]
    if not is_node:
        return findings
    return [
        *findings,
        check_shared_memory(machine),
        check_cores(machine),
        Finding(check="memory", ok=True, found=_with_origin(machine, "memory")),
        Finding(check="GPUs", ok=True, found=_with_origin(machine, "gpus")),
    ]


def check_python(machine: MachineFacts) -> Finding:
    """Check the version of the interpreter."""
    is_new = _version(machine.python) >= _OLDEST_PYTHON
    advice = "" if is_new else "Use Python 3.10 or later: python= of the pool, or a new venv."
    return Finding(check="python", ok=is_new, found=machine.python, advice=advice)


def check_packages(machine: MachineFacts) -> Finding:
    """Check that everything is installed."""
    missing = [
        name
        for name, version in machine.packages.items()
        if version is None and name not in _OPTIONAL
    ]
    there = ", ".join(f"{name} {version}" for name, version in machine.packages.items() if version)
    if missing:
        advice = f"Install it with this interpreter: pip install {' '.join(missing)}"
        found = f"{', '.join(missing)} not installed; there is {there or 'nothing'}"
        return Finding(check="packages", ok=False, found=found, advice=advice)
    return Finding(check="packages", ok=True, found=there)


def check_temporary(folder: Folder) -> Finding:
    """Check where temporary files go."""
    if folder.problem:
        found, advice = f"{folder.path}: {folder.problem}", "Set TMPDIR to a folder of yours."
        return Finding(check="temporary", ok=False, found=found, advice=advice)
    return _space("temporary", folder, "Set TMPDIR to a folder with more space.")


def check_shared_memory(machine: MachineFacts) -> Finding:
    """Check how large results will travel between processes."""
    if machine.has_memfd:
        return Finding(check="memfd", ok=True, found="large results stay in memory")
    found = "this kernel has no memfd_create: large results go through temporary files"
    advice = "It works, but slowly; a TMPDIR in memory helps."
    return Finding(check="memfd", ok=None, found=found, advice=advice)


def check_cores(machine: MachineFacts) -> Finding:
    """Check that tasks can be bound to cores."""
    found = f"{_with_origin(machine, 'cores')}; {machine.n_machine} in the machine"
    if machine.shape.is_real:
        return Finding(check="cores", ok=True, found=found)
    advice = "Tasks are counted, but not bound to their cores; threads may disturb each other."
    return Finding(check="cores", ok=None, found=found, advice=advice)


def check_open_files(machine: MachineFacts, nodes: int) -> Finding:
    """Check that a scheduler here can hold the connections of so many nodes."""
    needed = _DESCRIPTORS_PER_NODE * nodes + _DESCRIPTORS_FOR_RESULTS
    found = f"{machine.open_files} may be open"
    if nodes:
        found += f"; {counted(nodes)} and large results need about {needed}"
    if machine.open_files >= needed:
        return Finding(check="open files", ok=True, found=found)
    advice = "Raise the hard limit (ulimit -Hn; ask the site), or lower nodes=, max_allocations=."
    return Finding(check="open files", ok=False, found=found, advice=advice)


def check_run_folder(folder: Folder, pools: Sequence[Pool]) -> Finding:
    """Check the folder of runs, which all nodes must see."""
    advice = "Say run_folder= (or EXADASK_RUN_FOLDER): one you can write and all nodes see."
    if folder.problem:
        found = f"{folder.path}: {folder.problem}"
        return Finding(check="run folder", ok=False, found=found, advice=advice)
    if any(map(is_elsewhere, pools)) and is_of_one_machine(folder.path, folder.file_system):
        found = f"{folder.path}: other nodes hardly see it"
        return Finding(check="run folder", ok=None, found=found, advice=advice)
    return _space("run folder", folder, advice)


def check_address(door: Door, machine: MachineFacts, pools: Sequence[Pool]) -> Finding:
    """Check where the scheduler would listen."""
    advice = "Say scheduler_interface=, one that the nodes reach."
    if door.problem:
        return Finding(check="address", ok=False, found=door.problem, advice=advice)
    name = next((one for one, at in machine.interfaces.items() if at == door.host), "no interface")
    found = f"the scheduler would listen on {door.host} ({name})"
    if door.host.startswith(_LOOPBACK) and any(is_elsewhere(pool) for pool in pools):
        return Finding(
            check="address", ok=None, found=f"{found}: no other node sees that", advice=advice
        )
    return Finding(check="address", ok=True, found=found)


def check_pool(pool: Pool, machine: MachineFacts, facts: PoolFacts) -> list[Finding]:
    """Check what a pool needs, as far as this machine knows.

    Parameters
    ----------
    pool : Pool
        The pool.
    machine : MachineFacts
        This machine.
    facts : PoolFacts
        What it knows about the pool.

    Returns
    -------
    list of Finding
        Batch system, launcher, interpreter, network, and the site's limits.
    """
    return [
        check_batch(pool, facts),
        check_launcher(facts),
        check_interpreter(pool, facts),
        *check_interface(pool, machine),
        *check_limits(pool),
        *check_stated_shape(pool, facts),
    ]


def check_batch(pool: Pool, facts: PoolFacts) -> Finding:
    """Check that the batch system is there and answers."""
    name = f"psij:{pool.psij_executor}" if pool.batch == "psij" else pool.batch
    missing = [program for program, path in facts.programs.items() if path is None]
    if missing:
        found = f"{name}: no {', '.join(missing)} on PATH"
        advice = "Log in where they are, load their module, or choose another --site."
        return Finding(check="batch", ok=False, found=found, advice=advice)
    if facts.problem:
        advice = "Try the command by hand; is the batch system up, and queue= right?"
        if pool.batch == "psij":
            advice = "Install it (pip install 'exadask[psij]'), or correct batch=."
        return Finding(check="batch", ok=False, found=f"{name}: {facts.problem}", advice=advice)
    if facts.answered_s > _SLOW_ANSWER_S:
        found = f"{name} answers, but took {render_seconds(facts.answered_s)}"
        advice = "It is busy; raise poll_jobs_s, to ask it less often."
        return Finding(check="batch", ok=None, found=found, advice=advice)
    answers = f" answers in {render_seconds(facts.answered_s)}" if facts.answered_s else ""
    return Finding(check="batch", ok=True, found=f"{name}{answers}")


def check_launcher(facts: PoolFacts) -> Finding:
    """Check what starts agents on the nodes."""
    if facts.launcher_problem:
        advice = "Set launcher= to what the site has, or nodes=1."
        found = facts.launcher_problem
        return Finding(check="launcher", ok=False, found=found, advice=advice)
    if facts.launcher == "none":
        return Finding(check="launcher", ok=True, found="none needed: the job is the agent")
    if facts.launcher_path is None:
        found = f"{facts.launcher} is not on PATH of this machine"
        advice = "On nodes it may be; --submit looks there. Else load its module in prologue=."
        return Finding(check="launcher", ok=None, found=found, advice=advice)
    return Finding(check="launcher", ok=True, found=f"{facts.launcher}: {facts.launcher_path}")


def check_interpreter(pool: Pool, facts: PoolFacts) -> Finding:
    """Check the interpreter of the nodes."""
    if facts.python_problem and "/" not in facts.python:
        found = f"{facts.python} is not on PATH of this machine"
        advice = "The pool's setup must put it there; --submit tries it on a node."
        return Finding(check="python", ok=None, found=found, advice=advice)
    if facts.python_problem:
        found = f"{facts.python} {facts.python_problem}"
        advice = "Correct python= (or venv=): the path of an interpreter with exadask."
        return Finding(check="python", ok=False, found=found, advice=advice)
    if is_elsewhere(pool) and is_of_one_machine(facts.python):
        found = f"{facts.python}: other nodes hardly see it"
        advice = "Install it where all nodes see it, and say python=, or venv=."
        return Finding(check="python", ok=None, found=found, advice=advice)
    return Finding(check="python", ok=True, found=facts.python)


def check_interface(pool: Pool, machine: MachineFacts) -> list[Finding]:
    """Check the network interface of the nodes; a login node need not have it."""
    name = pool.interface
    if name is None:
        return []
    if name in machine.interfaces:
        found = f"{name} ({machine.interfaces[name]} here)"
        return [Finding(check="interface", ok=True, found=found)]
    found = f"no {name!r} here; this machine has {listed(machine.interfaces)}"
    if is_elsewhere(pool):
        advice = "Nodes may have it (--submit looks); if need be, say scheduler_interface= too."
        return [Finding(check="interface", ok=None, found=found, advice=advice)]
    advice = "Correct interface=, or leave it out."
    return [Finding(check="interface", ok=False, found=found, advice=advice)]


def check_limits(pool: Pool) -> list[Finding]:
    """Check walltime, nodes and allocations against the rules of the site."""
    sizes, found = f"{pool.min_nodes} to {pool.max_nodes} nodes", list[Finding]()
    if pool.min_nodes == pool.max_nodes:
        sizes = counted(pool.max_nodes)
    asked = f"{sizes}, {render_seconds(pool.walltime_s)}"
    for nodes in sorted({pool.min_nodes, pool.max_nodes}):
        longest_s = pool.limits.longest_s(nodes)
        if longest_s is not None and longest_s < pool.walltime_s:
            rule = f"at most {render_seconds(longest_s)}" if longest_s else "not at all"
            text = f"{asked}: the site allows {counted(nodes)} {rule}"
            advice = "Change nodes= or walltime=, or choose another pool."
            found.append(Finding(check="walltime", ok=None, found=text, advice=advice))
    most = pool.limits.queued
    if most is not None and pool.max_allocations > most:
        text = f"up to {pool.max_allocations}, but the site takes {most} jobs of a user"
        advice = f"Lower max_allocations= to {most}."
        found.append(Finding(check="allocations", ok=None, found=text, advice=advice))
    return found or [Finding(check="walltime", ok=True, found=asked)]


def check_stated_shape(pool: Pool, facts: PoolFacts) -> list[Finding]:
    """Compare what the profile says of a node with what the batch system says."""
    stated, known = pool.shape, facts.shape
    if stated is None:
        found = str(known) if known else "not stated, and not known to the batch system"
        advice = "" if known else "Is queue= right? Then say cores=, gpus=, memory= of a node."
        return [Finding(check="node", ok=True if known else None, found=found, advice=advice)]
    if known is None or (stated.cores <= known.cores and stated.gpus <= known.gpus):
        return [Finding(check="node", ok=True, found=str(stated))]
    where = "the smallest of the queue" if pool.is_batch else "this machine"
    found = f"{stated}, but {where} has {known}"
    advice = "Correct cores= or gpus=, or choose larger nodes by directives= or queue=."
    return [Finding(check="node", ok=None, found=found, advice=advice)]


def is_of_one_machine(path: str, file_system: str = "") -> bool:
    """Whether a path surely lies where other machines do not see it.

    Examples
    --------
    >>> is_of_one_machine("/tmp/me/venv"), is_of_one_machine("/tmpfs/shared")
    (True, False)
    """
    places = [PurePath(one) for one in _OF_ONE_MACHINE]
    parents = [PurePath(path), *PurePath(path).parents]
    return file_system in _IN_MEMORY or any(one in parents for one in places)


def has_failed(findings: Iterable[Finding]) -> bool:
    """Whether something is not as it must be; warnings do not count."""
    return any(one.ok is False for one in findings)


def listed(interfaces: Iterable[str]) -> str:
    """Name network interfaces."""
    return ", ".join(interfaces) or "none"


def counted(nodes: int) -> str:
    """Write a number of nodes."""
    return f"{nodes} node{'' if nodes == 1 else 's'}"


def is_elsewhere(pool: Pool) -> bool:
    """Whether the nodes of a pool are other machines."""
    return pool.is_batch and pool.psij_executor != "local"


def _space(check: str, folder: Folder, advice: str) -> Finding:
    kind = f", {folder.file_system}" if folder.file_system else ""
    if folder.free_bytes is None:
        return Finding(check=check, ok=True, found=f"{folder.path}{kind}")
    found = f"{folder.path}{kind}, {render_bytes(folder.free_bytes)} free"
    is_much = folder.free_bytes >= _LITTLE_SPACE
    return Finding(check=check, ok=is_much or None, found=found, advice="" if is_much else advice)


def _with_origin(machine: MachineFacts, what: str) -> str:
    """Say what tasks get of something, and how that was found."""
    shape = machine.shape
    amounts = {
        "cores": f"{shape.cores}",
        "memory": render_bytes(shape.memory_bytes),
        "gpus": f"{shape.gpus} ({shape.gpu_vendor})" if shape.gpus else "none",
    }
    origin = shape.origin.get(what, "")
    return f"{amounts[what]} [{origin}]" if origin and origin != "none found" else amounts[what]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
