"""``exadask up``, ``down`` and ``status``: a scheduler that outlives sessions."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exadask.cli.machine import Machine, machine_options
from exadask.units import render_seconds

if TYPE_CHECKING:
    from exadask.runtime.run_folder import RunFolder


@click.command()
@machine_options
def up(machine: Machine) -> int:
    """Start a scheduler that stays; print the run to attach to."""
    from exadask.opening import resolve_pools, split_settings
    from exadask.runtime.standing import start_standing

    config, facts = split_settings(machine.settings)
    pools = resolve_pools(machine.require_site("up"), machine.pools, facts)
    run = start_standing(pools, config)
    click.echo(run.path)
    click.echo(
        f'Use it: Executor(attach="{run.path}"), or exadask run RECIPE --attach {run.path}\n'
        f"End it: exadask down {run.path}",
        err=True,
    )
    return 0


@click.command()
@click.argument("run", required=False)
def down(run: str | None) -> int:
    """End a standing scheduler, and give all its allocations back."""
    from exadask.runtime.standing import stop_standing

    found = _run_that_listens(run)
    stop_standing(found)
    click.echo(f"{found.path} has ended; its logs are still there.", err=True)
    return 0


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: str | None, as_json: bool) -> int:
    """Show the pools, allocations and nodes of a run that stands or is in progress."""
    from exadask.runtime.pooled_cluster import AttachedCluster

    cluster = AttachedCluster(_run_that_listens(run))
    try:
        summary = cluster.gateway.ask("exadask_summary")
        plan = cluster.gateway.ask("exadask_plan")
        nodes = cluster.shapes
        left = cluster.gateway.ask("exadask_left")
    finally:
        cluster.close()
    if as_json:
        facts: dict[str, Any] = {
            **dataclasses.asdict(summary),
            "nodes": {name: str(shape) for name, shape in nodes.items()},
            "plan": [one.text for one in plan],
            "left": [name for name, _ in left],
            "dashboard": cluster.dashboard,
        }
        click.echo(json.dumps(facts, indent=2, default=str))
    else:
        click.echo(f"{summary}")
        for name, shape in nodes.items():
            click.echo(f"node {name}: {shape}")
        for step in plan:
            click.echo(f"next: {step.text}")
        for name, since in left:
            ago = render_seconds(max(0.0, time.time() - since))
            click.echo(f"left by a session: {name}, {ago} ago")
        if cluster.dashboard:
            click.echo(f"dashboard: {cluster.dashboard}")
    return 0


def _run_that_listens(wanted: str | None) -> RunFolder:
    """Find a run; without a name, the last one whose scheduler listens."""
    from exadask.config import Config
    from exadask.opening import find_run
    from exadask.runtime.run_folder import RunFolder

    config = Config.resolve()
    if wanted is not None:
        return find_run(wanted, config)
    listening = (one for one in RunFolder.all_below(Path(config.run_folder)) if one.is_published)
    return next(listening, None) or find_run("latest", config)
