"""``exadask run``: a recipe or a file, with an executor open."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from exadask.cli.recipes import (
    Target,
    check_requirements,
    described_parameters,
    find_target,
    load_main,
    parse_parameters,
)
from exadask.errors import ExadaskError, RecipeError


@click.command()
@click.argument("target", metavar="RECIPE|FILE.py")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a parameter.")
@click.option("--list", "only_list", is_flag=True, help="List the parameters, and run nothing.")
@click.pass_context
def run(ctx: click.Context, target: str, settings: tuple[str, ...], only_list: bool) -> int:
    """Run a recipe, or a Python file, with an executor open."""
    found = find_target(target)
    if not found.has_main:
        if settings or only_list:
            raise RecipeError(
                f"{target} has no function main, so it has no parameters.",
                "Define main(*, name: type = default), or leave --set and --list out.",
            )
        return _run_script(found)
    check_requirements(found)
    main = load_main(found)
    if only_list:
        for name, (kind, default) in described_parameters(main).items():
            click.echo(f"{name}: {kind} = {default}")
        return 0
    return _run_recipe(main, parse_parameters(main, settings))


def _run_recipe(main: Any, parameters: dict[str, Any]) -> int:
    from exadask.executor import Executor

    try:
        with Executor() as executor:
            click.echo(f"{executor}", err=True)
            results = main(**parameters)
    except ExadaskError:
        raise
    except Exception:  # the recipe's own code failed: its traceback is what its author needs
        traceback.print_exc()
        return 1
    if isinstance(results, Path):
        click.echo(f"results: {results.absolute()}")
    return 0


def _run_script(target: Target) -> int:
    from exadask.executor import Executor

    sys.path.insert(0, str(target.file.parent))
    try:
        with Executor():
            runpy.run_path(str(target.file), run_name="__main__")
    except ExadaskError:
        raise
    except Exception:  # the script's own code failed: its traceback is what its author needs
        traceback.print_exc()
        return 1
    return 0
