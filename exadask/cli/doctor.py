"""``exadask doctor``: what to know before an hour in the queue."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from exadask.cli.machine import Machine, machine_options
from exadask.config import Config
from exadask.errors import InvalidRequest
from exadask.opening import resolve_pools, split_settings
from exadask.pool import Pool
from exadask.runtime.checks import (
    Finding,
    check_address,
    check_machine,
    check_open_files,
    check_pool,
    check_run_folder,
    has_failed,
    is_elsewhere,
)
from exadask.runtime.node_checks import ProbeOutcome, check_outcome
from exadask.runtime.survey import (
    MachineFacts,
    PoolFacts,
    survey_machine,
    survey_pool,
    survey_run_folder,
)
from exadask.units import parse_seconds

_PATIENCE = "10min"
_WIDTH = 80
_MARKS = {True: ("ok", "green"), None: ("warn", "yellow"), False: ("FAIL", "red")}
_BLOCKING = ("run folder", "address")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Findings about one thing."""

    title: str
    findings: list[Finding]


@click.command()
@machine_options
@click.option("--submit", is_flag=True, help="Look at a node too: submits a job of one node.")
@click.option(
    "--timeout", metavar="TIME", help=f"How long to wait for it; {_PATIENCE} if not said."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(machine: Machine, submit: bool, timeout: str | None, as_json: bool) -> int:
    """Check this machine, and what a site's pools need; with --submit, a node of each too.

    Ends with 0 if all is well (warnings allowed), 1 if a check failed.
    """
    if timeout is not None and not submit:
        raise InvalidRequest("--timeout is how long to wait for a job.", "Add --submit.")
    timeout_s = parse_seconds(timeout or _PATIENCE, name="--timeout")
    config, facts = split_settings(machine.settings)
    pools = list[Pool]()
    if machine.site is not None or machine.pools or facts or submit:
        pools = resolve_pools(machine.require_site("doctor"), machine.pools, facts)
    progress = _Progress()
    work = _examined(pools, config, progress, timeout_s=timeout_s if submit else None)
    sections = _interruptible(work)
    progress.clear()
    findings = [one for section in sections for one in section.findings]
    if as_json:
        facts_of_all = [dataclasses.asdict(section) for section in sections]
        click.echo(json.dumps({"ok": not has_failed(findings), "sections": facts_of_all}, indent=2))
    else:
        click.echo("\n".join(_rendered(sections)))
    return 1 if has_failed(findings) else 0


async def _examined(
    pools: Sequence[Pool], config: Config, progress: _Progress, *, timeout_s: float | None
) -> list[Section]:
    """Look at everything; submit jobs if there is a time to wait for them [s]."""
    machine = survey_machine()
    runs = Path(config.run_folder)
    here = Section(title=f"this machine ({machine.host})", findings=_machine(pools, machine, runs))
    known = await asyncio.gather(*(survey_pool(pool, runs) for pool in pools))
    found = [
        Section(title=f"pool {pool.name}", findings=check_pool(pool, machine, facts))
        for pool, facts in zip(pools, known, strict=True)
    ]
    sections = [here, *found]
    if timeout_s is not None:
        is_blocked = any(one.ok is False and one.check in _BLOCKING for one in here.findings)
        chosen = _to_probe(pools, known, found, is_blocked=is_blocked)
        sections += await _probed(pools, chosen, machine, runs, progress, timeout_s=timeout_s)
    return sections


def _machine(pools: Sequence[Pool], machine: MachineFacts, runs: Path) -> list[Finding]:
    from exadask.runtime.probe_listener import survey_door

    most = sum(pool.max_nodes * pool.max_allocations for pool in pools)
    is_node = not any(map(is_elsewhere, pools))
    findings = [*check_machine(machine, is_node=is_node), check_open_files(machine, most)]
    if pools:
        findings.append(check_run_folder(survey_run_folder(runs), pools))
        findings.append(check_address(survey_door(pools), machine, pools))
    return findings


def _to_probe(
    pools: Sequence[Pool],
    known: Sequence[PoolFacts],
    sections: Sequence[Section],
    *,
    is_blocked: bool,
) -> list[tuple[Pool, PoolFacts]]:
    """Choose the pools whose jobs make sense; tell of the others why not."""
    chosen = []
    for pool, facts, section in zip(pools, known, sections, strict=True):
        problem, advice = "", "Correct what failed above first."
        if is_blocked or has_failed(section.findings):
            problem = "not submitted"
        elif pool.limits.longest_s(1) == 0:
            problem = "not submitted: the site allows no allocations of one node here"
            advice = "Look at a node of a smaller pool: --pool NAME, or --queue NAME."
        if problem:
            section.findings.append(Finding(check="job", ok=None, found=problem, advice=advice))
        else:
            chosen.append((replace(pool, shape=pool.shape or facts.shape), facts))
    return chosen


async def _probed(
    pools: Sequence[Pool],
    chosen: Sequence[tuple[Pool, PoolFacts]],
    machine: MachineFacts,
    runs: Path,
    progress: _Progress,
    *,
    timeout_s: float,
) -> list[Section]:
    """Submit a job for each chosen pool, all at once, and judge what they say."""
    from exadask.runtime.certificates import create_certificates
    from exadask.runtime.dask_parts import quiet_logs
    from exadask.runtime.probe_job import probe_pool, probe_request
    from exadask.runtime.probe_listener import ProbeListener
    from exadask.runtime.run_folder import RunFolder

    if not chosen:
        return []
    with _run_of_its_own(runs) as path, quiet_logs():
        run = RunFolder(path)
        listener = ProbeListener(create_certificates(run.tls))
        await listener.start(pools)
        try:
            requests = [probe_request(pool, path, _program(facts)) for pool, facts in chosen]
            outcomes = await asyncio.gather(
                *(
                    probe_pool(request, run, listener, progress.tell, timeout_s=timeout_s)
                    for request in requests
                )
            )
        finally:
            listener.stop()
            run.close()
        return [
            _judged(pool, machine, outcome)
            for (pool, _), outcome in zip(chosen, outcomes, strict=True)
        ]


def _judged(pool: Pool, machine: MachineFacts, outcome: ProbeOutcome) -> Section:
    where = f" ({outcome.report.machine.host})" if outcome.report is not None else ""
    findings = check_outcome(pool, machine, outcome)
    return Section(title=f"a node of pool {pool.name}{where}", findings=findings)


def _program(facts: PoolFacts) -> str | None:
    """Name the program that starts agents on several nodes."""
    from exadask.batch.launchers import LAUNCHERS

    words = LAUNCHERS[facts.launcher].words
    return words[0] if words else None


@contextlib.contextmanager
def _run_of_its_own(runs: Path) -> Iterator[Path]:
    """Make a private folder beside the runs, and leave nothing."""
    is_new = not runs.exists()
    runs.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="doctor-", dir=runs.resolve()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # somebody has begun a run meanwhile
                runs.rmdir()


class _Progress:
    """One line on a terminal, or a line for each change elsewhere."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._is_terminal = sys.stderr.isatty()

    def tell(self, pool: str, words: str) -> None:
        """Show how the job of a pool is."""
        self._lines[pool] = f"pool {pool}: {words}"
        if self._is_terminal:
            text = "; ".join(self._lines.values())[: _WIDTH - 1]
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif self._said.get(pool) != words.rpartition(" (")[0]:  # only the time has changed
            click.echo(self._lines[pool], err=True)
        self._said[pool] = words.rpartition(" (")[0]

    def clear(self) -> None:
        """Make room for the findings."""
        if self._is_terminal and self._lines:
            click.echo("\r\x1b[K", nl=False, err=True)


def _interruptible(work: Coroutine[object, object, _T]) -> _T:
    """Run until the end, or until a signal: then jobs are cancelled first.

    Raises
    ------
    KeyboardInterrupt
        A signal came.
    """

    async def guarded() -> _T:
        task = asyncio.ensure_future(work)
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        told: list[int] = []

        def stop(number: int) -> None:
            if not told:  # a second one would interrupt the cancelling
                told.append(number)
                task.cancel()

        heard = [one for one in signals if signal.getsignal(one) is not signal.SIG_IGN]
        for number in heard:
            with contextlib.suppress(RuntimeError, ValueError):  # not the main thread
                asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _rendered(sections: Sequence[Section]) -> Iterator[str]:
    findings = [one for section in sections for one in section.findings]
    width = max(len(one.check) for one in findings)
    for section in sections:
        yield click.style(section.title, bold=True)
        for one in section.findings:
            yield from _lines(one, width)
    failures = sum(one.ok is False for one in findings)
    warnings = sum(one.ok is None for one in findings)
    yield f"{_counted(failures, 'failure')}, {_counted(warnings, 'warning')}"


def _lines(finding: Finding, width: int) -> Iterator[str]:
    """Write a finding in lines of 80 columns; what it quotes stays as it is."""
    mark, colour = _MARKS[finding.ok]
    begin = f"{mark:<4}  {finding.check:<{width}}  "
    said, *quoted = finding.found.splitlines() or [""]
    first, *rest = _wrapped(f"{begin}{said}", " " * len(begin))
    yield click.style(first[:4], fg=colour) + first[4:]
    yield from rest
    yield from (f"{' ' * 6}| {line}" for line in quoted)
    if finding.advice:
        indent = " " * len(begin)
        yield from _wrapped(f"{indent}-> {finding.advice}", f"{indent}   ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
