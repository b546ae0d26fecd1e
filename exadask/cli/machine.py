"""The options that say where to run; every verb that needs a machine has the same ones."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

import click

from exadask.errors import InvalidRequest
from exadask.opening import resolve_pools
from exadask.pool import FACTS
from exadask.texts import names_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # Python 3.10 only

_SHORT = ("account", "queue", "nodes", "walltime", "budget")
_TEXTS = ("account", "queue")  # as they are: an account may be called 2024001


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where to run, as it was said on the command line.

    Parameters
    ----------
    site : str, optional
        A site profile.
    pools : tuple of str
        Which of its pools; empty: those that it proposes.
    attach : str, optional
        The run whose scheduler stands.
    settings : dict of str to object
        Settings, and facts of pools.
    """

    site: str | None
    pools: tuple[str, ...]
    attach: str | None
    settings: dict[str, Any]

    def executor_arguments(self, search: Sequence[Path] = ()) -> dict[str, Any]:
        """Give the arguments of `Executor`.

        Parameters
        ----------
        search : sequence of Path
            Further folders with site profiles.
        """
        if self.site is None:
            return {"pools": list(self.pools) or None, "attach": self.attach, **self.settings}
        facts = {name: value for name, value in self.settings.items() if name in FACTS}
        settings = {name: value for name, value in self.settings.items() if name not in FACTS}
        pools = resolve_pools(self.site, self.pools, facts, search)
        return {"pools": pools, "attach": self.attach, **settings}

    def require_site(self, verb: str) -> str:
        """Give the site.

        Raises
        ------
        InvalidRequest
            None was named.
        """
        if self.site is None:
            raise InvalidRequest(
                f"`exadask {verb}` needs a site.", "Add --site NAME (see: exadask sites)."
            )
        return self.site


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and give the command a `Machine` called ``machine``."""

    @functools.wraps(command)
    def with_machine(*args: Any, **kwargs: Any) -> Any:
        said = {name: kwargs.pop(name) for name in _SHORT}
        settings = {
            name: text if name in _TEXTS else _value(text)
            for name, text in said.items()
            if text is not None
        }
        settings |= _read_options(kwargs.pop("options"))
        machine = Machine(
            site=kwargs.pop("site"),
            pools=kwargs.pop("pools"),
            attach=kwargs.pop("attach", None),
            settings=settings,
        )
        return command(*args, machine=machine, **kwargs)

    for option in reversed(_OPTIONS):
        with_machine = option(with_machine)
    return with_machine


_OPTIONS = (
    click.option("--site", metavar="NAME", help="Site profile, or a path; 'here' recognises it."),
    click.option("--pool", "pools", multiple=True, metavar="NAME", help="Which of its pools."),
    click.option("--account", metavar="NAME", help="Who pays."),
    click.option("--queue", metavar="NAME", help="Partition or queue."),
    click.option("--nodes", metavar="N", help="Nodes of an allocation, or [least, most]."),
    click.option("--walltime", metavar="TIME", help="How long an allocation lasts: 2h."),
    click.option("--budget", metavar="COST", help="What all may cost: '100 node-hours'."),
    click.option(
        *("-o", "--option", "options"),
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other setting or fact of the pools; values as in TOML.",
    ),
)


def _read_options(options: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(f"-o {option!r} has no '='.", "Write -o name=value.")
        found[name.strip().replace("-", "_")] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    """Read a value as TOML does; what TOML does not know is a text, and so is 02:00:00."""
    try:
        facts = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML, a number without end, nested too deep
        return text
    is_one = facts.keys() == {"value"} and not isinstance(facts["value"], (date, time))
    return facts["value"] if is_one else text


def search_folders(target: str) -> tuple[Path, ...]:
    """Give the folders beside a recipe where site profiles may lie."""
    path = Path(target)
    return (path if names_folder(path) else path.parent,)
