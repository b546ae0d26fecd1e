"""``exadask run``: a recipe or a file, with an executor open."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from exadask.cli.machine import Machine, machine_options, search_folders
from exadask.cli.recipes import (
    Target,
    check_requirements,
    described_parameters,
    find_target,
    load_main,
    parse_parameters,
)
from exadask.errors import ExadaskError, InvalidRequest, RecipeError
from exadask.opening import split_settings

LATEST = "latest of the same"


@click.command()
@click.argument("target", metavar="RECIPE|FILE.py")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a parameter.")
@click.option("--list", "only_list", is_flag=True, help="List the parameters, and run nothing.")
@machine_options
@click.option("--attach", metavar="RUN", help="Use the scheduler that `exadask up` left there.")
@click.option("--inside", is_flag=True, help="Submit the whole run as one job of the site.")
@click.option("--wait", is_flag=True, help="With --inside: wait for the job, and show its log.")
@click.option(
    *("--resume", "resumed"),
    is_flag=False,
    flag_value=LATEST,
    metavar="[RUN]",
    help="Go on with an earlier run, by default the last one of the same recipe or file.",
)
@click.pass_context
def run(
    ctx: click.Context,
    target: str,
    settings: tuple[str, ...],
    only_list: bool,
    machine: Machine,
    inside: bool,
    wait: bool,
    resumed: str | None,
) -> int:
    """Run a recipe, or a Python file, with an executor open."""
    found = find_target(target)
    split_settings(machine.settings)  # complain now of what is misspelled
    if only_list:
        check_requirements(found)
        for name, (kind, default) in described_parameters(_main_of(found, settings)).items():
            click.echo(f"{name}: {kind} = {default}")
        return 0
    if inside:
        if resumed is not None:
            raise InvalidRequest(
                "--inside begins a new run, so that --resume has nothing to go on with.",
                "Leave one of them out.",
            )
        if found.has_main:
            parse_parameters(_main_of(found, settings), settings)  # complain now, not in the job
        from exadask.cli.inside import submit_inside

        return submit_inside(target, settings, machine, wait=wait)
    if wait:
        raise InvalidRequest("--wait belongs to --inside.", "Without it, run waits anyway.")
    arguments = machine.executor_arguments(search_folders(target))
    if resumed is not None:
        arguments["resume"] = _last_run_of(found, machine) if resumed == LATEST else resumed
    return run_target(found, settings, arguments)


def run_target(found: Target, settings: Sequence[str], machine: Mapping[str, Any]) -> int:
    """Run a recipe or a script with an executor open; return the exit code.

    Parameters
    ----------
    found : Target
        What to run.
    settings : sequence of str
        What the user wrote after ``--set``.
    machine : mapping
        Arguments of `Executor`.
    """
    if not found.has_main:
        if settings:
            _main_of(found, settings)
        return _with_executor(found, machine, lambda: _run_script(found))
    check_requirements(found)
    main = load_main(found)
    parameters = parse_parameters(main, settings)
    return _with_executor(found, machine, lambda: main(**parameters))


def _main_of(found: Target, settings: Sequence[str]) -> Any:
    if not found.has_main:
        raise RecipeError(
            f"{found.file} has no function main, so it has no parameters.",
            "Define main(*, name: type = default), or leave --set and --list out.",
        )
    check_requirements(found)
    return load_main(found)


def _last_run_of(found: Target, machine: Machine) -> Path | None:
    """Find the last run of the same recipe or file.

    None if there is none: whoever is killed before anything was done can say ``--resume`` as well.
    """
    from exadask.runtime.run_folder import RunFolder

    config = split_settings(machine.settings)[0]
    for run in RunFolder.all_below(Path(config.run_folder)):
        if run.target == str(found.file):
            return run.path
    click.echo(f"no earlier run of {found.file} in {config.run_folder}: a new one begins", err=True)
    return None


def _with_executor(found: Target, machine: Mapping[str, Any], work: Any) -> int:
    from exadask.executor import Executor
    from exadask.runtime.run_folder import RunFolder

    try:
        with Executor(**{"keep_results": True, **machine}) as executor:
            click.echo(f"{executor}", err=True)
            if executor.run_folder is not None:
                click.echo(f"run: {executor.run_folder}", err=True)
                RunFolder(executor.run_folder).note_target(str(found.file))
            if executor.dashboard:
                click.echo(f"dashboard: {executor.dashboard}", err=True)
            results = work()
    except ExadaskError:
        raise
    except Exception:  # the user's own code failed: its traceback is what its author needs
        traceback.print_exc()
        return 1
    if isinstance(results, Path):
        click.echo(f"results: {results.absolute()}")
    return 0


def _run_script(target: Target) -> None:
    sys.path.insert(0, str(target.file.parent))
    runpy.run_path(str(target.file), run_name="__main__")
