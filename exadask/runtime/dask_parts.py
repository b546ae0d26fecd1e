"""Dask's scheduler and worker as exadask wants them: no open port, no noise."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import resource
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import distributed.scheduler
from distributed import Scheduler, Worker

_LOGGERS = ("distributed", "distributed.client")
_NOISY = ("distributed.worker", "distributed.scheduler")
_NO_NEWS = (
    *("TaskFailed(", "Could not find data", "failed to acquire keys"),
    "Failed to communicate with scheduler during heartbeat",  # the agent ends, and says so
)
_OPEN_FILES = 2**16
_MIN_THREADS = 256

SETTINGS: dict[str, Any] = {
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    # Dask wakes up 50 times a second to see whether it is late: 3 % of a core.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.cycle": "5s",
    "distributed.admin.system-monitor.interval": "2s",
    # Folders are nobody else's, and may lie where there are no locks.
    "distributed.worker.use-file-locking": False,
    # A pinned task cannot be stolen, and looking for one costs time for each.
    "distributed.scheduler.work-stealing": False,
    # Tasks are held in the state that this timeout is about.
    "distributed.scheduler.no-workers-timeout": None,
}
"""For every scheduler and every agent."""

NETWORK_SETTINGS: dict[str, Any] = SETTINGS | {
    # Dask counts every node that its walltime ends against the tasks there; we count ourselves.
    "distributed.scheduler.allowed-failures": 1_000_000,
    # A node whose power failed sends nothing, not even the end of its connection: the kernel gives
    # the connection up after this time.
    "distributed.comm.timeouts.tcp": "60s",
    # The last resort. Of 9,000 agents each sends a sign of life every 45 s only.
    "distributed.scheduler.worker-ttl": "300s",
    # Thousands of agents that join at the same time need several seconds in all.
    "distributed.comm.timeouts.connect": "60s",
}
"""For those that speak over a network."""


_is_small_graph = contextvars.ContextVar("exadask_small_graph", default=False)
_SMALL_GRAPH = 64
_to_thread = distributed.scheduler.offload


def _offload(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """Unpack and order a graph of a few tasks here: the way to a thread and back takes longer."""
    if not _is_small_graph.get():
        return _to_thread(function, *args, **kwargs)  # type: ignore[no-any-return]
    return _at_once(function, *args, **kwargs)


async def _at_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


distributed.scheduler.offload = _offload


class PromptScheduler(Scheduler):  # type: ignore[misc]  # distributed is untyped
    """A scheduler that takes graphs of a few tasks at once."""

    async def update_graph(self, *args: Any, keys: set[str], **kwargs: Any) -> None:
        """Take a graph."""
        token = _is_small_graph.set(len(keys) <= _SMALL_GRAPH)
        try:
            await super().update_graph(*args, keys=keys, **kwargs)
        finally:
            _is_small_graph.reset(token)


class PortlessScheduler(PromptScheduler):
    """A scheduler without a dashboard."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open no port."""


class PortlessWorker(Worker):  # type: ignore[misc]  # distributed is untyped
    """A worker without a dashboard."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open no port."""


def threads_for(cores: int) -> int:
    """How many tasks Dask may start on a node at once: the placement decides, never Dask."""
    return max(_MIN_THREADS, 8 * cores)


def allow_many_files() -> None:
    """Raise the soft limit of open files: large results and connections are one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep Dask from reporting on the user's terminal what exadask reports as errors."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _NOISY:
        logging.getLogger(name).addFilter(_is_news)
    try:
        yield
    finally:
        for name in _NOISY:
            logging.getLogger(name).removeFilter(_is_news)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what is said better elsewhere: by a future that failed, by whoever moves results."""
    return not any(text in record.getMessage() for text in _NO_NEWS)
