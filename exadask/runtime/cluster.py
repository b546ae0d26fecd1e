"""A whole cluster inside this process: scheduler, nodes and client, and no port opened."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence

import dask
from distributed import Client, Scheduler, Worker
from distributed.utils import LoopRunner

from exadask.config import Config
from exadask.core.events import Offer
from exadask.resources import NodeShape
from exadask.runtime.bundling import Bundler
from exadask.runtime.dask_parts import (
    SETTINGS,
    PortlessScheduler,
    PortlessWorker,
    allow_many_files,
    quiet_logs,
    threads_for,
)
from exadask.runtime.gateway import DaskGateway
from exadask.runtime.node_agent import NodeAgent
from exadask.runtime.scheduler_plugin import HoldThenPlace
from exadask.staging import VARIABLE as STAGE

_HERE = "this process"
_SETTINGS = SETTINGS | {"distributed.scheduler.http.routes": []}


class EmbeddedCluster:
    """A scheduler and the agents of one or more nodes in a thread of this process.

    Parameters
    ----------
    shapes : sequence of NodeShape
        One for each node.
    config : Config
        Limits and intervals.
    """

    summary = None  # there are no allocations
    standing = None

    def __init__(self, shapes: Sequence[NodeShape], config: Config) -> None:
        allow_many_files()
        self._config = config
        self._scratch = tempfile.mkdtemp(prefix=f"exadask-{os.getpid()}-")
        self._serial = itertools.count()
        self.shapes: dict[str, NodeShape] = {}
        self._workers: dict[str, Worker] = {}
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        self._cleanup.enter_context(quiet_logs())
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
        self.bundler = Bundler(self.gateway)
        self.gateway.offers = self._offers()

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

    def journal_folder(self) -> None:
        """Nothing is written before there is a journal: it makes a folder of its own."""

    def _offers(self) -> list[Offer]:
        n_nodes = len(self.shapes)
        return [Offer(pool=_HERE, shape=one, nodes=n_nodes) for one in self.shapes.values()]

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
        self._scheduler = await PortlessScheduler(
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
        told = {STAGE: f"{self._scratch}/staged"}
        self._workers[name] = worker = PortlessWorker(
            self.address,
            name=name,
            protocol="inproc://",
            nthreads=threads_for(shape.cores),
            memory_limit=0,
            local_directory=self._scratch,
            plugins=[NodeAgent(shape, self._config, self._scratch, told=told)],
            dashboard=False,
        )
        worker.batched_stream.interval = 0.0005
        await worker
        if hasattr(self, "gateway"):
            self.gateway.offers = self._offers()

    async def _lose_node(self, name: str) -> None:
        worker = self._workers.pop(name)
        self.shapes.pop(name)
        worker.batched_stream.abort()
        await worker.close(nanny=False, executor_wait=False)
        self.gateway.offers = self._offers()

    async def _disconnect(self) -> None:
        self.bundler.settle()
        self.bundler.close("the executor was shut down")

    async def _stop(self) -> None:
        for worker in self._workers.values():
            await worker.close(nanny=False, executor_wait=False)
        await self._scheduler.close()
