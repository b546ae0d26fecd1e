"""Variables that say what a process may use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from exadask.resources import GpuVendor, NodeShape
from exadask.runtime import binding, ranks
from exadask.runtime.admission import Grant
from exadask.runtime.parts import near_gpus


def test_thread_counts_are_said_to_every_library() -> None:
    environment = binding.thread_environment(3)
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"} <= set(environment)
    assert set(environment.values()) == {"3"}


@pytest.mark.parametrize(
    ("vendor", "variable", "nothing"),
    [
        ("nvidia", "CUDA_VISIBLE_DEVICES", ""),
        ("amd", "ROCR_VISIBLE_DEVICES", "-1"),
        ("intel", "ZE_AFFINITY_MASK", "none"),
    ],
)
def test_each_vendor_has_its_variable(vendor: GpuVendor, variable: str, nothing: str) -> None:
    some = binding.gpu_environment(("1", "3"), vendor, node_has_gpus=True)
    assert some[variable] == "1,3"
    assert binding.gpu_environment((), vendor, node_has_gpus=True)[variable] == nothing


def test_nothing_is_said_where_there_are_no_gpus() -> None:
    assert binding.gpu_environment((), "none", node_has_gpus=False) == {}


def test_this_process_can_be_bound() -> None:
    cores = sorted(os.sched_getaffinity(0))
    try:
        assert binding.bind_threads(os.getpid(), cores[:1])
        assert sorted(os.sched_getaffinity(0)) == cores[:1]
    finally:
        binding.bind_threads(os.getpid(), cores)


def test_cores_are_given_out_in_the_order_of_the_gpus_that_they_are_near() -> None:
    shape = NodeShape(
        core_ids=tuple(range(8)),
        memory_bytes=1,
        gpu_ids=("0", "1"),
        gpu_vendor="amd",
        gpu_cores=((4, 5, 6, 7), (0, 1, 2, 3)),
        is_real=True,
    )
    grant = Grant(share=1, cores=(0, 1, 4, 5), gpus={"0": 1000, "1": 1000})
    assert near_gpus(grant, shape) == (4, 5, 0, 1)
    without = Grant(share=1, cores=(3, 1))
    assert near_gpus(without, shape) == (1, 3)


@pytest.mark.parametrize(
    ("units", "gpus"),
    [(1000, ["a", "b", "c"]), (2000, ["a,b", "c,d", "e,f"]), (400, ["a", "a", "b"]), (0, ["none"])],
)
@pytest.mark.parametrize("local_rank", ["MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_each_rank_takes_its_part_of_the_gpus(units: int, gpus: list[str], local_rank: str) -> None:
    script = Path(ranks.__file__).with_name("ranks.sh")
    for rank, expected in enumerate(gpus):
        environment = {
            local_rank: str(rank),
            "EXADASK_GPU_VARIABLE": "ROCR_VISIBLE_DEVICES",
            "EXADASK_PART_GPUS": "a,b,c,d,e,f" if units else "none",
            "ROCR_VISIBLE_DEVICES": "set by the batch system",
            "EXADASK_RANK_GPU_UNITS": str(units),
        }
        words = ["/bin/sh", str(script), "sh", "-c", "echo $ROCR_VISIBLE_DEVICES"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_each_rank_is_bound_to_its_part_of_the_cores(tmp_path: Path) -> None:
    script = Path(ranks.__file__).with_name("ranks.sh")
    first = min(os.sched_getaffinity(0))
    (tmp_path / "environment").write_text(f"export EXADASK_PART_CORES=99,{first}\n")
    program = ["/bin/sh", str(script), "sh", "-c", "taskset -cp $$"]
    environment = {**os.environ, "EXADASK_RANK_CORES": "1", "MPI_LOCALRANKID": "1"}
    for told in (
        {"EXADASK_PART": str(tmp_path)},
        {"EXADASK_PARTS": f"other=/nowhere here={tmp_path}", "SLURMD_NODENAME": "here"},
    ):
        done = subprocess.run(
            program, env={**environment, **told}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().endswith(f": {first}")
