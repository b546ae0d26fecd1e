"""Dask's futures with a real resource scheduler.

Ordinary functions, shell commands and MPI programs run as futures, each with exactly the cores,
GPUs, memory and time that it asks for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exadask import errors
    from exadask.active import attach, broadcast
    from exadask.commands import CommandResult as CommandResult
    from exadask.commands import command
    from exadask.executor import Executor
    from exadask.files import File
    from exadask.future import Future
    from exadask.inside import checkpoint_dir
    from exadask.inside import on_notice as on_notice
    from exadask.inside import time_left as time_left
    from exadask.mpi_task import mpi
    from exadask.pool import Pool
    from exadask.resources import NodeShape, Resources
    from exadask.services import http as http
    from exadask.services import service as service
    from exadask.tasks import Task as Task
    from exadask.tasks import task
    from exadask.waiting import as_completed, wait

__version__ = "0.1.0"

__all__ = [
    "Executor",
    "File",
    "Future",
    "NodeShape",
    "Pool",
    "Resources",
    "as_completed",
    "attach",
    "broadcast",
    "checkpoint_dir",
    "command",
    "errors",
    "mpi",
    "task",
    "wait",
]

_HOME = {
    "CommandResult": "exadask.commands",
    "Executor": "exadask.executor",
    "File": "exadask.files",
    "Future": "exadask.future",
    "NodeShape": "exadask.resources",
    "Pool": "exadask.pool",
    "Resources": "exadask.resources",
    "Task": "exadask.tasks",
    "as_completed": "exadask.waiting",
    "attach": "exadask.active",
    "broadcast": "exadask.active",
    "checkpoint_dir": "exadask.inside",
    "command": "exadask.commands",
    "http": "exadask.services",
    "mpi": "exadask.mpi_task",
    "on_notice": "exadask.inside",
    "service": "exadask.services",
    "task": "exadask.tasks",
    "time_left": "exadask.inside",
    "wait": "exadask.waiting",
}


def __getattr__(name: str) -> Any:
    """Import what is used when it is used: ``import exadask`` itself must be fast."""
    if name == "errors":
        return importlib.import_module("exadask.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'exadask' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
