"""From a pool to one allocation of it: its request, and what would be submitted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from exadask.batch.model import AllocationRequest, Scripts
from exadask.batch.registry import batch_system
from exadask.config import Config
from exadask.pool import Pool
from exadask.runtime.granted import Grant
from exadask.runtime.posting import POSTING, Posting
from exadask.runtime.run_folder import RunFolder

_AGENT = "exadask.runtime.agent_program"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """An allocation that is not asked for.

    Parameters
    ----------
    request : AllocationRequest
        The allocation.
    scripts : Scripts
        Its scripts.
    submit_argv : list of str
        The command that would submit it.
    """

    request: AllocationRequest
    scripts: Scripts
    submit_argv: list[str]


def request_for(
    pool: Pool, run: Path, *, name: str, nodes: int, walltime_s: float
) -> AllocationRequest:
    """Describe an allocation whose agents report to the scheduler of a run."""
    python = pool.python or sys.executable
    return AllocationRequest(
        pool=pool,
        name=name,
        nodes=nodes,
        walltime_s=walltime_s,
        folder=run / "allocations" / name,
        agent_argv=(python, "-u", "-m", _AGENT, str(run), name),
    )


def preview(pool: Pool, runs: Path) -> Preview:
    """Show the largest allocation of a pool that would be asked for."""
    walltime_s = pool.walltime_s
    longest_s = pool.limits.longest_s(pool.max_nodes)
    if longest_s:
        walltime_s = min(walltime_s, longest_s)
    request = request_for(
        pool,
        runs.absolute() / "RUN",
        name=f"{pool.name}-0",
        nodes=pool.max_nodes,
        walltime_s=walltime_s,
    )
    system = batch_system(pool.batch)
    submit = [] if pool.batch in ("local", "psij") else system.submit_argv(request)
    return Preview(request=request, scripts=system.render(request), submit_argv=submit)


def write_posting(
    request: AllocationRequest,
    run: RunFolder,
    address: str,
    config: Config,
    *,
    is_told: bool = False,
) -> None:
    """Write the orders of the agents of an allocation; see `Posting`."""
    pool = request.pool
    posting = Posting(
        address=address,
        pool=pool.name,
        allocation=request.name,
        walltime_s=request.walltime_s,
        interface=pool.interface,
        hints=pool.hints,
        asked=asked_of(pool),
        is_whole_node=pool.exclusive,
        is_told=is_told,
        config=config,
    )
    name = (request.folder / POSTING).relative_to(run.path)
    run.write_private(str(name), posting.as_json())


def asked_of(pool: Pool) -> Grant:
    """Say what each node of a pool was asked to have; for what the batch system does not repeat."""
    if pool.shape is None:
        return Grant()
    return Grant(
        cores=pool.shape.cores,
        gpus=pool.shape.gpus,
        memory_bytes=pool.memory_asked_bytes,
        origin=f"asked of the batch system for pool {pool.name!r}",
    )
