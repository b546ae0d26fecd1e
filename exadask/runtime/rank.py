"""One rank of a function that many run together; ``mpiexec`` starts this file.

Orders and results pass through files that only the task's own process and its ranks have; see
`exadask.mpi_task`. On several nodes only rank 0 sees them, and what the others need or have passes
through MPI. All that is imported here is paid for by each rank of each call: it is as little as can
be, and nothing of exadask's.

The orders are a pickled dict: ``call``, the packed function and its arguments; ``results``, the
files where the results of the first ranks go, of rank 0 at least; ``problems``, for each rank the
file where it says what went wrong. On several nodes that is in a folder of each node, named by the
environment variable ``EXADASK_PART``. A problem is a pickled dict as well: ``rank``; ``summary``,
``traceback``, ``error`` (packed; None if it cannot be), and whether the ranks do not see each
other.
"""

import os
import pickle
import sys
from typing import Any

_FAILED = 1
_FIRST_IS_ELSEWHERE = (
    "rank 0 must be on the first of the nodes that launcher= got: for srun, say -m arbitrary"
)


def main(path: str) -> None:
    """Run the function as one of its ranks."""
    sys.path[:] = os.environ.pop("EXADASK_SYS_PATH").split(os.pathsep)
    part, n_ranks = os.environ.get("EXADASK_PART"), int(os.environ["EXADASK_RANKS"])
    orders: dict[str, Any] = {} if part else _read(path)
    rank = 0

    def tell(error: BaseException, *, is_wrong_world: bool = False) -> None:
        file = f"{part}/problem.{rank:09d}" if part else orders["problems"][rank]
        _tell(file, rank, error, is_wrong_world=is_wrong_world)
        _end_all()

    try:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        rank, n_seen = world.Get_rank(), world.Get_size()
        if n_seen != n_ranks:
            tell(_wrong_world(n_ranks, n_seen, MPI), is_wrong_world=True)
        if part and rank == 0 and part != os.environ["EXADASK_GANG"]:
            raise RuntimeError(_FIRST_IS_ELSEWHERE)
        if part:
            orders = world.bcast(_read(path) if rank == 0 else None)
        function, args, kwargs = pickle.loads(orders["call"])
        value = function(world, *args, **kwargs)
        results = orders["results"]
        if part and len(results) > 1:
            for one, packed in enumerate(world.gather(_packed(value)) or ()):
                _write(results[one], packed)
        elif rank < len(results):
            _write(results[rank], _packed(value))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # whatever it raises ends all ranks
        tell(error)


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:  # noqa: PTH123  # pathlib takes longer than all of this
        orders: dict[str, Any] = pickle.load(file)
    return orders


def _wrong_world(n_ranks: int, n_seen: int, mpi: object) -> Exception:
    library = mpi.Get_library_version().splitlines()[0]  # type: ignore[attr-defined]  # of mpi4py
    starter = os.path.basename(os.environ.get("EXADASK_STARTER", "mpiexec"))  # noqa: PTH119  # as above
    seen = f"{n_ranks} ranks were started, and each sees {n_seen}: "
    if starter == "srun":
        return RuntimeError(
            f"{seen}srun does not speak the PMI of the MPI that mpi4py uses ({library}). Say which "
            'it is, one of those that srun --mpi=list names: env={"SLURM_MPI_TYPE": "pmi2"} of the '
            "pool, or use the site's MPI: python -m pip install --no-binary mpi4py "
            "--force-reinstall mpi4py"
        )
    return RuntimeError(
        f"{seen}{starter} is not of the MPI that mpi4py uses ({library}). Load the module of that "
        "MPI, or install mpi4py against the one that is loaded: python -m pip install --no-binary "
        "mpi4py --force-reinstall mpi4py"
    )


def _packed(value: object) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception:  # it may be of a class that only the user's program has
        import cloudpickle

        packed: bytes = cloudpickle.dumps(value, protocol=5)
        return packed


def _tell(path: str, rank: int, error: BaseException, *, is_wrong_world: bool = False) -> None:
    import traceback

    import cloudpickle

    try:
        packed = cloudpickle.dumps(error, protocol=5)
    except Exception:  # the user's classes decide what pickling raises
        packed = None
    problem = {
        "rank": rank,
        "summary": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "error": packed,
        "is_wrong_world": is_wrong_world,
    }
    _write(path, pickle.dumps(problem))


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123  # as above
        file.write(content)


def _end_all() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized():
        mpi.COMM_WORLD.Abort(_FAILED)
    os._exit(_FAILED)


if __name__ == "__main__":
    main(sys.argv[1])
