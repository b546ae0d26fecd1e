"""``exadask script``: what would be submitted, to the letter, and nothing is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from exadask.cli.machine import Machine, machine_options


@click.command()
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def script(machine: Machine, as_json: bool) -> int:
    """Print the job script and the submit command of a site; submit nothing."""
    from exadask.opening import resolve_pools, split_settings
    from exadask.runtime.requests import preview

    config, facts = split_settings(machine.settings)
    pools = resolve_pools(machine.require_site("script"), machine.pools, facts)
    previews = [preview(pool, Path(config.run_folder)) for pool in pools]
    if as_json:
        facts_of_all = [
            {
                "pool": one.request.pool.name,
                "nodes": one.request.nodes,
                "walltime_s": one.request.walltime_s,
                "submit": one.submit_argv,
                "job_script": one.scripts.job,
                "node_script": one.scripts.node,
            }
            for one in previews
        ]
        click.echo(json.dumps(facts_of_all, indent=2))
        return 0
    for one in previews:
        request = one.request
        click.echo(f"# pool {request.pool.name}: {request.nodes} nodes, {request.walltime_s:g} s")
        click.echo(f"# {request.job_script}:\n{one.scripts.job.rstrip()}\n")
        click.echo(
            f"# {request.node_script}, which runs on each node:\n{one.scripts.node.rstrip()}\n"
        )
        click.echo(f"# submitted by:\n{shlex.join(one.submit_argv)}\n")
    return 0
