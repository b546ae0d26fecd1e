"""Machines laid out in a directory, and what is found of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exadask.cpulist import parse_cpulist
from exadask.errors import InvalidQuantity, InvalidRequest
from exadask.runtime.detection import detect_node
from exadask.runtime.gpus import detect_gpus

_GIB = 2**30


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two NUMA nodes, eight hardware threads of four physical cores, 64 GiB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    siblings = {
        f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list": (
            f"{core % 4},{core % 4 + 4}"
        )
        for core in range(8)
    }
    return lay_out(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: {64 * _GIB // 1024} kB\n",
            "sys/devices/system/node/node0/cpulist": "0-1,4-5\n",
            "sys/devices/system/node/node1/cpulist": "2-3,6-7\n",
            **siblings,
        },
    )


@pytest.mark.parametrize(
    ("text", "cores"), [("", ()), ("3", (3,)), ("0-2,8", (0, 1, 2, 8)), ("1,1-2\n", (1, 1, 2))]
)
def test_cpulist(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cpulist(text) == cores


def test_cores_numa_and_memory(machine: Path) -> None:
    shape = detect_node(machine, {})
    assert shape.core_ids == tuple(range(8))
    assert shape.numa == ((0, 4, 1, 5), (2, 6, 3, 7))
    assert shape.memory_bytes == 64 * _GIB - int(64 * _GIB * 0.05)
    assert shape.origin["cores"] == "sched_getaffinity"
    assert shape.gpus == 0


def test_limits_of_cgroup_v2_hold_for_all_levels(machine: Path) -> None:
    lay_out(
        machine,
        {
            "proc/self/cgroup": "0::/slurm/job_7\n",
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/slurm/memory.max": f"{8 * _GIB}\n",
            "sys/fs/cgroup/slurm/job_7/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "250000 100000\n",
        },
    )
    shape = detect_node(machine, {})
    assert shape.cores == 3
    assert 7 * _GIB < shape.memory_bytes < 8 * _GIB
    assert "slurm/memory.max" in shape.origin["memory"]


def test_limits_of_cgroup_v1(machine: Path) -> None:
    lay_out(
        machine,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n",
            "proc/self/mountinfo": (
                "31 23 0:27 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n"
                "32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            ),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * _GIB}\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        },
    )
    shape = detect_node(machine, {})
    assert shape.cores == 2
    assert 3 * _GIB < shape.memory_bytes < 4 * _GIB


def test_amd_gpus_and_the_cores_near_them(machine: Path) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    files = {f"{nodes}/0/properties": "simd_count 0\n"}
    for index in range(4):
        location = (0xC1 + index) << 8
        files[f"{nodes}/{index + 1}/properties"] = (
            f"simd_count 440\nlocation_id {location}\ndomain 0\n"
        )
        files[f"sys/bus/pci/devices/0000:{0xC1 + index:02x}:00.0/local_cpulist"] = f"{index}\n"
    found = detect_gpus(lay_out(machine, files), {})
    assert (found.ids, found.vendor) == (("0", "1", "2", "3"), "amd")
    assert found.near_cores == ((0,), (1,), (2,), (3,))
    limited = detect_gpus(machine, {"ROCR_VISIBLE_DEVICES": "2,3"})
    assert (limited.ids, limited.near_cores) == (("2", "3"), ((2,), (3,)))
    assert detect_gpus(machine, {"HIP_VISIBLE_DEVICES": "-1"}).ids == ()


def test_intel_gpus_of_a_data_centre_count_and_those_of_a_laptop_do_not(machine: Path) -> None:
    for card, kind in (("card0", "0x030000"), ("card1", "0x038000")):
        device = f"sys/class/drm/{card}/device"
        lay_out(machine, {f"{device}/vendor": "0x8086\n", f"{device}/class": f"{kind}\n"})
    found = detect_gpus(machine, {})
    assert (found.ids, found.vendor) == (("0",), "intel")


def test_nvidia_gpus_keep_the_names_that_the_batch_system_gave(machine: Path) -> None:
    for bus in ("0000:07:00.0", "0000:0f:00.0"):
        (machine / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert detect_gpus(machine, {}).ids == ("0", "1")
    assert detect_gpus(machine, {"CUDA_VISIBLE_DEVICES": "MIG-a1,GPU-b2"}).ids == (
        "MIG-a1",
        "GPU-b2",
    )
    assert detect_gpus(machine, {"CUDA_VISIBLE_DEVICES": ""}).vendor == "none"


def test_declared_gpus(machine: Path) -> None:
    found = detect_gpus(machine, {"EXADASK_GPUS": "2", "EXADASK_GPU_VENDOR": "amd"})
    assert (found.ids, found.vendor, found.origin) == (("0", "1"), "amd", "EXADASK_GPUS")
    assert detect_gpus(machine, {"EXADASK_GPUS": "0"}).vendor == "none"
    for environ in ({"EXADASK_GPUS": "many"}, {"EXADASK_GPUS": "1", "EXADASK_GPU_VENDOR": "3dfx"}):
        with pytest.raises(InvalidQuantity, match="EXADASK_GPU"):
            detect_gpus(machine, environ)


def test_declared_node(machine: Path) -> None:
    file = machine / "shape.toml"
    file.write_text('cores = 64\ngpus = 8\nmemory = "512GiB"\ngpu_vendor = "amd"\n')
    shape = detect_node(machine, {"EXADASK_NODE_SHAPE": str(file)})
    assert (shape.cores, shape.gpus, shape.gpu_vendor) == (64, 8, "amd")
    assert not shape.is_real


@pytest.mark.parametrize(
    "text", ["cores = ", "gpus = 1", "cores = 4\ncoers = 5", 'cores = 4\ngpu_vendor = "x"']
)
def test_declared_node_that_makes_no_sense(machine: Path, text: str) -> None:
    file = machine / "shape.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"shape\.toml"):
        detect_node(machine, {"EXADASK_NODE_SHAPE": str(file)})
    with pytest.raises(InvalidRequest, match="cannot be read"):
        detect_node(machine, {"EXADASK_NODE_SHAPE": "/nowhere.toml"})


def test_this_machine_has_something_to_offer() -> None:
    shape = detect_node()
    assert shape.cores >= 1
    assert shape.memory_bytes > 0
    assert sorted(core for group in shape.numa for core in group) == sorted(shape.core_ids)
