"""``exadask up``, ``down`` and ``status``: a scheduler that outlives sessions."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from exadask.cli.machine import Machine, machine_options


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
@click.argument("run", default="exadask-runs/latest")
def down(run: str) -> int:
    """End a standing scheduler, and give all its allocations back."""
    from exadask.runtime.run_folder import RunFolder
    from exadask.runtime.standing import stop_standing

    found = RunFolder.find(run)
    stop_standing(found)
    click.echo(f"{found.path} has ended; its logs are still there.", err=True)
    return 0


@click.command()
@click.argument("run", default="exadask-runs/latest")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: str, as_json: bool) -> int:
    """Show the pools, allocations and nodes of a run that stands or is in progress."""
    from exadask.runtime.pooled_cluster import AttachedCluster
    from exadask.runtime.run_folder import RunFolder

    cluster = AttachedCluster(RunFolder.find(run))
    try:
        summary = cluster.gateway.ask("exadask_summary")
        plan = cluster.gateway.ask("exadask_plan")
        nodes = cluster.shapes
    finally:
        cluster.close()
    if as_json:
        facts: dict[str, Any] = {
            **dataclasses.asdict(summary),
            "nodes": {name: str(shape) for name, shape in nodes.items()},
            "plan": [one.text for one in plan],
            "dashboard": cluster.dashboard,
        }
        click.echo(json.dumps(facts, indent=2, default=str))
    else:
        click.echo(f"{summary}")
        for name, shape in nodes.items():
            click.echo(f"node {name}: {shape}")
        for step in plan:
            click.echo(f"next: {step.text}")
        if cluster.dashboard:
            click.echo(f"dashboard: {cluster.dashboard}")
    return 0
