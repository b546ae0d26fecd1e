"""``exadask sites``: the machines that have a profile, and what is known of each."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from exadask.errors import SiteError
from exadask.sites.model import Fact, PoolEntry, Profile, Source
from exadask.sites.profile import find_profile, list_profiles, read_profile
from exadask.sites.reading import ANY_NODES
from exadask.sites.recognition import recognised_site, this_host

if TYPE_CHECKING:
    from rich.console import Console

_MEANING = {
    "read": "read in this source",
    "second-hand": "told by others, not by the site",
    "recalled": "from memory: not verified",
    "chosen": "no fact of the site",
    "own": "your own word",
}


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sites(name: str | None, as_json: bool) -> None:
    """List the machines that have a profile, or show what is known of one.

    NAME is a profile, a path to one, or 'here' for the machine that this is.
    """
    here = _recognised()
    if name is None:
        rows = [_summary(one, here) for one in list_profiles()]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        else:
            _print_list(rows)
        return
    if name != "here":
        try:
            find_profile(name)
        except SiteError as error:
            raise click.UsageError(str(error)) from error
    profile = read_profile(name)
    if as_json:
        click.echo(json.dumps(described(profile, here), indent=2, default=str))
    else:
        _print_profile(profile, here)


def described(profile: Profile, here: str | None) -> dict[str, Any]:
    """Give all that a profile says, as plain data."""
    return {
        "name": profile.name,
        "title": profile.title,
        "path": str(profile.path),
        "is_own": profile.is_own,
        "is_here": profile.name == here,
        "unusable": profile.unusable or None,
        "instead": profile.instead or None,
        "batch": list(profile.batch),
        "default_pools": list(profile.default_pools),
        "docs": list(profile.docs),
        "where_to_find": dict(profile.where_to_find),
        "notes": [dataclasses.asdict(note) for note in profile.notes],
        "pools": [
            {
                "name": entry.name,
                "title": entry.title,
                "requires": list(entry.requires),
                "facts": [
                    {
                        "key": fact.key,
                        "value": fact.value,
                        "is_limit": fact.is_limit,
                        "source": dataclasses.asdict(fact.source),
                    }
                    for fact in entry.facts()
                ],
            }
            for entry in profile.pools.values()
        ],
    }


def _recognised() -> str | None:
    try:
        return recognised_site(this_host(), os.environ)
    except SiteError as error:
        click.echo(f"exadask: {error}", err=True)
        return None


def _summary(name: str, here: str | None) -> dict[str, Any]:
    path = find_profile(name)
    row: dict[str, Any] = {"name": name, "is_here": name == here, "path": str(path)}
    try:
        profile = read_profile(name)
    except SiteError as error:
        return row | {"title": "", "batch": [], "pools": [], "is_own": True, "problem": str(error)}
    return row | {
        "title": profile.title,
        "batch": list(profile.batch),
        "pools": list(profile.pools),
        "is_own": profile.is_own,
        "problem": profile.unusable or None,
    }


def _print_list(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("site", "machine", "batch", "pools", "from"):
        table.add_column(title, overflow="fold")
    for row in rows:
        title = row["title"] or "cannot be read"
        pools = "cannot be used" if row["problem"] else ", ".join(row["pools"])
        name = f"{row['name']} *" if row["is_here"] else row["name"]
        origin = "own" if row["is_own"] else "shipped"
        cells = (name, title, ", ".join(row["batch"]), pools, origin)
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    console.print(table)
    is_here = any(row["is_here"] for row in rows)
    console.print("* this machine" if is_here else "This machine is none that is recognised.")
    console.print("What is known of one, and since when: exadask sites NAME")


def _print_profile(profile: Profile, here: str | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    whose = "own" if profile.is_own else "shipped"
    console.print(f"{profile.name}: {profile.title}", style="bold")
    console.print(f"{whose} profile {profile.path}", soft_wrap=True)
    if profile.name == here:
        console.print("This machine is recognised as it.")
    for address in profile.docs:
        console.print(address, soft_wrap=True)
    if profile.unusable:
        console.print(f"Cannot be used: {profile.unusable} {profile.instead}")
    sources = _numbered(profile)
    _print_pools(console, profile, sources)
    for note in profile.notes:
        console.print(f"- {note.text} {_mark(note.source, sources)}")
    _print_sources(console, sources)


def _numbered(profile: Profile) -> dict[Source, int]:
    """Number the sources in the order in which they are met."""
    met = [fact.source for fact in profile.facts] + [note.source for note in profile.notes]
    return {source: number for number, source in enumerate(dict.fromkeys(met), start=1)}


def _mark(source: Source, sources: Mapping[Source, int]) -> str:
    doubt = "" if source.provenance in ("read", "own") else f", {source.provenance}"
    return f"[{sources[source]}{doubt}]"


def _print_pools(console: Console, profile: Profile, sources: Mapping[Source, int]) -> None:
    """Print a table of what all pools have in common, and one of each pool with the rest."""
    pools = {name: entry.facts() for name, entry in profile.pools.items()}
    common = _common(list(pools.values())) if len(pools) > 1 else []
    if common:
        _print_facts(console, "all pools", common, sources)
    for name, facts in pools.items():
        entry = profile.pools[name]
        title = f"pool {name}" + (f": {entry.title}" if entry.title else "")
        title += " (default)" if name in profile.default_pools else ""
        rest = [one for one in facts if not _is_in(one, common)]
        _print_facts(console, f"{title}\n{_in_short(entry)}", rest, sources)
    missing = (
        key for entry in profile.pools.values() for key in entry.requires if key not in entry.stated
    )
    for key in dict.fromkeys(missing):
        console.print(f"You must say {key}=. {profile.where_to_find.get(key, '')}".rstrip())


def _in_short(entry: PoolEntry) -> str:
    """Say what a node has, and what starts agents on it."""
    has = {key: str(one.value) for key, one in entry.stated.items()}
    shape = ", ".join(
        f"{has[key]} {unit}"
        for key, unit in (("cores", "cores"), ("gpus", "GPUs"), ("memory", "of memory"))
        if key in has
    )
    if shape and "memory" not in has:
        shape += ", memory not stated"
    launcher = has.get("launcher", f"the usual one of {has.get('batch', 'local')}")
    return f"node: {shape or 'asked of the batch system'}; launcher: {launcher}"


def _common(groups: Sequence[Sequence[Fact]]) -> list[Fact]:
    return [one for one in groups[0] if all(_is_in(one, group) for group in groups[1:])]


def _is_in(fact: Fact, group: Sequence[Fact]) -> bool:
    return any(
        (fact.key, fact.value, fact.source) == (one.key, one.value, one.source) for one in group
    )


def _print_facts(
    console: Console, title: str, facts: Sequence[Fact], sources: Mapping[Source, int]
) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print()
    heading, _, rest = title.partition("\n")
    console.print(heading, style="bold")
    if rest:
        console.print(rest)
    if not facts:
        return
    table = Table("fact", "value", "as of", "known by", "source")
    for fact in sorted(facts, key=lambda one: one.is_limit):
        name = f"limit: {fact.key}" if fact.is_limit else fact.key
        source = fact.source
        cells = (name, rendered(fact), source.as_of, source.provenance, f"[{sources[source]}]")
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _print_sources(console: Console, sources: Mapping[Source, int]) -> None:
    console.print()
    for source, number in sources.items():
        date = f", as of {source.as_of}" if source.as_of else ""
        console.print(f"[{number}] {source.title}{date}: {_MEANING[source.provenance]}")
        if source.url:
            console.print(f"    {source.url}", soft_wrap=True)
    console.print()
    console.print("Limits drift: your own word wins, such as walltime=, nodes= or bins=.")


def rendered(fact: Fact) -> str:
    """Write the value of a fact for a human.

    Examples
    --------
    >>> source = Source(name="guide", title="guide")
    >>> rendered(Fact(pool="cpu", key="bins", value={"nodes": [1, 8], "walltime": "2h"},
    ...     source=source))
    '1 to 8 nodes: 2h'
    """
    value = fact.value
    if fact.key == "bins" and isinstance(value, Mapping):
        least, most = value["nodes"]
        span = f"{least}" if least == most else f"{least} to {most}"
        return f"{'any' if (least, most) == ANY_NODES else span} nodes: {value['walltime']}"
    if fact.key == "gpu_cores" and isinstance(value, (list, tuple)):
        return "\n".join(f"GPU {index}: {cores}" for index, cores in enumerate(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}={text}" for name, text in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(one) for one in value)
    return str(value)
