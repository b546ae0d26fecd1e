"""What there is on a machine: facts for `exadask.runtime.checks`, gathered where they are true."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from exadask.batch.launchers import LAUNCHERS, launcher_name
from exadask.batch.model import JobId
from exadask.batch.registry import batch_system
from exadask.errors import ExadaskError, InvalidRequest, QueryFailed
from exadask.pool import Pool
from exadask.resources import NodeShape
from exadask.runtime.backends import backend_of, run_command
from exadask.runtime.dask_parts import allow_many_files
from exadask.runtime.detection import detect_node
from exadask.runtime.node_facts import interfaces
from exadask.runtime.posting import with_tuples
from exadask.runtime.requests import request_for

PACKAGES = (
    *("exadask", "dask", "distributed", "cloudpickle", "dask-jobqueue", "cryptography", "psutil"),
    "numpy",
)
_ANYBODY = 0o077
_LOCAL_PROGRAMS = ("bash", "timeout")
_ANY_JOB = JobId("1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder, and whether it can be used.

    Parameters
    ----------
    path : str
        Where it is.
    problem : str
        Why nothing private can be made in it; empty if it can.
    free_bytes : int, optional
        Free space of its file system, quotas not counted [bytes].
    file_system : str
        Kind of file system.
    """

    path: str
    problem: str = ""
    free_bytes: int | None = None
    file_system: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """A machine, as a process of exadask sees it.

    Parameters
    ----------
    host, python : str
        Its name, and the version of this interpreter.
    packages : mapping of str to (str or None)
        Their versions; None where one is not installed.
    open_files : int
        Files and connections that a process may have open [descriptors].
    interfaces : mapping of str to str
        Network interfaces and their IPv4 addresses.
    shape : NodeShape
        What it offers to tasks.
    n_affinity, n_machine : int
        Cores that this process may use, and cores of the machine [hardware threads].
    has_memfd : bool
        Whether memory can be shared between processes by file descriptors.
    temporary : Folder
        Where temporary files go.
    """

    host: str
    python: str
    packages: Mapping[str, str | None]
    open_files: int
    interfaces: Mapping[str, str]
    shape: NodeShape
    n_affinity: int
    n_machine: int
    has_memfd: bool
    temporary: Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What this machine knows about a pool.

    Parameters
    ----------
    programs : mapping of str to (str or None)
        The batch system's commands, and where they are.
    problem : str
        Why the batch system cannot be used; empty if it answers.
    answered_s : float
        How long its answer took [s].
    shape : NodeShape, optional
        What it says of the nodes.
    launcher : str
        What starts agents on the nodes.
    launcher_problem : str
        Why there is none.
    launcher_path : str, optional
        Where it is on this machine.
    python : str
        The interpreter of the nodes.
    python_problem : str
        Why it cannot be used, as far as this machine sees it.
    """

    programs: Mapping[str, str | None] = field(default_factory=dict)
    problem: str = ""
    answered_s: float = 0.0
    shape: NodeShape | None = None
    launcher: str = "none"
    launcher_problem: str = ""
    launcher_path: str | None = None
    python: str = sys.executable
    python_problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What the probe found on a node.

    Parameters
    ----------
    machine : MachineFacts
        The node; its shape is what an agent would offer.
    n_driver_gpus : int
        GPUs that their driver shows [GPUs].
    n_granted : int, optional
        Cores that the batch system says it gave [cores].
    folder, scratch, home : Folder
        The run folder, the fast local folder, and the home of the user.
    launcher, launcher_path : str, optional
        The program that starts agents on several nodes, if one is needed, and where it is here.
    rank_launcher : str
        What would start the ranks of an MPI program here; empty if nothing can.
    rank_problem, rank_advice : str
        Why not, and what to do about it.
    interface_problem, connection_problem, callback_problem : str
        What is wrong with the node's network interface, with the way from the node to the
        scheduler's machine, and with the way back; empty if nothing is.
    own_address : str
        The address under which others reach the node.
    clock_ahead_s : float, optional
        By how much the node's clock is ahead of the scheduler's machine [s].
    round_trip_s : float, optional
        Shortest time of a question and its answer [s].
    """

    machine: MachineFacts
    n_driver_gpus: int
    n_granted: int | None
    folder: Folder
    scratch: Folder
    home: Folder
    launcher: str | None = None
    launcher_path: str | None = None
    rank_launcher: str = ""
    rank_problem: str = ""
    rank_advice: str = ""
    interface_problem: str = ""
    own_address: str = ""
    connection_problem: str = ""
    callback_problem: str = ""
    clock_ahead_s: float | None = None
    round_trip_s: float | None = None

    def as_json(self) -> str:
        """Write it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NodeReport:
        """Read it again.

        Raises
        ------
        ValueError, TypeError, KeyError
            It is cut off, or comes from another version of exadask.
        """
        facts = with_tuples(json.loads(text))
        machine = facts["machine"]
        machine["shape"] = NodeShape(**machine["shape"])
        machine["temporary"] = Folder(**machine["temporary"])
        folders = {name: Folder(**facts[name]) for name in ("folder", "scratch", "home")}
        return cls(**facts | folders | {"machine": MachineFacts(**machine)})


def survey_machine(shape: NodeShape | None = None) -> MachineFacts:
    """Look at this machine.

    Parameters
    ----------
    shape : NodeShape, optional
        What it offers, where that is known; by default it is detected.

    Raises
    ------
    InvalidQuantity, InvalidRequest
        An environment variable that declares a part of it makes no sense.
    """
    return MachineFacts(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        open_files=_open_files(),
        interfaces=interfaces(),
        shape=shape or detect_node(),
        n_affinity=_n_affinity(),
        n_machine=os.cpu_count() or 1,
        has_memfd=_has_memfd(),
        temporary=survey_folder(Path(tempfile.gettempdir())),
    )


def survey_folder(path: Path) -> Folder:
    """Try to make something private in a folder; removes it again."""
    try:
        made = tempfile.mkdtemp(prefix=".exadask-doctor-", dir=path)
        mode = stat.S_IMODE(Path(made).stat().st_mode)
        Path(made).rmdir()
        free_bytes = shutil.disk_usage(path).free
    except OSError as error:
        return Folder(path=str(path), problem=error.strerror or str(error))
    problem = f"others may enter what is made there (mode {mode:03o})" if mode & _ANYBODY else ""
    return Folder(
        path=str(path), problem=problem, free_bytes=free_bytes, file_system=_file_system(path)
    )


def survey_run_folder(parent: Path) -> Folder:
    """Try to make the folder in which runs are kept; removes what was not there before."""
    parent = parent.absolute()
    made = [one for one in (parent, *parent.parents) if not one.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return survey_folder(parent.resolve())
    except (FileExistsError, NotADirectoryError):
        return Folder(path=str(parent), problem="a file is in the way")
    except OSError as error:
        return Folder(path=str(parent), problem=error.strerror or str(error))
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # not made, or in use meanwhile
                one.rmdir()


async def survey_pool(pool: Pool, runs: Path) -> PoolFacts:
    """Look at what a pool needs on this machine; asks its batch system one question.

    Parameters
    ----------
    pool : Pool
        The pool.
    runs : Path
        Where runs are kept; nothing is written there.
    """
    facts = dict[str, Any](_python_facts(pool)) | _launcher_facts(pool, runs)
    if pool.batch == "psij":
        problem = await asyncio.to_thread(_psij_problem, pool)
        return PoolFacts(**facts, problem=problem, shape=await backend_of(pool).node_shape(pool))
    if pool.batch == "local":
        programs = {name: shutil.which(name) for name in _LOCAL_PROGRAMS}
        return PoolFacts(**facts, programs=programs, shape=detect_node())
    system = batch_system(pool.batch)
    request = request_for(pool, runs, name="doctor", nodes=1, walltime_s=pool.walltime_s)
    question = system.shape_argv(pool)
    needed = [system.submit_argv(request), system.status_argv([_ANY_JOB])]
    needed += [system.cancel_argv([_ANY_JOB]), question or []]
    names = [_program(argv) for argv in needed if argv]
    programs = {name: shutil.which(name) for name in names}
    if not all(programs.values()):
        return PoolFacts(**facts, programs=programs)
    answer = await _answer(pool, question)
    return PoolFacts(**facts, programs=programs, **answer)


async def _answer(pool: Pool, question: list[str] | None) -> dict[str, Any]:
    """Ask what the nodes have, or of a job that need not exist."""
    system = batch_system(pool.batch)
    began_s = time.monotonic()
    shape = None
    try:
        argv = question or system.status_argv([_ANY_JOB])
        reply = await run_command(argv, {**os.environ, **system.environment})
        if question is None:
            system.parse_status(reply, [_ANY_JOB])
        elif reply.exit_code:
            words = " ".join((reply.stderr.strip() or reply.stdout.strip()).split())
            return {"problem": f"`{' '.join(argv)}` failed: {words[:200]}"}
        else:
            shape = system.parse_shape(reply, pool)
    except QueryFailed as error:
        return {"problem": str(error)}
    return {"answered_s": time.monotonic() - began_s, "shape": shape}


def _program(argv: list[str]) -> str:
    """Name the program of a command; some are given to a shell, with the program as its $0."""
    return argv[3] if argv[:2] == ["sh", "-c"] else argv[0]


def _python_facts(pool: Pool) -> dict[str, str]:
    python = pool.python or sys.executable
    if "/" not in python:  # the setup of the pool decides where it is
        return {"python": python, "python_problem": "" if shutil.which(python) else "unseen"}
    path = Path(python)
    problem = ""
    if not path.exists():
        problem = "does not exist"
    elif not path.is_file() or not os.access(path, os.X_OK):
        problem = "is not a program"
    return {"python": python, "python_problem": problem}


def _launcher_facts(pool: Pool, runs: Path) -> dict[str, str | None]:
    try:
        name = launcher_name(
            request_for(pool, runs, name="doctor", nodes=pool.max_nodes, walltime_s=60.0)
        )
    except InvalidRequest as error:
        return {"launcher_problem": str(error)}
    words = LAUNCHERS[name].words
    return {"launcher": name, "launcher_path": shutil.which(words[0]) if words else None}


def _psij_problem(pool: Pool) -> str:
    from exadask.runtime.psij_backend import import_psij

    try:
        import_psij()
    except ExadaskError as error:
        return str(error)
    from psij import JobExecutor

    known = sorted(JobExecutor.get_executor_names())
    if pool.psij_executor not in known:
        return f"PSI/J has no executor {pool.psij_executor!r}; it has {', '.join(known)}"
    return ""


def _version(package: str) -> str | None:
    """Give the version of a package that can be imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        is_here = importlib.util.find_spec(package.replace("-", "_")) is not None
        return "unknown" if is_here else None


def _open_files() -> int:
    """How many files a process can have open after `allow_many_files`."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_many_files()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize


def _n_affinity() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _has_memfd() -> bool:
    if not hasattr(os, "memfd_create"):
        return False
    try:
        os.close(os.memfd_create("exadask-doctor"))
    except OSError:  # an old kernel, or forbidden in this container
        return False
    return True


def _file_system(path: Path) -> str:
    resolved = path.resolve()
    mounts = {one.mountpoint: one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[str(at)] for at in (resolved, *resolved.parents) if str(at) in mounts), "")
