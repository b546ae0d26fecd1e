"""The program that a launcher starts on each node of an allocation: an agent, and nothing else.

It finds out what the node offers, connects to the scheduler, and ends with it: when the scheduler
says so, when the connection to it breaks, or when the batch system sends SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

import dask

from exadask.errors import ClusterUnreachable, ExadaskError
from exadask.rank_launcher import VARIABLE as RANK_LAUNCHER
from exadask.resources import NodeShape
from exadask.runtime.certificates import load_certificates
from exadask.runtime.dask_parts import (
    NETWORK_SETTINGS,
    PortlessWorker,
    allow_many_files,
    quiet_logs,
    threads_for,
)
from exadask.runtime.node_agent import NodeAgent
from exadask.runtime.node_facts import (
    named_interfaces,
    own_address,
    scratch_parent,
    shape_of_node,
)
from exadask.runtime.posting import POSTING, Berth, Posting
from exadask.runtime.run_folder import RunFolder
from exadask.staging import VARIABLE as STAGE

_STAGGER_S = 0.002
_LONGEST_STAGGER_S = 20.0
_FAREWELL_TIMEOUT_S = 20.0
_CANNOT_JOIN = 3
_RANKS = ("PMI_", "PMI2_", "PMIX_", "HYDI_", "OMPI_COMM_WORLD_", "PALS_", "MPI_LOCAL")


def main(arguments: list[str] | None = None) -> int:
    """Serve until the end; return the exit code."""
    parser = argparse.ArgumentParser(prog="exadask agent", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("allocation")
    parser.add_argument("--began", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--rank", type=int, required=True, help="of this node in the allocation")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    try:
        with quiet_logs():
            return asyncio.run(_serve(chosen.folder, chosen.allocation, chosen.began, chosen.rank))
    except ExadaskError as error:
        _tell(f"exadask agent on {socket.gethostname()}: {error}")
        return _CANNOT_JOIN


async def _serve(folder: Path, allocation: str, began: float, rank: int) -> int:
    run = RunFolder(folder)
    posting = Posting.read(run.allocation(allocation) / POSTING)
    os.umask(0o077)
    allow_many_files()
    await asyncio.sleep(min(rank * _STAGGER_S, _LONGEST_STAGGER_S))  # they do not all knock at once
    shape = await shape_of_node(posting, os.environ)
    _forget_launcher(os.environ)
    scratch = tempfile.mkdtemp(prefix=f"exadask-{os.getpid()}-", dir=scratch_parent(os.environ))
    try:
        with dask.config.set(NETWORK_SETTINGS):
            worker = _worker(
                run, posting, Berth.of(posting, began, os.environ), rank, shape, scratch
            )
            await _join(worker, posting)
            _tell(f"{worker.name} on {socket.gethostname()} offers {shape}")
            _leave_when_told(worker)
            await worker.finished()
            _tell(f"{worker.name} has ended")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _forget_launcher(environ: MutableMapping[str, str]) -> None:
    """Let no task believe that it is a rank of the launcher's: MPI in it would wait for others."""
    for name in [one for one in environ if one.startswith(_RANKS)]:
        del environ[name]


def _tell(text: str) -> None:
    """Write a line into the job's log."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _worker(
    run: RunFolder, posting: Posting, berth: Berth, rank: int, shape: NodeShape, scratch: str
) -> PortlessWorker:
    # The system's own choice of a folder may be the node's memory, or all machines' disk.
    is_local = scratch_parent(os.environ) is not None
    told = {
        STAGE: f"{scratch}/staged" if is_local else "",
        RANK_LAUNCHER: posting.hints.rank_launcher or "",
    }
    agent = NodeAgent(shape, posting.config, scratch, berth, told=told)
    worker = PortlessWorker(
        posting.address,
        name=f"{posting.allocation}-{rank}",
        host=own_address(posting),
        protocol="tls://",
        security=load_certificates(run.tls),
        nthreads=threads_for(shape.cores),
        memory_limit=0,
        local_directory=scratch,
        plugins=[agent],
        dashboard=False,
        death_timeout=posting.config.join_timeout_s,
    )
    worker.batched_stream.interval = 0.0005
    return worker


async def _join(worker: PortlessWorker, posting: Posting) -> None:
    try:
        await worker
    except Exception as error:  # Dask wraps what went wrong in several ways
        cause = error.__cause__ or error
        raise ClusterUnreachable(
            posting.address,
            f"{type(cause).__name__}: {cause}",
            f"This node has the interfaces {named_interfaces()}. Choose interface= of the pool, or "
            "scheduler_interface=, so that both see each other; a firewall may be in between.",
        ) from error


def _leave_when_told(worker: PortlessWorker) -> None:
    """Say farewell on SIGTERM, which batch systems send a moment before SIGKILL."""
    agent = worker.plugins["exadask-agent"]
    loop = asyncio.get_running_loop()
    leaving: list[asyncio.Task[None]] = []

    def leave() -> None:
        if not leaving:
            leaving.append(loop.create_task(_leave(worker, agent)))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, leave)


async def _leave(worker: PortlessWorker, agent: NodeAgent) -> None:
    agent.leave()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(worker.finished(), _FAREWELL_TIMEOUT_S)
        return
    await worker.close(nanny=False, executor_wait=False)


if __name__ == "__main__":
    sys.exit(main())
