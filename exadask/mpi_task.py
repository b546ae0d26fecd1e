"""``@mpi``: functions that several ranks run together, with an mpi4py communicator."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import cloudpickle

from exadask import inside
from exadask.errors import InvalidRequest, RanksFailed, RemoteError, shown
from exadask.rank_launcher import check_launcher
from exadask.ranks import parse_ranks
from exadask.runtime import ranks
from exadask.runtime.ranks import PROBLEMS, Layout, await_ends, prefix
from exadask.runtime.tail import Tail
from exadask.tasks import Task, TaskOptions, name_of, require_function

T = TypeVar("T")

Gather = Literal["root", "all"]
_RANK = str(Path(ranks.__file__).with_name("rank.py"))


def mpi(
    function: Callable[..., Any] | None = None,
    /,
    *,
    ranks: int | None = None,
    nodes: int | None = None,
    ranks_per_node: int | None = None,
    cores_per_rank: int = 1,
    gpus_per_rank: float = 0,
    memory_per_rank: int | float | str | None = None,
    gather: Gather = "root",
    launcher: str | None = None,
    **options: Any,
) -> Any:
    """Make a function an MPI program: all its ranks run it, and its value is rank 0's.

    Each rank has its own cores and GPUs, on one node or on several of one allocation. Needs mpi4py
    (``pip install exadask[mpi]``) and an ``mpiexec`` on the nodes.

    Parameters
    ----------
    function : callable
        Its first argument is the communicator of all ranks, an ``mpi4py.MPI.Comm``; the others are
        those of the call.
    ranks : int, optional
        How many run it [ranks]. Alone, it means: on one node if there is one with room for all,
        otherwise on as few as have room. None: as many as the next two make, or 1.
    nodes : int, optional
        On how many nodes, equally many ranks on each [nodes].
    ranks_per_node : int, optional
        How many ranks are on each node [ranks].
    cores_per_rank, gpus_per_rank, memory_per_rank
        What each rank asks for: whole cores, whole GPUs or a share of one, "8GiB" or bytes. Memory
        is enforced on each node for all ranks there together.
    gather : {"root", "all"}
        Whether the value of a call is rank 0's, or the list of all ranks'.
    launcher : str, optional
        What starts the ranks, at sites with several MPIs or none: "srun" for Slurm, or a command.
        ``{ranks}`` and ``{cores}`` (of a rank) are numbers there, ``{node}`` is the batch system's
        name of the node. For several nodes it must say where to put the ranks: with ``{hostfile}``
        for an mpiexec, "mpiexec.mpich -f {hostfile} -n {ranks}", or with ``{nodes}`` or
        ``{n_nodes}`` for a batch system (``SLURM_HOSTFILE`` says which rank goes where). None: what
        the pool of the node says (``rank_launcher=``), or else the mpiexec that is found, of MPICH,
        Intel MPI or Open MPI; in an allocation of Slurm where there is none, "srun".
    **options
        As for `exadask.task`, but for ``cores``, ``gpus``, ``memory``, ``setup``, ``isolation`` and
        ``bundle``.

    Returns
    -------
    MpiTask
        ``submit`` and ``map`` run it on ranks; called directly, with a communicator, it is the
        plain function.

    Raises
    ------
    InvalidQuantity, InvalidRequest
        An option makes no sense.

    Examples
    --------
    >>> @mpi(ranks=4, cores_per_rank=2, memory_per_rank="1GiB", time="5m")
    ... def total(comm, values):
    ...     return comm.allreduce(sum(values[comm.rank :: comm.size]))
    >>> total.options.request
    Resources(cores=2, memory='1 GiB', time='5m', ranks=4)
    >>> total.with_options(nodes=2, ranks_per_node=3).options.request
    Resources(cores=6, memory='3 GiB', time='5m', nodes=2)
    """
    said = {
        "ranks": ranks,
        "nodes": nodes,
        "ranks_per_node": ranks_per_node,
        "cores_per_rank": cores_per_rank,
        "gpus_per_rank": gpus_per_rank,
        "memory_per_rank": memory_per_rank,
    }
    layout, parsed = parse_ranks({**options, **said})
    if gather not in ("root", "all"):
        raise InvalidRequest(f"gather={shown(gather)} is not valid.", "Give 'root' or 'all'.")
    check_launcher(launcher)

    def decorate(function: Callable[..., Any]) -> MpiTask:
        require_function(function, "@mpi", "Options go by name: @mpi(ranks=4).")
        return MpiTask(_Ranks(function, layout, gather, launcher), parsed)

    return decorate(function) if function is not None else decorate


class MpiTask(Task[Any, Any]):
    """A function that ranks run together; made by `mpi`."""

    def __init__(self, function: _Ranks, options: TaskOptions) -> None:
        super().__init__(function, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plain function here, with a communicator of one's own."""
        return self.function.body(*args, **kwargs)  # type: ignore[attr-defined]  # it is of ranks

    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it on ranks, as a task of the active executor; see `exadask.tasks.Task.submit`.

        Raises
        ------
        InvalidRequest
            There is no mpi4py.
        """
        _require_mpi4py()
        return super().submit(*args, **kwargs)

    def with_options(self, **options: Any) -> MpiTask:
        """Return the same task with other options, ``ranks`` and what each asks for among them."""
        ranks: _Ranks = self.function  # type: ignore[assignment]  # what it was made of
        layout, parsed = parse_ranks(options, ranks.layout, self.options)
        return type(self)(_Ranks(ranks.body, layout, ranks.gather, ranks.launcher), parsed)


class _Ranks:
    """What starts the ranks, in the process of the task."""

    def __init__(
        self, function: Callable[..., Any], layout: Layout, gather: Gather, launcher: str | None
    ) -> None:
        self.body, self.layout = function, layout
        self.gather, self.launcher = gather, launcher
        self.__name__ = name_of(function)
        self.__module__ = getattr(function, "__module__", __name__)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__doc__ = getattr(function, "__doc__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = inside.current()
        gang = None if here is None else here.gang
        n_ranks = self.layout.ranks
        with ExitStack() as files:
            n_results = n_ranks if self.gather == "all" else 1
            results = [files.enter_context(_shared_file()) for _ in range(n_results)]
            problems = [] if gang else [files.enter_context(_shared_file()) for _ in range(n_ranks)]
            orders = {
                "call": cloudpickle.dumps((self.body, args, kwargs), protocol=5),
                "results": list(map(_path_of, results)),
                "problems": list(map(_path_of, problems)),
            }
            order = files.enter_context(_shared_file())
            order.write(pickle.dumps(orders))
            order.flush()
            words, environment = prefix(self.layout, self.launcher)
            environment["EXADASK_SYS_PATH"] = os.pathsep.join(sys.path)
            program = [sys.executable, "-X", "faulthandler", _RANK, _path_of(order)]
            exit_code, tail = _run([*words, *program], environment)
            if gang is not None and exit_code != 0:
                await_ends(Path(gang.folder))
            told = _told_in(Path(gang.folder)) if gang else map(_content_of, problems)
            for rank, content in enumerate(told):
                if content:
                    raise self._raised(rank, pickle.loads(content))
            missing = [rank for rank, file in enumerate(results) if not _size_of(file)]
            if exit_code != 0 or missing:
                raise RanksFailed(self.__name__, n_ranks, exit_code, tail)
            values = [pickle.loads(_content_of(file)) for file in results]
        return values if self.gather == "all" else values[0]

    def _raised(self, rank: int, problem: dict[str, Any]) -> BaseException:
        """Give what a rank raised, as if it had been raised here."""
        name, rank = self.__name__, problem.get("rank", rank)
        try:
            error = pickle.loads(problem["error"]) if problem["error"] is not None else None
        except Exception:  # the user's classes decide what unpickling raises
            error = None
        if problem["is_wrong_world"]:
            return InvalidRequest(f"task {name!r} cannot run:", str(error))
        if not isinstance(error, BaseException):
            kind, _, text = problem["summary"].partition(": ")
            error = RemoteError(name, kind, text, problem["traceback"])
        if hasattr(error, "add_note"):
            error.add_note(
                f"raised by rank {rank} of {self.layout.ranks}:\n{problem['traceback'].rstrip()}"
            )
        return error


def _require_mpi4py() -> None:
    if importlib.util.find_spec("mpi4py") is None:
        raise InvalidRequest(
            "functions on ranks need mpi4py, which is not installed.",
            "On a laptop: python -m pip install mpi4py mpich. At a site, with its MPI module "
            "loaded: python -m pip install --no-binary mpi4py mpi4py",
        )


def _run(words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command; give its exit code and the end of what it wrote to standard error."""
    process = subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    tail = Tail(process)
    return process.wait(), tail.text()


@contextmanager
def _shared_file() -> Iterator[IO[bytes]]:
    """Make a file of memory that other processes of this user can open, and that leaves nothing."""
    with os.fdopen(os.memfd_create("exadask-rank"), "w+b") as file:
        yield file


def _path_of(file: IO[bytes]) -> str:
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _told_in(folder: Path) -> Iterator[bytes]:
    """Give what ranks on several nodes say went wrong; those of others have been brought here."""
    for path in sorted(folder.glob(PROBLEMS)):
        yield path.read_bytes()


def _size_of(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _content_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
