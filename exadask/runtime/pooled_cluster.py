"""A cluster whose nodes come from pools: with the scheduler here, or one that stands elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.security import Security
from distributed.utils import LoopRunner

from exadask.config import Config
from exadask.core.fleet_report import FleetSummary
from exadask.errors import ClusterUnreachable
from exadask.pool import Pool
from exadask.resources import NodeShape
from exadask.runtime.bundling import Bundler
from exadask.runtime.certificates import load_certificates
from exadask.runtime.dask_parts import quiet_logs
from exadask.runtime.gateway import DaskGateway
from exadask.runtime.run_folder import EarlierRun, RunFolder
from exadask.runtime.scheduler_host import SchedulerHost

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = "20s"


class _Connected:
    """A client of a scheduler with pools."""

    gateway: DaskGateway
    bundler: Bundler
    client: Client
    run: RunFolder

    def __init__(self) -> None:
        self._cleanup = contextlib.ExitStack()
        self._cleanup.enter_context(quiet_logs())
        self._runner = LoopRunner(asynchronous=False)
        self._runner.start()
        self._cleanup.callback(self._runner.stop)

    def _connect(self, address: str, security: Security) -> None:
        try:
            self.client = Client(
                address,
                loop=self._runner.loop,
                security=security,
                timeout=_CONNECT_TIMEOUT,
                direct_to_workers=True,  # data need not pass through the scheduler
                set_as_default=True,
            )
        except (OSError, ValueError) as error:  # a ValueError: that is no address
            raise ClusterUnreachable(
                address,
                str(error.__cause__ or error) or f"no answer in {_CONNECT_TIMEOUT}",
                f"Does it still run, on the host that {self.run.path}/cluster.json names?",
            ) from error
        self.gateway = DaskGateway(self.client)
        self.bundler = Bundler(self.gateway)
        terms: dict[str, Any] = self.gateway.ask("exadask_terms")
        self.gateway.offers, self.dashboard = terms["offers"], terms["dashboard"]

    @property
    def shapes(self) -> dict[str, NodeShape]:
        """The nodes that are connected now, and what each offers; none if that is not known."""
        shapes: dict[str, NodeShape] = {}
        with contextlib.suppress(ClusterUnreachable):
            shapes = self.gateway.ask("exadask_nodes")
        return shapes

    def _disconnect(self) -> None:
        if hasattr(self, "gateway"):
            self._runner.run_sync(self._say_goodbye)
            self.client.close()

    async def _say_goodbye(self) -> None:
        self.bundler.settle()
        self.bundler.close("the executor was shut down")


class PooledCluster(_Connected):
    """A scheduler in a thread of this process, with pools of allocations.

    Parameters
    ----------
    pools : sequence of Pool
        What it may ask for.
    config : Config
        Limits and intervals.
    run : EarlierRun, optional
        The run that goes on. None: a new one.
    """

    standing = None

    def __init__(
        self, pools: Sequence[Pool], config: Config, run: EarlierRun | None = None
    ) -> None:
        super().__init__()
        try:
            earlier = run or EarlierRun(RunFolder.create(Path(config.run_folder)), 0.0)
            self.run = earlier.folder
            self.host = SchedulerHost(pools, config, *earlier)
            self._runner.run_sync(self.host.start)
            assert self.host.scheduler is not None
            self._connect(self.host.scheduler.address, self.host.security)
        except BaseException:
            self.close()
            raise

    def summary(self) -> FleetSummary:
        """Say how the allocations are; also when all is closed."""
        return self.host.allocator.summary()

    def journal_folder(self) -> RunFolder:
        """Give the folder where what happens is written."""
        return self.run

    def close(self) -> None:
        """Give all allocations back; returns when their jobs are ended."""
        try:
            self._disconnect()
        finally:
            try:
                if hasattr(self, "host"):
                    self._runner.run_sync(self.host.close)
            finally:
                self._cleanup.close()


class AttachedCluster(_Connected):
    """A scheduler that stands elsewhere, and stays when this session ends.

    Parameters
    ----------
    run : RunFolder
        The folder of its run.
    """

    summary = None  # the standing scheduler looks after the allocations

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.run = run
        try:
            facts = run.published()
            self._connect(facts["address"], load_certificates(run.tls))
        except BaseException:
            self.close()
            raise

    @property
    def standing(self) -> RunFolder:
        """The run of the scheduler."""
        return self.run

    def journal_folder(self) -> RunFolder:
        """Give this session a folder of its own: each process writes its own journal."""
        return RunFolder.create(self.run.path / "sessions", is_latest=False)

    def close(self) -> None:
        """Leave; what this session has submitted and not fetched is dropped."""
        try:
            self._disconnect()
        finally:
            self._cleanup.close()
