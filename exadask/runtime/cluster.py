"""A whole cluster inside this process: scheduler, nodes and client, and no port opened."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import dask
from distributed import Client, Scheduler, Worker
from distributed.utils import LoopRunner

from exadask.config import Config
from exadask.resources import NodeShape
from exadask.runtime.gateway import DaskGateway
from exadask.runtime.node_agent import NodeAgent
from exadask.runtime.scheduler_plugin import HoldThenPlace

_LOGGERS = ("distributed", "distributed.client")
_FAILURES = "distributed.worker"
_MIN_THREADS = 256
_OPEN_FILES = 2**16
_SETTINGS = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.no-workers-timeout": None,
}


class _PortlessScheduler(Scheduler):  # type: ignore[misc]  # distributed is untyped
    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open no port: there is no dashboard in this process."""


class _PortlessWorker(Worker):  # type: ignore[misc]  # distributed is untyped
    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Open no port: there is no dashboard in this process."""


class EmbeddedCluster:
    """A scheduler and the agents of one or more nodes in a thread of this process.

    Parameters
    ----------
    shapes : sequence of NodeShape
        One for each node.
    config : Config
        Limits and intervals.
    """

    def __init__(self, shapes: Sequence[NodeShape], config: Config) -> None:
        _allow_many_files()
        self._config = config
        self._scratch = tempfile.mkdtemp(prefix=f"exadask-{os.getpid()}-")
        self._serial = itertools.count()
        self.shapes: dict[str, NodeShape] = {}
        self._workers: dict[str, Worker] = {}
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        self._cleanup.enter_context(_quiet_logs())
        self._runner = LoopRunner(asynchronous=False)
        self._runner.start()
        self._cleanup.callback(self._runner.stop)
        try:
            self._start(shapes)
        except BaseException:
            self.close()
            raise

    def _start(self, shapes: Sequence[NodeShape]) -> None:
        with dask.config.set(_SETTINGS):
            self._runner.run_sync(self._start_scheduler)
            for shape in shapes:
                self.add_node(shape)
        sys.path[:] = [entry for entry in sys.path if not entry.startswith(self._scratch)]
        self.client = Client(self.address, loop=self._runner.loop, set_as_default=True)
        self.gateway = DaskGateway(self.client)
        self.gateway.shapes = list(self.shapes.values())

    @property
    def address(self) -> str:
        """Where the scheduler listens: within this process only."""
        return str(self._scheduler.address)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, for tests and the monitor."""
        return self._scheduler

    @property
    def plugin(self) -> HoldThenPlace:
        """What places tasks."""
        return self._plugin

    def add_node(self, shape: NodeShape) -> str:
        """Let a node join; returns its name."""
        name = f"node-{next(self._serial)}"
        self._runner.run_sync(self._add_node, name, shape)
        return name

    def lose_node(self, name: str) -> None:
        """Let a node die as if its power had failed: without a farewell."""
        self._runner.run_sync(self._lose_node, name)

    def close(self) -> None:
        """End everything; returns when no process of it is left."""
        try:
            if hasattr(self, "gateway"):
                self._runner.run_sync(self._disconnect)
                self.client.close()
            if hasattr(self, "_scheduler"):
                self._runner.run_sync(self._stop)
        finally:
            self._cleanup.close()

    async def _start_scheduler(self) -> None:
        self._scheduler = await _PortlessScheduler(
            protocol="inproc://",
            host=None,
            port=0,
            dashboard=False,
            local_directory=self._scratch,
        )
        self._plugin = HoldThenPlace(self._config.reserve_after_s)
        self._scheduler.add_plugin(self._plugin)
        await self._plugin.start(self._scheduler)

    async def _add_node(self, name: str, shape: NodeShape) -> None:
        self.shapes[name] = shape
        self._workers[name] = worker = _PortlessWorker(
            self.address,
            name=name,
            protocol="inproc://",
            nthreads=max(_MIN_THREADS, 8 * shape.cores),
            memory_limit=0,
            local_directory=self._scratch,
            plugins=[NodeAgent(shape, self._config, self._scratch)],
            dashboard=False,
        )
        worker.batched_stream.interval = 0.0005
        await worker
        if hasattr(self, "gateway"):
            self.gateway.shapes = list(self.shapes.values())

    async def _lose_node(self, name: str) -> None:
        worker = self._workers.pop(name)
        self.shapes.pop(name)
        worker.batched_stream.abort()
        await worker.close(nanny=False, executor_wait=False)
        self.gateway.shapes = list(self.shapes.values())

    async def _disconnect(self) -> None:
        await self.gateway.settle()
        self.gateway.close("the executor was shut down")

    async def _stop(self) -> None:
        for worker in self._workers.values():
            await worker.close(nanny=False, executor_wait=False)
        await self._scheduler.close()


def _allow_many_files() -> None:
    """Raise the soft limit of open files: every large result in memory is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep Dask from reporting on the user's terminal what exadask reports as errors."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(_FAILURES).addFilter(_is_news)
    try:
        yield
    finally:
        logging.getLogger(_FAILURES).removeFilter(_is_news)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what Dask says about a task that failed: its future says it better."""
    return "TaskFailed(" not in record.getMessage()
