"""What the tasks of the benchmarks do; every peer's workers import it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def busy(seconds: float) -> None:
    """Keep a core busy until the wall clock says so [s]."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def increment(number: int) -> int:
    """Add one."""
    return number + 1


def filled(nbytes: int, value: float) -> NDArray[np.float64]:
    """Make an array of so many bytes."""
    import numpy as np

    return np.full(nbytes // 8, value)


def last(array: Any) -> float:
    """Look at one element."""
    return float(array[-1])


def sum_of_ones(comm: Any) -> int:
    """Do next to nothing, on all ranks together."""
    return int(comm.allreduce(1))
