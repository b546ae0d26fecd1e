"""The one place that imports dask-jobqueue: its job templates, commands and number formats.

What is taken from dask-jobqueue: how a job script is put together, which command submits and which
cancels, how a job's id is found in the answer, how a system wants memory written. What is not: its
headers, whose lines it filters by substring and which know one node only, and its life cycle.
"""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from exadask.batch.model import AllocationRequest

_CONFIG_NAME = "exadask"
# Of these, None means "ask the configuration" to dask-jobqueue; all others are given explicitly.
_NOT_SAID = (
    "extra",
    "job-extra",
    "env-extra",
    "header-skip",
    "interface",
    "death-timeout",
    "local-directory",
    "log-directory",
)
_importing = threading.Lock()


class AllocationJob:
    """A job of dask-jobqueue with our header and our command; comes before one of its classes.

    Parameters
    ----------
    request : AllocationRequest
        The allocation.
    header : list of str
        Lines with the directives.
    command : str
        What the job runs.
    """

    job_header: str
    job_header_dict: dict[str, str]
    _command_template: str

    def __init__(self, request: AllocationRequest, header: list[str], command: str) -> None:
        # Not super().__init__: their headers read the environment and lsf.conf, and would be
        # thrown away.
        _module("core").Job.__init__(
            self,
            scheduler="",
            name=request.name,
            job_name=request.name,
            cores=1,
            memory=1,
            processes=1,
            nanny=False,
            worker_command="",
            worker_extra_args=[],
            job_extra_directives=[],
            job_script_prologue=[],
            job_directives_skip=[],
            shebang="#!/bin/bash",
            python="",
            config_name=_CONFIG_NAME,
        )
        self.job_header = "\n".join(header)
        self.job_header_dict = dict(_pair(line) for line in header)  # HTCondor's
        self._command_template = command


def render_job(class_name: str, request: AllocationRequest, header: list[str], command: str) -> str:
    """Write a job script by the template of dask-jobqueue.

    Parameters
    ----------
    class_name : str
        Which of its classes: ``SLURMJob``, ``PBSJob``, ..., or ``Job`` where it has none.
    request : AllocationRequest
        The allocation.
    header : list of str
        Lines with the directives.
    command : str
        What the job runs.

    Returns
    -------
    str
        The script.
    """
    script: str = job_class(class_name)(request, header, command).job_script()
    return script


@cache
def job_class(class_name: str) -> Any:
    """Make the class of our jobs that is built on one of dask-jobqueue's."""
    module = "core" if class_name == "Job" else class_name.removesuffix("Job").lower()
    base = getattr(_module(module), class_name)
    # core.Job's __init__ is abstract, and it has no name for its configuration
    members = {"__init__": AllocationJob.__init__, "config_name": _CONFIG_NAME}
    return type(f"Allocation{class_name}", (AllocationJob, base), members)


def submit_command(class_name: str) -> list[str]:
    """Give the command with which a class of dask-jobqueue submits."""
    return shlex.split(job_class(class_name).submit_command)


def cancel_command(class_name: str) -> list[str]:
    """Give the command with which a class of dask-jobqueue cancels."""
    return shlex.split(job_class(class_name).cancel_command)


def job_id_regexp(class_name: str) -> str:
    """Give the pattern by which a class of dask-jobqueue finds a job's id."""
    pattern: str = job_class(class_name).job_id_regexp
    return pattern


def format_bytes(system: str, n_bytes: int) -> str:
    """Write an amount of memory as a batch system wants it, rounded up to whole MiB.

    Parameters
    ----------
    system : {"slurm", "pbs", "lsf"}
        The batch system; LSF gets megabytes, with the unit.
    n_bytes : int
        Memory [bytes].

    Returns
    -------
    str
        The amount.

    Examples
    --------
    >>> format_bytes("slurm", 2**33), format_bytes("pbs", 2**34), format_bytes("lsf", 10**9)
    ('8G', '16GB', '1000MB')
    >>> format_bytes("slurm", 494000 * 2**20)
    '494000M'
    """
    if system == "lsf":
        return f"{_module('lsf').lsf_format_bytes_ceil(n_bytes, lsf_units='mb')}MB"
    if n_bytes % 2**30:  # dask-jobqueue rounds up to whole GiB: more than a node may have
        return f"{-(-n_bytes // 2**20)}{'M' if system == 'slurm' else 'MB'}"
    write: Callable[[int], str] = getattr(_module(system), f"{system}_format_bytes_ceil")
    return write(n_bytes)


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name.strip(), value.strip()


def _module(name: str) -> Any:
    """Import a module of dask-jobqueue, in any thread, without its side effects.

    It replaces the handler of SIGINT, fails outside the main thread, and writes a file into the
    user's home.
    """
    full_name = f"dask_jobqueue.{name}"
    with _importing:
        if full_name not in sys.modules:
            with _signals_and_home_left_alone():
                importlib.import_module(full_name)
        _ignore_configuration()
    return sys.modules[full_name]


@contextmanager
def _signals_and_home_left_alone() -> Iterator[None]:
    """Let nothing that this thread imports install a signal handler, or write its settings.

    dask-jobqueue 0.9.0 makes Ctrl-C end the process when it is imported, and cannot be imported
    outside the main thread because of that; and it leaves ``~/.config/dask/jobqueue.yaml`` behind.
    """
    import dask

    install, importer = signal.signal, threading.get_ident()

    def ignore(number: int, handler: Any) -> Any:
        is_importer = threading.get_ident() == importer
        return signal.getsignal(number) if is_importer else install(number, handler)

    ensure_file = dask.config.ensure_file
    signal.signal = ignore  # type: ignore[assignment]  # for this import only
    dask.config.ensure_file = lambda *_, **__: None
    try:
        yield
    finally:
        signal.signal, dask.config.ensure_file = install, ensure_file


@cache
def _ignore_configuration() -> None:
    """Answer dask-jobqueue's questions to the configuration before a user's file can.

    Values that the user has for a batch system are for clusters of dask-jobqueue, and must not
    change our scripts: our jobs have a section of their own, in which nothing is said.
    """
    import dask

    dask.config.update_defaults({"jobqueue": {_CONFIG_NAME: dict.fromkeys(_NOT_SAID)}})
