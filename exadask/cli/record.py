"""``exadask explain``, ``failures`` and ``advise``: what the journal of a run tells."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from exadask.config import Config
from exadask.errors import ExadaskError, InvalidRequest
from exadask.journal.reading import RunRecord
from exadask.journal.rows import TaskRow
from exadask.journal.stories import advice, as_json, failure_groups, story
from exadask.opening import find_run
from exadask.runtime.run_folder import RunFolder

_RUN = click.argument("run", default="latest")
_JSON = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.command()
@_RUN
@click.argument("task", required=False)
@_JSON
def explain(run: str, task: str | None, is_json: bool) -> int:
    """Tell how a run went, or the story of a TASK: its number, key, or the name of its function."""
    with _record(run) as (folder, record):
        if task is None:
            return _explain_run(folder, record, is_json=is_json)
        found = record.find(task)
        if not found:
            names = sorted({one.name for one in record.functions()})
            raise InvalidRequest(
                f"{folder.path.name} has no task {task!r}.",
                f"Give a number, a key, or a function: {', '.join(names[:8]) or 'there is none'}.",
            )
        if is_json:
            told = [
                {
                    **as_json(one),
                    "function": as_json(record.function(one.function)),
                    "attempts": [as_json(attempt) for attempt in record.attempts(one.id)],
                    "now": _live(folder, one),
                }
                for one in found
            ]
            click.echo(json.dumps(told, indent=2))
            return 0
        for one in found:
            lines = story(record, one, time.time())
            now = _live(folder, one)
            click.echo("\n".join([*lines, *([f"  now: {now}"] if now else [])]))
    return 0


@click.command()
@_RUN
@_JSON
def failures(run: str, is_json: bool) -> int:
    """Group the tasks of a run that failed by why they did, each with an example."""
    with _record(run) as (folder, record):
        nothing = f"no task of {folder.path.name} has failed"
        _show(failure_groups(record), "\n\n", nothing, is_json=is_json)
    return 0


@click.command()
@_RUN
@_JSON
def advise(run: str, is_json: bool) -> int:
    """Say what the tasks of a run used, and what they should ask for."""
    with _record(run) as (folder, record):
        nothing = f"no task of {folder.path.name} has come to its end yet"
        _show(list(advice(record)), "\n", nothing, is_json=is_json)
    return 0


def _show(found: Sequence[Any], between: str, nothing: str, *, is_json: bool) -> None:
    """Print what was found, as text or as JSON."""
    if is_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        click.echo(between.join(map(str, found)) or nothing)


@contextmanager
def _record(run: str) -> Iterator[tuple[RunFolder, RunRecord]]:
    folder = find_run(run, Config.resolve())
    with RunRecord.opened(folder.path) as record:
        yield folder, record


def _explain_run(folder: RunFolder, record: RunRecord, *, is_json: bool) -> int:
    facts: dict[str, Any] = {
        "run": str(folder.path),
        "target": folder.target,
        "sessions": [as_json(one) for one in record.sessions()],
        "tasks": record.counts(),
        "allocations": [as_json(one) for one in record.allocations()],
        "events": [as_json(one) for one in record.events()],
    }
    if is_json:
        click.echo(json.dumps(facts, indent=2))
        return 0
    click.echo(f"run {folder.path}" + (f" of {folder.target}" if folder.target else ""))
    for session in record.sessions():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(session.began))
        until = (
            time.strftime("%H:%M:%S", time.localtime(session.ended))
            if session.ended
            else "now, or it was killed"
        )
        click.echo(f"driven by process {session.pid} on {session.host}, {began} until {until}")
    counts = ", ".join(f"{count} {state}" for state, count in sorted(record.counts().items()))
    click.echo(f"tasks: {counts or 'none'}")
    for one in record.allocations():
        cost = f", {one.node_seconds / 3600:.2f} node-hours" if one.node_seconds else ""
        click.echo(f"allocation {one.name}: {one.state}, {one.nodes} nodes{cost} {one.reason}")
    for event in record.events():
        click.echo(f"{event.kind}: {event.text}")
    for path in folder.sessions():
        click.echo(f"a session has a journal of its own: exadask explain {path}")
    return 0


def _live(folder: RunFolder, task: TaskRow) -> str | None:
    """Ask the scheduler of a run that listens what a task waits for; None where there is none."""
    if task.state not in ("waiting", "running") or task.key is None or not folder.is_published:
        return None
    from exadask.runtime.pooled_cluster import AttachedCluster

    with suppress(ExadaskError, OSError):
        cluster = AttachedCluster(folder)
        try:
            return cluster.gateway.run(cluster.gateway.explain(task.key), "explain a task")
        finally:
            cluster.close()
    return None
