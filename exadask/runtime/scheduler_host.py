"""A scheduler that listens for the agents of allocations, and all that belongs to it.

It lives where its owner puts it: in the user's process on a login node, on the first node of an
allocation, or in a process of its own that outlives sessions.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import socket
from collections.abc import Sequence
from typing import Any

import dask
from distributed import Scheduler
from distributed.security import Security

import exadask
from exadask.config import Config
from exadask.errors import InvalidRequest
from exadask.pool import Pool
from exadask.resources import NodeShape
from exadask.runtime.allocator import Allocator
from exadask.runtime.certificates import create_certificates
from exadask.runtime.dask_parts import NETWORK_SETTINGS, PortlessScheduler, allow_many_files
from exadask.runtime.depot import Depot
from exadask.runtime.deputies import Deputies
from exadask.runtime.node_facts import address_of
from exadask.runtime.questions import answered
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.scheduler_plugin import HoldThenPlace

_LOOPBACK = "127.0.0.1"


class SchedulerHost:
    """A scheduler with pools; one event loop owns it.

    Parameters
    ----------
    pools : sequence of Pool
        What it may ask for.
    config : Config
        Limits and intervals.
    run : RunFolder
        Where its files are.
    spent_node_s : float
        What earlier allocations of a resumed run did cost [node-seconds].
    """

    def __init__(
        self, pools: Sequence[Pool], config: Config, run: RunFolder, spent_node_s: float = 0.0
    ) -> None:
        _check_pools(pools)
        self._pools, self._config, self.run = pools, config, run
        self._spent_node_s = spent_node_s
        self._cleanup = contextlib.ExitStack()
        self.scheduler: Scheduler | None = None

    async def start(self) -> None:
        """Listen, and tell in the run folder where.

        Raises
        ------
        InvalidRequest
            There is no such network interface.
        RunFolderError
            The run folder cannot be written.
        """
        allow_many_files()
        host = own_host(self._pools)
        with self.run.being_written():
            self.security: Security = create_certificates(self.run.tls)
            self.run.depot.mkdir(mode=0o700)
        settings = NETWORK_SETTINGS | {"distributed.scheduler.http.routes": _routes(self._config)}
        self._cleanup.enter_context(dask.config.set(settings))
        with self.run.being_written():  # Dask makes folders in the depot
            self.scheduler = await self._listen(host)
        self.plugin = HoldThenPlace(self._config.reserve_after_s)
        self.scheduler.add_plugin(self.plugin)
        await self.plugin.start(self.scheduler)
        self.depot = Depot(self.scheduler, self.run.depot, self._config.depot_bytes)
        self.allocator = Allocator(
            self._pools,
            self._config,
            self.run,
            self.scheduler,
            self.plugin,
            self.depot,
            self._spent_node_s,
        )
        self.deputies = Deputies(self.scheduler, self.plugin, self.run)
        self.scheduler.handlers |= {
            "exadask_terms": answered(self.terms),
            "exadask_nodes": answered(self.shapes),
            "exadask_plan": answered(self.allocator.plan),
            "exadask_scale": answered(self.allocator.scale),
            "exadask_summary": answered(self.allocator.summary),
        }
        await self.allocator.start()
        with self.run.being_written():
            self.run.publish(self._facts())

    async def close(self) -> None:
        """Give everything back; returns when the jobs are ended, or have been told to."""
        try:
            if hasattr(self, "deputies"):
                await self.deputies.close()
            if hasattr(self, "allocator"):
                await self.allocator.close()
            if hasattr(self, "depot"):
                await self.depot.close()
            if self.scheduler is not None:
                await self.scheduler.close()
        finally:
            self.run.close()
            self._cleanup.close()

    def shapes(self) -> dict[str, NodeShape]:
        """Say what each connected node offers."""
        return {str(name): node.shape for name, node in self.plugin.placement.nodes.items()}

    def terms(self) -> dict[str, Any]:
        """Say what clients must know: what may be asked for, and how to look at it."""
        return {"offers": self.allocator.offers(), "dashboard": self.dashboard}

    @property
    def dashboard(self) -> str | None:
        """How the owner reaches the dashboard; None if there is none."""
        if not hasattr(self.scheduler, "dashboard_url"):
            return None
        port, here = self.scheduler.dashboard_port, socket.gethostname()  # type: ignore[union-attr]  # it has one
        tunnel = f"ssh -N -L {port}:localhost:{port} {getpass.getuser()}@{here}"
        return f"{self.scheduler.dashboard_url} (from elsewhere, first: {tunnel})"  # type: ignore[union-attr]

    async def _listen(self, host: str | None) -> Scheduler:
        kind: Any = PortlessScheduler
        options: dict[str, Any] = {"dashboard": False}
        if self._config.dashboard and importlib.util.find_spec("bokeh") is not None:
            from exadask.runtime.dashboard import GuardedScheduler

            kind, options = GuardedScheduler, {"dashboard": True}
        return await kind(
            protocol="tls://",
            host=host,
            port=0,
            security=self.security,
            local_directory=str(self.run.depot),
            **options,
        )

    def _facts(self) -> dict[str, Any]:
        assert self.scheduler is not None
        return {
            "address": self.scheduler.address,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": exadask.__version__,
            "pools": [pool.name for pool in self._pools],
        }


def _check_pools(pools: Sequence[Pool]) -> None:
    names = [pool.name for pool in pools]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not names or doubled:
        raise InvalidRequest(
            f"the pools are called {names}.", "Give at least one, and each a name of its own."
        )
    for pool in pools:
        if pool.batch == "local" and pool.max_nodes > 1 and pool.launcher in (None, "none"):
            raise InvalidRequest(
                f"pool {pool.name!r} asks for {pool.max_nodes} nodes, and local is one machine.",
                "Use max_allocations= for more agents on it, or say which batch= system there is.",
            )


def own_host(pools: Sequence[Pool]) -> str | None:
    """Choose where the scheduler listens; None leaves it to Dask: the way to the outside."""
    for pool in pools:
        if pool.scheduler_interface is not None:
            return address_of(pool.scheduler_interface)
    if all(pool.batch == "local" or pool.psij_executor == "local" for pool in pools):
        return _LOOPBACK
    for pool in pools:
        if pool.interface is not None:
            with contextlib.suppress(InvalidRequest):  # a login node need not have it
                return address_of(pool.interface)
    return None


def _routes(config: Config) -> list[str]:
    default: list[str] = dask.config.get("distributed.scheduler.http.routes")
    return default if config.dashboard else []
