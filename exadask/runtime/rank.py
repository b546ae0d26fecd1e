"""One rank of a function that many run together; ``mpiexec`` starts it, see `exadask.mpi_task`.

Orders and results pass through files that only the task's own process and its ranks have.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

_FAILED = 1


@dataclass(frozen=True, slots=True)
class Orders:
    """What all ranks are told.

    Parameters
    ----------
    n_ranks : int
        How many there are.
    call : bytes
        The function and its arguments, packed.
    sys_path : tuple of str
        Where modules are found.
    results : tuple of str
        For each rank where its result goes; empty: nobody wants it.
    problems : tuple of str
        For each rank where goes what went wrong.
    """

    n_ranks: int
    call: bytes
    sys_path: tuple[str, ...]
    results: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a rank raised.

    Parameters
    ----------
    summary : str
        Its type and its message.
    traceback : str
        Where it was raised.
    error : bytes or None
        Packed; None if it cannot be.
    """

    summary: str
    traceback: str
    error: bytes | None


class _WrongWorld(Exception):
    """The ranks do not see each other."""


def main(path: str) -> None:
    """Run the function as one of its ranks."""
    orders: Orders = pickle.loads(Path(path).read_bytes())
    sys.path[:] = orders.sys_path
    rank = 0
    try:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        rank = world.Get_rank()
        if world.Get_size() != orders.n_ranks:
            raise _WrongWorld(
                f"{orders.n_ranks} ranks were started, and each sees {world.Get_size()}: mpiexec "
                f"is not of the MPI that mpi4py uses ({MPI.Get_library_version().splitlines()[0]})."
                " Load the module of that MPI, or install mpi4py against the one that is loaded: "
                "python -m pip install --no-binary mpi4py --force-reinstall mpi4py"
            )
        function, args, kwargs = pickle.loads(orders.call)
        value = function(world, *args, **kwargs)
        if orders.results[rank]:
            packed = cloudpickle.dumps(value, protocol=5)
            Path(orders.results[rank]).write_bytes(packed)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # whatever it raises ends all ranks
        _tell(orders.problems[rank], error)
        _end_all()


def _tell(path: str, error: BaseException) -> None:
    try:
        packed: bytes | None = cloudpickle.dumps(error, protocol=5)
    except Exception:  # the user's classes decide what pickling raises
        packed = None
    summary = f"{type(error).__name__}: {error}"
    problem = Problem(summary, "".join(traceback.format_exception(error)), packed)
    Path(path).write_bytes(pickle.dumps(problem))


def _end_all() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized():
        mpi.COMM_WORLD.Abort(_FAILED)
    os._exit(_FAILED)
