"""What the batch system gave of a node, which may be less than the machine has.

Affinity and cgroups are the truth where the batch system confines its jobs; many do not, and then
only its variables tell. `granted_shape` brings both together with the hints of the pool.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from exadask.cpulist import parse_cpulist
from exadask.pool import NodeHints
from exadask.resources import GpuVendor, NodeShape

_VISIBLE = {
    "CUDA_VISIBLE_DEVICES": "nvidia",
    "ROCR_VISIBLE_DEVICES": "amd",
    "ZE_AFFINITY_MASK": "intel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a batch system gave to a job on one node; None where it does not say.

    Parameters
    ----------
    cores : int, optional
        Cores, or hardware threads, as the batch system counts [cores].
    gpus : int, optional
        GPUs [GPUs].
    memory_bytes : int, optional
        Memory [bytes].
    origin : str
        How that is known.
    """

    cores: int | None = None
    gpus: int | None = None
    memory_bytes: int | None = None
    origin: str = "not stated by the batch system"

    def over(self, other: Grant) -> Grant:
        """Fill in what is not known here."""
        origin = self.origin if self.cores is not None else other.origin
        return Grant(
            cores=self.cores if self.cores is not None else other.cores,
            gpus=self.gpus if self.gpus is not None else other.gpus,
            memory_bytes=other.memory_bytes if self.memory_bytes is None else self.memory_bytes,
            origin=origin,
        )


def read_grant(
    environ: Mapping[str, str],
    host: str | None = None,
    flux_r: str = "",
    *,
    is_whole_node: bool = False,
) -> Grant:
    """Read the variables of whatever batch system runs this job.

    Parameters
    ----------
    environ : mapping
        Environment variables of the agent.
    host : str, optional
        Name of this machine, to find it in lists of hosts.
    flux_r : str
        For Flux: the resource set of the job (RFC 20), as ``flux job info ID R`` prints it.
    is_whole_node : bool
        Whether nobody else can be on the node: PBS then still counts only what a chunk asked for.

    Returns
    -------
    Grant
        What is known.
    """
    if flux_r:
        return _flux(flux_r, int(environ.get("FLUX_TASK_RANK", "0")))
    if "SLURM_JOB_ID" in environ:
        return _slurm(environ)
    if "PBS_JOBID" in environ:
        cores = None if is_whole_node else _number(environ.get("NCPUS"))
        return Grant(cores=cores, origin="NCPUS of PBS")
    if "LSB_JOBID" in environ:
        return Grant(cores=_lsf_cores(environ, host), origin="LSB_MCPU_HOSTS")
    if "SGE_ROOT" in environ and "NSLOTS" in environ:
        return Grant(cores=_number(environ.get("NSLOTS")), origin="NSLOTS of Grid Engine")
    if "OAR_NODEFILE" in environ:
        return Grant(cores=_lines_of(environ["OAR_NODEFILE"], host), origin="OAR_NODEFILE")
    return Grant()


def granted_shape(found: NodeShape, grant: Grant, hints: NodeHints, root: Path) -> NodeShape:
    """Bring together what a machine has, what the batch system gave, and what the site knows.

    Parameters
    ----------
    found : NodeShape
        What was detected: the cores of the affinity, the GPUs that a driver shows.
    grant : Grant
        What the batch system gave.
    hints : NodeHints
        What the pool says of its nodes.
    root : Path
        Where the file system begins.

    Returns
    -------
    NodeShape
        Bound to real cores where it is known which ones are ours; otherwise only counted.
    """
    cores = tuple(one for one in found.core_ids if one not in hints.blocked_cores)
    if hints.threads_per_core is not None:
        cores = _threads(root, cores, hints.threads_per_core)
    cores, is_real, origin = _within_grant(found, cores, grant, root)
    shape = replace(
        found,
        core_ids=cores,
        numa=_groups_of(found, cores),
        is_real=is_real,
        origin={**found.origin, "cores": origin},
    )
    if grant.memory_bytes is not None and (grant.memory_bytes < shape.memory_bytes or not is_real):
        shape = replace(
            shape,
            memory_bytes=grant.memory_bytes,
            origin={**shape.origin, "memory": grant.origin},
        )
    return _with_gpus(shape, grant, hints)


def with_visible_gpus(
    shape: NodeShape, environ: Mapping[str, str], asked: int, vendor: GpuVendor | None
) -> NodeShape:
    """Believe the batch system in GPUs where no driver shows any.

    Parameters
    ----------
    shape : NodeShape
        What was detected.
    environ : mapping
        Environment variables of the agent: the vendor's may name the devices.
    asked : int
        GPUs that were asked for and so given [GPUs].
    vendor : str, optional
        Whose they are, where the site says so.
    """
    if shape.gpu_ids or not asked:
        return shape
    for variable, whose in _VISIBLE.items():
        ids = tuple(one.strip() for one in environ.get(variable, "").split(",") if one.strip())
        if ids and vendor in (None, whose):
            origin = f"{variable}, set by the batch system; no driver shows them"
            return _declared_gpus(shape, ids, whose, origin)  # type: ignore[arg-type]  # one of _VISIBLE
    ids = tuple(str(index) for index in range(asked))
    return _declared_gpus(shape, ids, vendor or "nvidia", "asked of the batch system")


