"""What this machine, or the part of it that this job may use, offers to tasks.

Everything is read below a root directory and from a mapping of environment variables, so that tests
can lay out other machines.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from exadask.cpulist import parse_cpulist
from exadask.errors import InvalidQuantity, InvalidRequest, shown
from exadask.resources import NodeShape
from exadask.runtime.gpus import Gpus, detect_gpus
from exadask.toml_file import read_toml
from exadask.units import parse_bytes

_HEADROOM_FRACTION = 0.05
_HEADROOM_BYTES = 256 * 2**20
_UNLIMITED_BYTES = 2**60  # cgroup v1 writes a number near 2**63 for "no limit"
_SHAPE_KEYS = ("cores", "gpus", "memory", "gpu_vendor")


def detect_node(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> NodeShape:
    """Find out what this machine offers.

    Cores: those that this process may run on, no more than its cgroup's quota. Memory: the
    machine's or the smallest limit of its cgroups, less a headroom for the agent. GPUs: see
    `exadask.runtime.gpus.detect_gpus`. ``EXADASK_NODE_SHAPE=FILE.toml`` declares all of it instead.

    Parameters
    ----------
    root : Path
        Where the file system begins.
    environ : mapping, optional
        Environment variables; by default the process's own.

    Returns
    -------
    NodeShape
        The shape; its ``origin`` says how each fact was found.

    Raises
    ------
    InvalidQuantity, InvalidRequest
        A variable or the shape's file makes no sense.
    """
    environ = os.environ if environ is None else environ
    gpus = detect_gpus(root, environ)
    if environ.get("EXADASK_NODE_SHAPE"):
        return read_shape(Path(environ["EXADASK_NODE_SHAPE"]))
    cores, cores_origin = _cores(root)
    memory_bytes, memory_origin = _memory(root)
    return NodeShape(
        core_ids=cores,
        numa=_numa(root, cores),
        memory_bytes=memory_bytes,
        gpu_ids=gpus.ids,
        gpu_vendor=gpus.vendor,
        gpu_cores=_near_cores(gpus, cores),
        is_real=hasattr(os, "sched_setaffinity"),
        origin={"cores": cores_origin, "memory": memory_origin, "gpus": gpus.origin},
    )


def read_shape(path: Path) -> NodeShape:
    """Read a declared shape: a TOML file with cores, gpus, memory, gpu_vendor.

    Raises
    ------
    InvalidRequest
        The file cannot be read, is not TOML, or has an unknown or missing key.
    InvalidQuantity
        A value makes no sense.
    """
    facts = read_toml(
        path,
        what=f"EXADASK_NODE_SHAPE={path}",
        advice='Write a TOML file, for example: cores = 8, gpus = 1, memory = "64GiB".',
    )
    unknown = [key for key in facts if key not in _SHAPE_KEYS]
    if unknown or "cores" not in facts:
        raise InvalidRequest(
            f"{path} has the keys {list(facts)}.",
            f"It needs 'cores', and may have {', '.join(_SHAPE_KEYS[1:])}; unknown: {unknown}.",
        )
    vendor = facts.pop("gpu_vendor", "nvidia" if facts.get("gpus") else "none")
    if vendor not in ("none", "nvidia", "amd", "intel"):
        raise InvalidRequest(
            f"{path} has gpu_vendor={shown(vendor)}.", "Give nvidia, amd or intel."
        )
    try:
        declared = NodeShape.declare(**facts)
    except InvalidQuantity as error:
        raise InvalidQuantity(f"{path}: {error.name}", error.value, error.wanted) from error
    return NodeShape(
        core_ids=declared.core_ids,
        numa=declared.numa,
        memory_bytes=declared.memory_bytes,
        gpu_ids=declared.gpu_ids,
        gpu_vendor=vendor,
        origin=dict.fromkeys(("cores", "memory", "gpus"), f"declared in {path}"),
    )


def _cores(root: Path) -> tuple[tuple[int, ...], str]:
    if not hasattr(os, "sched_getaffinity"):
        count = os.cpu_count() or 1
        return tuple(range(count)), "os.cpu_count; counted, not bound: this system has no affinity"
    cores = tuple(sorted(os.sched_getaffinity(0)))
    origin = "sched_getaffinity"
    for quota, source in _cpu_quotas(root):
        if quota < len(cores):
            cores, origin = cores[: max(1, math.ceil(quota))], source
    return cores, origin


def _cpu_quotas(root: Path) -> Iterator[tuple[float, str]]:
    for folder in _cgroup_folders(root, "cpu"):
        text = _text(folder / "cpu.max")
        if text is not None and not text.startswith("max"):
            quota, period = text.split()[:2]
            yield int(quota) / int(period), f"cgroup {folder / 'cpu.max'}"
        quota_us, period_us = (
            _text(folder / "cpu.cfs_quota_us"),
            _text(folder / "cpu.cfs_period_us"),
        )
        if quota_us is not None and period_us is not None and int(quota_us) > 0:
            yield int(quota_us) / int(period_us), f"cgroup {folder / 'cpu.cfs_quota_us'}"


def _memory(root: Path) -> tuple[int, str]:
    total, origin = _total_memory(root)
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text is not None and text.strip().isdigit():
                limit = int(text)
                if limit < min(total, _UNLIMITED_BYTES):
                    total, origin = limit, f"cgroup {folder / name}"
    headroom = max(_HEADROOM_BYTES, int(total * _HEADROOM_FRACTION))
    return max(total - headroom, total // 2), f"{origin}, less a headroom"


def _total_memory(root: Path) -> tuple[int, str]:
    text = _text(root / "proc/meminfo")
    match = re.search(r"MemTotal:\s+(\d+) kB", text) if text is not None else None
    if match is not None:
        return parse_bytes(int(match.group(1)) * 1024), "/proc/meminfo"
    import psutil

    return int(psutil.virtual_memory().total), "psutil"


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Find the folders of this process's cgroup and of all above it, for v1 and v2."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in _cgroup_mounts(root, controller if controllers else None):
            folder = mount / path.lstrip("/")
            while folder != mount:
                yield folder
                folder = folder.parent
            yield mount


def _cgroup_mounts(root: Path, controller: str | None) -> Iterator[Path]:
    """Find where a v1 controller, or v2 (None), is mounted."""
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(maxsplit=2) if right.count(" ") >= 2 else ("", "", "")
        is_v2 = kind == "cgroup2" and controller is None
        is_v1 = kind == "cgroup" and controller is not None and controller in options.split(",")
        if is_v1 or is_v2:
            yield root / left.split()[4].lstrip("/")


def _numa(root: Path, cores: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    groups = []
    for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        members = set(parse_cpulist(_text(folder / "cpulist") or ""))
        group = _siblings_together(root, tuple(core for core in cores if core in members))
        if group:
            groups.append(group)
    covered = sorted(core for group in groups for core in group)
    return tuple(groups) if covered == sorted(cores) else (_siblings_together(root, cores),)


def _siblings_together(root: Path, cores: tuple[int, ...]) -> tuple[int, ...]:
    """Order cores so that the hardware threads of one physical core are neighbours."""

    def physical(core: int) -> tuple[int, int]:
        topology = root / f"sys/devices/system/cpu/cpu{core}/topology"
        siblings = parse_cpulist(_text(topology / "thread_siblings_list") or str(core))
        return min(siblings), core

    return tuple(sorted(cores, key=physical))


def _near_cores(gpus: Gpus, cores: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    allowed = set(cores)
    near = tuple(tuple(core for core in one if core in allowed) for one in gpus.near_cores)
    return near if any(near) else ()


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # another kernel, or not ours to read
        return None
