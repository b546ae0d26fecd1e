"""The command ``exadask``: its verbs, and how errors reach the user."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable

import click

import exadask


class _Commands(click.Group):
    """Imports a verb only when it is used, so that ``--help`` is fast."""

    _summaries = {  # noqa: RUF012  # never changed
        "advise": "Say what the tasks of a run used, and what they should ask for.",
        "doctor": "Check this machine, a site's pools, and with --submit one of its nodes.",
        "down": "End a standing scheduler, and give all its allocations back.",
        "explain": "Tell how a run went, or the story of one of its tasks.",
        "failures": "Group the tasks of a run that failed by why they did.",
        "info": "Show this machine as tasks will see it, and how that was found.",
        "memo": "List, remove or tidy the results of memoised tasks.",
        "run": "Run a recipe, or a Python file, with an executor open.",
        "script": "Print the job script and submit command of a site; submit nothing.",
        "sites": "List the machines that have a profile, or show what is known of one.",
        "status": "Show the pools, allocations and nodes of a run.",
        "up": "Start a scheduler that stays when this session ends.",
    }

    _homes = {  # noqa: RUF012  # never changed
        "advise": "exadask.cli.record",
        "doctor": "exadask.cli.doctor",
        "down": "exadask.cli.standing",
        "explain": "exadask.cli.record",
        "failures": "exadask.cli.record",
        "info": "exadask.cli.info",
        "memo": "exadask.cli.memo",
        "run": "exadask.cli.run",
        "script": "exadask.cli.script",
        "sites": "exadask.cli.sites",
        "status": "exadask.cli.standing",
        "up": "exadask.cli.standing",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = self._homes.get(cmd_name)
        if home is None:
            return None
        command: click.Command = getattr(importlib.import_module(home), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self._summaries.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(exadask.__version__, prog_name="exadask")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Run functions, commands and recipes, each with exactly what it asks for."""
    ctx.obj = debug


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; end with 0, 1 (it failed), 2 (wrong use) or 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    work = lambda: cli(arguments, standalone_mode=False)  # noqa: E731  # click's types are loose
    sys.exit(exit_code_of(work, is_debug="--debug" in arguments))


def exit_code_of(work: Callable[[], int | None], *, is_debug: bool = False) -> int:
    """Do the work of a command, say what went wrong, and return its exit code."""
    try:
        return work() or 0
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted: everything that ran was ended.", err=True)
        return 130
    except exadask.errors.ExadaskError as error:
        if is_debug:
            traceback.print_exc()
        click.echo(f"exadask: {error}", err=True)
        return 2 if isinstance(error, _WRONG_USE) else 1


_WRONG_USE = (
    exadask.errors.InvalidRequest,
    exadask.errors.RecipeError,
    exadask.errors.RunFolderError,
    exadask.errors.SiteError,
)