def _declared_gpus(
    shape: NodeShape, ids: tuple[str, ...], vendor: GpuVendor, origin: str
) -> NodeShape:
    return replace(
        shape,
        gpu_ids=ids,
        gpu_vendor=vendor,
        gpu_cores=(),
        origin={**shape.origin, "gpus": origin},
    )


def _within_grant(
    found: NodeShape, cores: tuple[int, ...], grant: Grant, root: Path
) -> tuple[tuple[int, ...], bool, str]:
    """Choose the cores; say whether they are known to be ours, and how."""
    origin = found.origin.get("cores", "detected")
    granted = grant.cores
    if granted is None or granted == len(cores):
        return cores, found.is_real, origin
    n_machine = os.cpu_count() or 1
    if granted > n_machine:
        said = f"{grant.origin}: more than the {n_machine} of this machine, so counted, not bound"
        return tuple(range(granted)), False, said
    if granted > len(cores):
        return cores, found.is_real, f"{origin}; {grant.origin} says {granted}"
    physical = _threads(root, cores, 1)
    if granted == len(physical):
        return physical, found.is_real, f"{grant.origin}: one hardware thread of each core"
    said = f"{grant.origin}: not confined to certain cores, so counted, not bound"
    return cores[:granted], False, said


def _with_gpus(shape: NodeShape, grant: Grant, hints: NodeHints) -> NodeShape:
    vendor = hints.gpu_vendor
    if hints.gpu_ids and (grant.gpus is None or grant.gpus >= len(hints.gpu_ids)):
        shape = _declared_gpus(shape, hints.gpu_ids, vendor or "nvidia", "the site profile")
    elif vendor is not None and shape.gpu_ids and shape.gpu_vendor != vendor:
        shape = replace(shape, gpu_vendor=vendor)
    if hints.gpu_cores and len(hints.gpu_cores) >= shape.gpus > 0 and shape.is_real:
        allowed = set(shape.core_ids)
        near = tuple(tuple(one for one in cores if one in allowed) for cores in hints.gpu_cores)
        index = {str(number): cores for number, cores in enumerate(near)}
        by_position = near[: shape.gpus]
        chosen = tuple(
            index.get(gpu, by_position[place]) for place, gpu in enumerate(shape.gpu_ids)
        )
        shape = replace(shape, gpu_cores=chosen)
    return shape


def _threads(root: Path, cores: tuple[int, ...], n_threads: int) -> tuple[int, ...]:
    """Keep so many hardware threads of each physical core."""
    seen: Counter[int] = Counter()
    kept = []
    for core in sorted(cores):
        path = root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
        try:
            physical = min(parse_cpulist(path.read_text()))
        except (OSError, ValueError):  # another kernel: every thread counts as a core
            physical = core
        seen[physical] += 1
        if seen[physical] <= n_threads:
            kept.append(core)
    return tuple(kept)


def _groups_of(found: NodeShape, cores: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    kept = set(cores)
    groups = tuple(tuple(one for one in group if one in kept) for group in found.numa)
    groups = tuple(group for group in groups if group)
    return groups if sum(map(len, groups)) == len(cores) else (cores,)


def _slurm(environ: Mapping[str, str]) -> Grant:
    cores = _number(environ.get("SLURM_CPUS_ON_NODE"))
    megabytes = _number(environ.get("SLURM_MEM_PER_NODE"))
    per_cpu = _number(environ.get("SLURM_MEM_PER_CPU"))
    if megabytes is None and per_cpu is not None and cores is not None:
        megabytes = per_cpu * cores
    return Grant(
        cores=cores,
        gpus=_number(environ.get("SLURM_GPUS_ON_NODE")),
        memory_bytes=megabytes * 2**20 if megabytes else None,
        origin="SLURM_CPUS_ON_NODE",
    )


def _lsf_cores(environ: Mapping[str, str], host: str | None) -> int | None:
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    counts = dict(zip(words[::2], words[1::2], strict=False))
    return _number(counts.get(host or socket.gethostname()))


def _lines_of(path: str, host: str | None) -> int | None:
    try:
        lines = Path(path).read_text().split()
    except OSError:
        return None
    return lines.count(host or socket.gethostname()) or None


def _flux(text: str, rank: int) -> Grant:
    """Read the cores and GPUs of one rank (Flux RFC 20)."""
    try:
        entries = json.loads(text)["execution"]["R_lite"]
        nodes = [
            (number, entry["children"])
            for entry in entries
            for number in parse_cpulist(str(entry["rank"]))
        ]
        children = sorted(nodes, key=lambda one: one[0])[rank][1]
        return Grant(
            cores=len(parse_cpulist(str(children.get("core", "")))) or None,
            gpus=len(parse_cpulist(str(children.get("gpu", "")))),
            origin="R of Flux",
        )
    except (KeyError, IndexError, TypeError, ValueError):  # a format that is newer than this
        return Grant()


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None
