"""``exadask script``: what would be submitted, to the letter, and nothing is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    site = machine.require_site("script")
    missing = _missing_facts(site, machine.pools, facts)
    if missing:
        click.echo(f"You must say {', '.join(f'{name}=' for name in missing)}.", err=True)
    placeholders = {name: f"YOUR-{name.upper()}" for name in missing}
    pools = resolve_pools(site, machine.pools, {**facts, **placeholders})
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


def _missing_facts(site: str, pools: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """Name what only the user knows and has not said; a script can be shown without it."""
    from exadask.sites.profile import read_profile

    profile = read_profile(site)
    chosen = pools or profile.default_pools
    entries = [one for name, one in profile.pools.items() if name in chosen]
    needed = dict.fromkeys(
        name for one in entries for name in one.requires if name not in one.stated
    )
    return [name for name in needed if name not in facts]
