"""``exadask memo``: the results that memoised tasks have left."""

from __future__ import annotations

import json
import time

import click

from exadask.config import Config
from exadask.errors import InvalidRequest
from exadask.runtime.stored import StoredResult, StoredResults
from exadask.units import parse_bytes, parse_seconds, render_bytes, render_seconds


@click.group()
def memo() -> None:
    """List, remove or tidy the results of memoised tasks."""


@memo.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def ls(is_json: bool) -> int:
    """List the results."""
    store, now = _store(), time.time()
    entries = list(store.entries())
    if is_json:
        facts = [
            {"key": one.key, "nbytes": one.nbytes, "used": one.used, **one.facts} for one in entries
        ]
        click.echo(json.dumps(facts, indent=2))
        return 0
    for one in entries:
        age = render_seconds(max(0.0, now - one.used))
        size = render_bytes(one.nbytes)
        click.echo(f"{one.key}  {size:>12}  used {age} ago  {one.facts.get('name', '')}")
    total = render_bytes(sum(one.nbytes for one in entries))
    click.echo(f"{len(entries)} results, {total}, in {store.folder}", err=True)
    return 0


@memo.command()
@click.argument("wanted", nargs=-1, required=True)
def rm(wanted: tuple[str, ...]) -> int:
    """Remove results by the beginning of their key, or by the name of their task."""
    store = _store()
    for one in wanted:
        removed = store.remove(one)
        if not removed:
            raise InvalidRequest(
                f"no result in {store.folder} has the key or the task {one!r}.",
                "See: exadask memo ls",
            )
        _tell(removed)
    return 0


@memo.command()
@click.option("--older-than", metavar="TIME", help="What nobody has used for so long: 30d.")
@click.option("--keep", metavar="SIZE", help="Keep at most so much, what was used last: 10GiB.")
def gc(older_than: str | None, keep: str | None) -> int:
    """Remove results that are not used, and what killed processes left half written."""
    older_than_s = None if older_than is None else parse_seconds(older_than, name="--older-than")
    most_bytes = None if keep is None else parse_bytes(keep, name="--keep")
    _tell(_store().collect(older_than_s=older_than_s, most_bytes=most_bytes))
    return 0


def _store() -> StoredResults:
    return StoredResults(Config.resolve().memo_path)


def _tell(removed: list[StoredResult]) -> None:
    size = render_bytes(sum(one.nbytes for one in removed))
    click.echo(f"{len(removed)} results removed, {size}", err=True)
