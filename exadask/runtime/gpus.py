"""Find the GPUs that this process may use: NVIDIA, AMD, Intel."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exadask.cpulist import parse_cpulist
from exadask.errors import InvalidQuantity
from exadask.resources import GpuVendor

_TOOL_TIMEOUT_S = 10
_COUNT = re.compile(r"[0-9]{1,6}")
_VISIBLE = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "intel": ("ZE_AFFINITY_MASK",),
}
_INTEL_PCI_VENDOR = "0x8086"
_INTEL_DISPLAY_CLASS = "0x0380"  # data-centre GPUs; a laptop's graphics are 0x0300


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs of a node.

    Parameters
    ----------
    ids : tuple of str
        As the vendor's environment variable names them.
    vendor : {"none", "nvidia", "amd", "intel"}
        Whose they are.
    near_cores : tuple of tuple of int
        For each GPU the core ids near it; empty where this is not known.
    origin : str
        How they were found.
    """

    ids: tuple[str, ...] = ()
    vendor: GpuVendor = "none"
    near_cores: tuple[tuple[int, ...], ...] = ()
    origin: str = "none found"


def detect_gpus(root: Path, environ: Mapping[str, str]) -> Gpus:
    """Find the GPUs.

    ``EXADASK_GPUS=4`` declares them (with ``EXADASK_GPU_VENDOR``, by default nvidia). Otherwise
    NVIDIA's are asked of NVML, ``nvidia-smi`` or ``/proc``, AMD's of the kernel's KFD topology,
    Intel's of sysfs. A variable of the vendor that is set already, by the batch system or the user,
    is respected to the letter.

    Parameters
    ----------
    root : Path
        Where the file system begins.
    environ : mapping
        Environment variables.

    Raises
    ------
    InvalidQuantity
        ``EXADASK_GPUS`` or ``EXADASK_GPU_VENDOR`` makes no sense.
    """
    declared = environ.get("EXADASK_GPUS")
    if declared is not None:
        return _declared(declared, environ.get("EXADASK_GPU_VENDOR", "nvidia"))
    for found in (_nvidia(root), _amd(root), _intel(root)):
        if found.ids:
            return _visible(found, environ)
    return Gpus()


def _declared(count: str, vendor: str) -> Gpus:
    if not _COUNT.fullmatch(count.strip()):
        raise InvalidQuantity("EXADASK_GPUS", count, "a whole number of GPUs, 0 for none")
    if vendor not in _VISIBLE:
        raise InvalidQuantity("EXADASK_GPU_VENDOR", vendor, "nvidia, amd or intel")
    ids = tuple(str(index) for index in range(int(count)))
    return Gpus(ids=ids, vendor=vendor if ids else "none", origin="EXADASK_GPUS")  # type: ignore[arg-type]  # checked


def _visible(found: Gpus, environ: Mapping[str, str]) -> Gpus:
    """Offer only what the vendor's variable allows, under the names that it uses."""
    for variable in _VISIBLE[found.vendor]:
        text = environ.get(variable)
        if text is None:
            continue
        ids = tuple(part.strip() for part in text.split(",") if part.strip())
        if "-1" in ids:  # everything from there on is hidden
            ids = ids[: ids.index("-1")]
        origin = f"{found.origin}, limited by {variable}"
        if not ids:
            return Gpus(origin=origin)
        near = dict(zip(found.ids, found.near_cores, strict=False))
        near_cores = tuple(near.get(one, ()) for one in ids)
        return Gpus(ids=ids, vendor=found.vendor, near_cores=near_cores, origin=origin)
    return found


def _nvidia(root: Path) -> Gpus:
    if not (root / "proc/driver/nvidia").exists():
        return Gpus()
    if root == Path("/"):
        found = _from_nvml() or _from_nvidia_smi()
        if found is not None:
            return found
    folders = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    ids = tuple(str(index) for index in range(len(folders)))
    near = tuple(_local_cores(root, folder.name) for folder in folders)
    return Gpus(ids=ids, vendor="nvidia", near_cores=near, origin="/proc/driver/nvidia")


def _from_nvml() -> Gpus | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:  # the extra exadask[gpu] is not installed
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or another version of it
        return None
    try:
        near = []
        for index in range(nvml.nvmlDeviceGetCount()):
            bus_id = nvml.nvmlDeviceGetPciInfo(nvml.nvmlDeviceGetHandleByIndex(index)).busId
            text = bus_id.decode() if isinstance(bus_id, bytes) else str(bus_id)
            near.append(_local_cores(Path("/"), text))
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
    ids = tuple(str(index) for index in range(len(near)))
    return Gpus(ids=ids, vendor="nvidia", near_cores=tuple(near), origin="NVML")


def _from_nvidia_smi() -> Gpus | None:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    ids = tuple(str(index) for index in range(count))
    return Gpus(ids=ids, vendor="nvidia", origin="nvidia-smi -L")


def _amd(root: Path) -> Gpus:
    near = []
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*")
    for folder in sorted(nodes, key=lambda path: int(path.name)):
        facts = _properties(folder / "properties")
        if facts.get("simd_count", 0) > 0:
            near.append(_local_cores(root, _bus_id(facts)))
    ids = tuple(str(index) for index in range(len(near)))
    return Gpus(
        ids=ids,
        vendor="amd" if ids else "none",
        near_cores=tuple(near),
        origin="/sys/class/kfd" if ids else "none found",
    )


def _bus_id(facts: Mapping[str, int]) -> str:
    location = facts.get("location_id", 0)  # bus, device and function in one number
    domain = facts.get("domain", 0)
    return f"{domain:04x}:{location >> 8:02x}:{location >> 3 & 31:02x}.{location & 7}"


def _intel(root: Path) -> Gpus:
    near = []
    for card in sorted((root / "sys/class/drm").glob("card[0-9]*")):
        device = card / "device"
        if "-" in card.name or _line(device / "vendor") != _INTEL_PCI_VENDOR:
            continue
        if _line(device / "class").startswith(_INTEL_DISPLAY_CLASS):
            near.append(_cpulist(device / "local_cpulist"))
    ids = tuple(str(index) for index in range(len(near)))
    return Gpus(
        ids=ids,
        vendor="intel" if ids else "none",
        near_cores=tuple(near),
        origin="/sys/class/drm" if ids else "none found",
    )


def _local_cores(root: Path, bus_id: str) -> tuple[int, ...]:
    """Find the cores near a PCI device; NVML writes longer domains than the kernel."""
    domain, _, rest = bus_id.lower().partition(":")
    return _cpulist(root / "sys/bus/pci/devices" / f"{domain[-4:]}:{rest}" / "local_cpulist")


def _cpulist(path: Path) -> tuple[int, ...]:
    return parse_cpulist(_line(path))


def _properties(path: Path) -> dict[str, int]:
    facts = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:  # not ours to read: then it is not ours to use
        return {}
    for line in lines:
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            facts[name] = int(value)
    return facts


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
