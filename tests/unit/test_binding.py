"""Variables that say what a process may use."""

from __future__ import annotations

import os

import pytest

from exadask.resources import GpuVendor
from exadask.runtime import binding


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
