"""What a process may use, said in the ways that programs listen to.

Imported in every child process, so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from exadask.resources import GpuVendor

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "JULIA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
GPU_VARIABLES = {
    "nvidia": "CUDA_VISIBLE_DEVICES",
    "amd": "ROCR_VISIBLE_DEVICES",
    "intel": "ZE_AFFINITY_MASK",
}
GPU_VARIABLE, PART_GPUS = "EXADASK_GPU_VARIABLE", "EXADASK_PART_GPUS"
"""Which of them a node uses, and what stands in it."""

_NOTHING_VISIBLE = {"nvidia": "", "amd": "-1", "intel": "none"}
_USERS_OF_THREADPOOLS = ("numpy", "scipy", "sklearn", "torch", "numexpr", "mkl", "cupy", "tblite")


def thread_environment(n_cores: int) -> dict[str, str]:
    """Say how many threads numerical libraries should start.

    Parameters
    ----------
    n_cores : int
        Cores of the task [cores].

    Returns
    -------
    dict of str to str
        Environment variables; read by a library when it is loaded.

    Examples
    --------
    >>> thread_environment(4)["OMP_NUM_THREADS"]
    '4'
    """
    return dict.fromkeys(_THREAD_VARIABLES, str(n_cores))


def gpu_environment(gpus: Sequence[str], vendor: GpuVendor, node_has_gpus: bool) -> dict[str, str]:
    """Say which GPUs a process may see.

    Parameters
    ----------
    gpus : sequence of str
        Ids as the vendor's variable names them; none hides all.
    vendor : {"none", "nvidia", "amd", "intel"}
        Whose GPUs the node has.
    node_has_gpus : bool
        Whether there is anything to hide.

    Returns
    -------
    dict of str to str
        Environment variables.

    Notes
    -----
    A batch system that starts ranks sets the vendor's variable anew, so what is granted is said
    under names of our own too (``ranks.sh`` reads them).

    To hide all: an empty ``CUDA_VISIBLE_DEVICES`` (CUDA C++ Programming Guide, environment
    variables); ``ROCR_VISIBLE_DEVICES=-1`` (ROCm documentation, GPU isolation); for Level Zero a
    mask that names no device.

    Examples
    --------
    >>> gpu_environment(["1"], "nvidia", node_has_gpus=True)["CUDA_VISIBLE_DEVICES"]
    '1'
    """
    if vendor == "none" or not node_has_gpus:
        return {}
    visible = ",".join(gpus) if gpus else _NOTHING_VISIBLE[vendor]
    variable = GPU_VARIABLES[vendor]
    environment = {variable: visible, GPU_VARIABLE: variable, PART_GPUS: visible}
    if vendor == "nvidia":
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return environment


def bind_threads(pid: int, cores: Sequence[int]) -> bool:
    """Bind all threads of a process to cores.

    Parameters
    ----------
    pid : int
        The process.
    cores : sequence of int
        Core ids; not empty.

    Returns
    -------
    bool
        False where the system cannot bind (macOS).
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # per task: keep it cheap
        with contextlib.suppress(ProcessLookupError):  # the thread has just ended
            os.sched_setaffinity(int(name), cores)
    return True


def limit_loaded_threadpools(n_threads: int) -> None:
    """Set the number of threads of numerical libraries that are loaded already."""
    if any(name in sys.modules for name in _USERS_OF_THREADPOOLS):
        import threadpoolctl

        threadpoolctl.threadpool_limits(n_threads)
