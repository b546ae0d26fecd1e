"""Where results go when the nodes that hold them are given back.

Dask would compute them again. So before a node goes, what only it holds moves to a node that stays,
or to the depot: a worker in the scheduler's own process that runs nothing, keeps some results in
memory and the rest in the run folder.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler
from distributed.scheduler import WorkerState

from exadask.runtime.dask_parts import PortlessWorker

logger = logging.getLogger(__name__)

DEPOT = "exadask-depot"
_ATTEMPTS = 3
_BATCH_BYTES = 2**28
_TARGET_FRACTION = 0.6  # of the memory limit: Dask counts from there on as "to be spilled"


class Depot:
    """Keeps results whose nodes have gone; started when it is first needed.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Whose results.
    folder : Path
        Where what does not fit in memory goes; it is there.
    memory_bytes : int
        How much stays in memory [bytes].
    """

    def __init__(self, scheduler: Scheduler, folder: Path, memory_bytes: int) -> None:
        self._scheduler, self._folder, self._memory_bytes = scheduler, folder, memory_bytes
        self._worker: PortlessWorker | None = None

    @property
    def address(self) -> str | None:
        """Where it listens; None before it is needed."""
        return None if self._worker is None else str(self._worker.address)

    async def evacuate(self, leaving: Collection[str], staying: Collection[str]) -> bool:
        """Move what only leaving nodes hold, and somebody wants, to where it can stay.

        Parameters
        ----------
        leaving : collection of str
            Addresses of the nodes that are given back.
        staying : collection of str
            Addresses of nodes that stay a good while.

        Returns
        -------
        bool
            Whether nothing is left that only they hold.
        """
        for _ in range(_ATTEMPTS):
            for batch in list(_batches(self._workers(leaving))):
                recipient = await self._recipient(staying)
                await self._scheduler.gather_on_worker(recipient, batch)
            # What is still there was released meanwhile, or has just been made, or resists.
            if not any(_batches(self._workers(leaving))):
                return True
        logger.warning("results could not be moved from nodes that go")
        return False

    def _workers(self, addresses: Collection[str]) -> set[WorkerState]:
        workers = self._scheduler.workers
        return {workers[one] for one in addresses if one in workers}

    async def close(self) -> None:
        """Let go of everything."""
        if self._worker is not None:
            await self._worker.close(nanny=False, executor_wait=False)

    async def _recipient(self, staying: Collection[str]) -> str:
        workers = self._scheduler.workers
        living = [workers[one] for one in staying if one in workers]
        if living:
            return str(min(living, key=lambda one: one.nbytes).address)
        if self._worker is None:
            self._worker = await self._start()
        return str(self._worker.address)

    async def _start(self) -> PortlessWorker:
        settings: dict[str, Any] = {
            "distributed.worker.memory.target": _TARGET_FRACTION,
            # These look at the whole process, which is the user's own.
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            "distributed.worker.memory.terminate": False,
        }
        with dask.config.set(settings):
            worker = PortlessWorker(
                self._scheduler.address,
                name=DEPOT,
                host=self._scheduler.ip,
                protocol="tls://",
                security=self._scheduler.security,
                nthreads=1,
                memory_limit=int(self._memory_bytes / _TARGET_FRACTION),
                local_directory=str(self._folder),
                dashboard=False,
            )
            await worker
        return worker


def _batches(leaving: set[WorkerState]) -> Iterator[dict[Any, list[str]]]:
    """Give what only these workers hold and somebody wants, some at a time: key, and who has it."""
    batch, n_bytes = dict[Any, list[str]](), 0
    wanted = [
        ts
        for worker in leaving
        for ts in list(worker.has_what)
        if ts.who_has <= leaving and (ts.who_wants or ts.waiters)
    ]
    for ts in wanted:
        if ts.state != "memory" or ts.key in batch:
            continue
        batch[ts.key] = [worker.address for worker in ts.who_has]
        n_bytes += ts.get_nbytes()
        if n_bytes >= _BATCH_BYTES:
            yield batch
            batch, n_bytes = {}, 0
    if batch:
        yield batch
