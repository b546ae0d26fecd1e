"""What this process uses: its processor time, its memory, and the processes that it started."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import time

from exadask.runtime.job import Usage

_TIDY_FROM_BYTES = 2**27


class Meter:
    """Processor time, wall time and peak memory of this process from now on."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._cpu_s = cpu_s()
        forget_peak()

    def read(self) -> Usage:
        """Read it."""
        return Usage(
            cpu_s=cpu_s() - self._cpu_s,
            wall_s=time.monotonic() - self._start_s,
            peak_bytes=peak_bytes(),
        )


def forget_peak() -> None:
    """Let the peak of this process's memory count from now on."""
    try:
        with open("/proc/self/clear_refs", "wb") as clear:  # noqa: PTH123  # per task: keep it cheap
            clear.write(b"5")
    except OSError:
        return  # the peak is that of the process's life


def cpu_s() -> float:
    """Processor time of this process and of its children that ended [s]."""
    return time.process_time() + ended_cpu_s()


def ended_cpu_s() -> float:
    """Processor time of the children of this process that ended [s]."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def peak_bytes() -> int:
    """Largest memory of this process since `forget_peak` [bytes]."""
    peak = _status_bytes(b"VmHWM:")
    return highest_bytes() if peak is None else peak


def highest_bytes() -> int:
    """Give the same as `peak_bytes` for a tenth of its cost, as exact as the kernel keeps it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: bytes) -> int | None:
    """Read a field of this process's status [bytes]; None where there is no ``/proc``."""
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123  # per task: keep it cheap
            for line in status:
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def has_children() -> bool:
    """Whether processes that the task started are still there, or nobody has waited for them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def give_memory_back(at_most_bytes: int | None = None) -> None:
    """Return freed memory to the system, or the next task would be blamed for it.

    Parameters
    ----------
    at_most_bytes : int, optional
        What this process has at most, if that is known: if it is little there is nothing to do.
    """
    if at_most_bytes is None:
        at_most_bytes = _status_bytes(b"RssAnon:") or 0
    if at_most_bytes < _TIDY_FROM_BYTES:
        return
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
