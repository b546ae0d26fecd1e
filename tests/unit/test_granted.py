"""What a batch system gave of a node, from its variables, the machine and the pool's hints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exadask.pool import NodeHints
from exadask.resources import NodeShape
from exadask.runtime.granted import Grant, granted_shape, read_grant, with_visible_gpus

_N_MACHINE = os.cpu_count() or 1


def machine(cores: int, gpus: int = 0) -> NodeShape:
    """What was detected: cores that tasks are bound to."""
    ids = tuple(range(cores))
    return NodeShape(
        core_ids=ids,
        numa=(ids,),
        memory_bytes=2**34,
        gpu_ids=tuple(str(one) for one in range(gpus)),
        gpu_vendor="nvidia" if gpus else "none",
        is_real=True,
        origin={"cores": "sched_getaffinity"},
    )


def smt(root: Path, cores: int) -> Path:
    """Lay out hardware threads: core n and core n + cores are siblings."""
    for thread in range(2 * cores):
        folder = root / f"sys/devices/system/cpu/cpu{thread}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{thread % cores},{thread % cores + cores}\n")
    return root


@pytest.mark.parametrize(
    ("environ", "cores", "gpus", "memory"),
    [
        (
            {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "4"},
            *(8, 4, None),
        ),
        (
            {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8", "SLURM_MEM_PER_NODE": "4000"},
            *(8, None, 4000 * 2**20),
        ),
        (
            {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8", "SLURM_MEM_PER_CPU": "100"},
            *(8, None, 800 * 2**20),
        ),
        ({"PBS_JOBID": "0.vm", "NCPUS": "2"}, 2, None, None),
        ({"PBS_JOBID": "0.vm"}, None, None, None),
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "a1 4 b2 16"}, 16, None, None),
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "odd"}, None, None, None),
        ({"SGE_ROOT": "/sge", "NSLOTS": "6"}, 6, None, None),
        ({"HOME": "/root"}, None, None, None),
    ],
)
def test_batch_systems_say_what_they_gave(
    environ: dict[str, str], cores: int | None, gpus: int | None, memory: int | None
) -> None:
    grant = read_grant(environ, host="b2")
    assert (grant.cores, grant.gpus, grant.memory_bytes) == (cores, gpus, memory)


def test_of_a_whole_node_pbs_counts_only_what_a_chunk_asked_for() -> None:
    environ = {"PBS_JOBID": "0.vm", "NCPUS": "1"}
    assert read_grant(environ, is_whole_node=True).cores is None


def test_oar_names_a_host_once_for_each_core(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a1\na1\nb2\nb2\nb2\n")
    assert read_grant({"OAR_NODEFILE": str(tmp_path / "nodes")}, host="b2").cores == 3
    assert read_grant({"OAR_NODEFILE": str(tmp_path / "gone")}, host="b2").cores is None


def test_flux_names_the_cores_of_each_rank() -> None:
    text = json.dumps(
        {
            "version": 1,
            "execution": {
                "R_lite": [
                    {"rank": "0-1", "children": {"core": "0-3", "gpu": "0"}},
                    {"rank": "5", "children": {"core": "2,4-6"}},
                ],
                "nodelist": ["flux[0-1,5]"],
            },
        }
    )
    grants = [read_grant({"FLUX_TASK_RANK": str(rank)}, flux_r=text) for rank in range(3)]
    assert [(one.cores, one.gpus) for one in grants] == [(4, 1), (4, 1), (4, 0)]
    assert read_grant({"FLUX_TASK_RANK": "9"}, flux_r=text).cores is None
    assert read_grant({}, flux_r="not JSON").cores is None


def test_without_a_word_the_machine_itself_counts(tmp_path: Path) -> None:
    shape = granted_shape(machine(2), Grant(), NodeHints(), tmp_path)
    assert shape.core_ids == (0, 1)
    assert shape.is_real


def test_more_than_the_machine_has_is_counted_but_not_bound(tmp_path: Path) -> None:
    grant = Grant(cores=_N_MACHINE + 6, memory_bytes=2**40, origin="SLURM_CPUS_ON_NODE")
    shape = granted_shape(machine(2), grant, NodeHints(), tmp_path)
    assert shape.cores == _N_MACHINE + 6
    assert not shape.is_real
    assert "more than" in shape.origin["cores"]
    assert shape.memory_bytes == 2**40


def test_a_job_that_is_not_confined_is_counted_but_not_bound(tmp_path: Path) -> None:
    shape = granted_shape(machine(2), Grant(cores=1, origin="NCPUS"), NodeHints(), tmp_path)
    assert shape.cores == 1
    assert not shape.is_real
    assert "not confined" in shape.origin["cores"]


def test_one_thread_of_each_core_where_the_batch_system_counts_cores(tmp_path: Path) -> None:
    root = smt(tmp_path, cores=1)
    shape = granted_shape(machine(2), Grant(cores=1, origin="NCPUS"), NodeHints(), root)
    assert shape.core_ids == (0,)
    assert shape.is_real


def test_the_site_may_leave_hardware_threads_and_cores_out(tmp_path: Path) -> None:
    root = smt(tmp_path, cores=4)
    hints = NodeHints(threads_per_core=1, blocked_cores=(0, 4))
    shape = granted_shape(machine(8), Grant(), hints, root)
    assert shape.core_ids == (1, 2, 3)
    assert shape.numa == ((1, 2, 3),)


def test_less_memory_than_the_machine_has(tmp_path: Path) -> None:
    grant = Grant(memory_bytes=2**30, origin="asked")
    assert granted_shape(machine(2), grant, NodeHints(), tmp_path).memory_bytes == 2**30
    more = Grant(memory_bytes=2**50, origin="asked")
    assert granted_shape(machine(2), more, NodeHints(), tmp_path).memory_bytes == 2**34


def test_the_site_knows_which_cores_are_near_a_gpu(tmp_path: Path) -> None:
    hints = NodeHints(gpu_cores=((6, 7), (4, 5), (2, 3), (0, 1)), blocked_cores=(0,))
    shape = granted_shape(machine(8, gpus=4), Grant(), hints, tmp_path)
    assert shape.gpu_cores == ((6, 7), (4, 5), (2, 3), (1,))


def test_the_near_cores_follow_the_names_of_the_gpus(tmp_path: Path) -> None:
    found = machine(8, gpus=4)
    hints = NodeHints(gpu_cores=((6, 7), (4, 5), (2, 3), (0, 1)))
    only = NodeShape(
        core_ids=found.core_ids,
        numa=found.numa,
        memory_bytes=1,
        gpu_ids=("3", "1"),
        gpu_vendor="nvidia",
        is_real=True,
    )
    assert granted_shape(only, Grant(), hints, tmp_path).gpu_cores == ((0, 1), (4, 5))


def test_tiles_get_their_names_from_the_site(tmp_path: Path) -> None:
    hints = NodeHints(gpu_ids=("0.0", "0.1"), gpu_vendor="intel")
    shape = granted_shape(machine(2), Grant(), hints, tmp_path)
    assert shape.gpu_ids == ("0.0", "0.1")
    assert shape.gpu_vendor == "intel"


def test_gpus_without_a_driver_are_believed_of_the_batch_system() -> None:
    seen = with_visible_gpus(machine(2), {"CUDA_VISIBLE_DEVICES": "2,5"}, 2, None)
    assert (seen.gpu_ids, seen.gpu_vendor) == (("2", "5"), "nvidia")
    amd = with_visible_gpus(machine(2), {"ROCR_VISIBLE_DEVICES": "0"}, 1, "amd")
    assert (amd.gpu_ids, amd.gpu_vendor) == (("0",), "amd")
    told = with_visible_gpus(machine(2), {}, 3, "amd")
    assert (told.gpu_ids, told.gpu_vendor) == (("0", "1", "2"), "amd")
    assert with_visible_gpus(machine(2), {"CUDA_VISIBLE_DEVICES": "0"}, 0, None).gpus == 0
    assert with_visible_gpus(machine(2, gpus=4), {}, 2, None).gpus == 4
