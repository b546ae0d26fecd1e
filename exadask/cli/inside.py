"""A whole run as one job: scheduler and driver on its first node, agents on all of them."""

from __future__ import annotations

import argparse
import asyncio
import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import click

from exadask.batch.launchers import launcher_name
from exadask.batch.model import AllocationRequest, JobId
from exadask.cli.machine import Machine, search_folders
from exadask.cli.recipes import find_target
from exadask.cli.run import run_target
from exadask.errors import InvalidRequest, QueryFailed
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.opening import resolve_pools, split_settings
from exadask.pool import LauncherName, Pool
from exadask.runtime.backends import Backend, backend_of
from exadask.runtime.requests import request_for
from exadask.runtime.run_folder import RunFolder

_ORDERS = "inside.pickle"
_NAME = "inside"
_FAREWELL_S = 15.0
"""Time that the end of a run needs before the batch system ends it [s]."""
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Orders:
    """What the driver on the first node is told; the pool is that of the agents."""

    target: str
    settings: tuple[str, ...]
    cwd: str
    pool: Pool
    config: dict[str, object]


def submit_inside(target: str, settings: Sequence[str], machine: Machine, *, wait: bool) -> int:
    """Submit a run as one job; return the exit code.

    Raises
    ------
    InvalidRequest
        No pool, or more than one, is named.
    SubmissionRefused
        The batch system does not take the job.
    """
    config, facts = split_settings(machine.settings)
    site = machine.require_site("run --inside")
    pools = resolve_pools(site, machine.pools, facts, search_folders(target))
    if len(pools) != 1:
        raise InvalidRequest(
            f"--inside is one job, and {site} proposes {', '.join(one.name for one in pools)}.",
            "Choose one with --pool NAME.",
        )
    pool, run = pools[0], RunFolder.create(Path(config.run_folder))
    chosen = {name: getattr(config, name) for name, at in config.origins.items() if at != "default"}
    request = _driver_request(pool, run)
    orders = _Orders(
        target=target,
        settings=tuple(settings),
        cwd=str(Path.cwd()),
        pool=_agents_pool(pool, request),
        config=chosen,
    )
    (run.path / _ORDERS).write_bytes(pickle.dumps(orders))
    backend = backend_of(pool)
    return asyncio.run(_submit(backend, request, wait=wait))


async def _submit(backend: Backend, request: AllocationRequest, *, wait: bool) -> int:
    job = await backend.submit(request)
    cancel = " ".join(backend.cancel_argv([job]))
    click.echo(
        f"job {job}: {request.nodes} nodes; log: {request.log}; to end it: {cancel}", err=True
    )
    if not wait:
        return 0
    try:
        status = await _ended(backend, job)
    except (KeyboardInterrupt, asyncio.CancelledError):
        await backend.cancel([job])
        raise
    click.echo(request.log.read_text() if request.log.is_file() else "the job left no log")
    if status.cause is not EndCause.COMPLETED:
        cause = status.cause.value if status.cause else "nobody knows how"
        click.echo(f"job {job} {cause}: {status.reason}", err=True)
        return 1
    return 0


async def _ended(backend: Backend, job: JobId) -> JobStatus:
    interval_s = _FIRST_POLL_S
    while True:
        await asyncio.sleep(interval_s)
        interval_s = min(2 * interval_s, _LONGEST_POLL_S)
        try:
            status = (await backend.status([job]))[job]
        except QueryFailed:  # it says nothing about the job
            continue
        if status.state is JobState.ENDED:
            return status
        if status.is_hopeless:
            await backend.cancel([job])
            return replace(status, cause=EndCause.FAILED)


def _driver_request(pool: Pool, run: RunFolder) -> AllocationRequest:
    """Describe the job: on its first node runs the driver, not an agent."""
    request = request_for(
        pool,
        run.path,
        name=_NAME,
        nodes=pool.max_nodes,
        walltime_s=pool.walltime_s,
    )
    python = pool.python or sys.executable
    driver = (python, "-u", "-m", "exadask.cli.inside", str(run.path))
    return replace(request, agent_argv=driver, first_node_only=True)


def _agents_pool(pool: Pool, request: AllocationRequest) -> Pool:
    """Describe the pool as the driver sees it: the nodes of its own job, already there."""
    launcher = launcher_name(replace(request, first_node_only=False))
    return replace(
        pool,
        batch="local",
        launcher=cast(LauncherName, launcher),
        scheduler_interface=pool.interface,
        min_nodes=pool.max_nodes,
        max_allocations=1,
        idle_s=pool.walltime_s,  # the nodes are paid for until the end of the job
    )


def main(arguments: list[str] | None = None) -> int:
    """Be the driver on the first node; return the exit code."""
    parser = argparse.ArgumentParser(prog="exadask inside", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--began", type=float, required=True)
    parser.add_argument("--rank", type=int, required=True)
    chosen = parser.parse_args(arguments)
    orders: _Orders = pickle.loads((chosen.folder / _ORDERS).read_bytes())
    os.chdir(orders.cwd)
    left_s = chosen.began + orders.pool.walltime_s - time.time() - _FAREWELL_S
    pool = replace(orders.pool, walltime_s=max(1.0, left_s))
    found = find_target(orders.target)
    return run_target(found, orders.settings, {"pools": [pool], **orders.config})


if __name__ == "__main__":
    from exadask.cli.main import exit_code_of

    sys.exit(exit_code_of(main))
