"""The command ``exadask``: its verbs, and how errors reach the user."""

from __future__ import annotations

import sys
import traceback

import click

import exadask


class _Commands(click.Group):
    """Imports a verb only when it is used, so that ``--help`` is fast."""

    _summaries = {  # noqa: RUF012  # never changed
        "info": "Show this machine as tasks will see it, and how that was found.",
        "run": "Run a recipe, or a Python file, with an executor open.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "info":
            from exadask.cli.info import info

            return info
        if cmd_name == "run":
            from exadask.cli.run import run

            return run
        return None

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
    is_debug = "--debug" in arguments
    try:
        code = cli(arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted: everything that ran was ended.", err=True)
        code = 130
    except exadask.errors.ExadaskError as error:
        if is_debug:
            traceback.print_exc()
        click.echo(f"exadask: {error}", err=True)
        is_wrong_use = isinstance(
            error, (exadask.errors.RecipeError, exadask.errors.InvalidRequest)
        )
        code = 2 if is_wrong_use else 1
    sys.exit(code or 0)
