"""What would be submitted on every shipped site, to the letter.

After a change that is meant, ``python tests/unit/test_golden_scripts.py`` writes the files again;
the difference is to be read.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from exadask.errors import InvalidRequest, SiteError
from exadask.pool import Pool
from exadask.runtime.requests import preview
from exadask.sites.profile import SHIPPED, load_site, read_profile

GOLDEN = Path(__file__).parents[1] / "data" / "scripts"
RUNS = Path("/shared/exadask-runs")
SITES = sorted(path.stem for path in SHIPPED.glob("*.toml"))


def of_two_nodes(pool: Pool) -> Pool:
    """Ask for two nodes, where the site allows it: so that the launcher is seen."""
    try:
        return pool.updated(nodes=2) if pool.max_nodes == 1 and pool.is_batch else pool
    except InvalidRequest:
        return pool


def rendered(site: str) -> str:
    """Write the scripts of all pools of a site, as one text."""
    profile = read_profile(site, environ={})
    needed = {name for entry in profile.pools.values() for name in entry.requires}
    facts = {name: f"my-{name}" for name in needed} | {"python": "/shared/venv/bin/python"}
    try:
        pools = load_site(site, overrides=facts, pools=list(profile.pools), environ={}).pools
    except SiteError as error:
        return f"{error}\n"
    parts = []
    for pool in pools:
        one = preview(of_two_nodes(pool), RUNS)
        title = f"pool {pool.name}: {one.request.nodes} nodes, {one.request.walltime_s:g} s"
        parts += [
            f"===== {title}, job script",
            one.scripts.job,
            "===== on each node",
            one.scripts.node,
            "===== submitted by",
            f"{shlex.join(one.submit_argv)}\n",
        ]
    return "\n".join(parts)


@pytest.mark.parametrize("site", SITES)
def test_scripts_are_as_they_were_reviewed(site: str) -> None:
    assert rendered(site) == (GOLDEN / f"{site}.txt").read_text()


def test_every_file_belongs_to_a_site() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == SITES


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in SITES:
        (GOLDEN / f"{name}.txt").write_text(rendered(name))
