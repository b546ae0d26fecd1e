"""What a user says about the ranks of a program: how many, and what each asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exadask.errors import InvalidRequest, shown
from exadask.resources import Resources
from exadask.runtime.ranks import Layout
from exadask.tasks import TaskOptions

OF_RANKS = ("ranks", "cores_per_rank", "gpus_per_rank", "memory_per_rank")
_OF_TASK = {"cores": "cores_per_rank", "gpus": "gpus_per_rank", "memory": "memory_per_rank"}


def parse_ranks(
    options: Mapping[str, Any], layout: Layout | None = None, base: TaskOptions | None = None
) -> tuple[Layout, TaskOptions]:
    """Build what the ranks of a program ask for, and what its task does.

    Parameters
    ----------
    options : mapping
        ``ranks``, ``cores_per_rank``, ``gpus_per_rank``, ``memory_per_rank``, and the options of
        `exadask.task` that make sense for programs with ranks.
    layout, base : optional
        What holds where nothing is said.

    Raises
    ------
    InvalidQuantity, InvalidRequest
        A number makes no sense, or an option is not one of programs with ranks.
    """
    for name in ("setup", "isolation", "bundle", *_OF_TASK):
        if name in options:
            instead = f"Say {_OF_TASK[name]}=." if name in _OF_TASK else "Leave it out."
            raise InvalidRequest(f"{name}= is not for programs with ranks.", instead)
    known = layout or Layout(ranks=1, each=Resources())
    ranks = options.get("ranks", known.ranks)
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise InvalidRequest(f"ranks={shown(ranks)} is not valid.", "Give a whole number >= 1.")
    each = Resources.parse(
        cores=options.get("cores_per_rank", known.each.cores),
        gpus=options.get("gpus_per_rank", known.each.gpus),
        memory=options.get("memory_per_rank", known.each.memory_bytes),
        time=options.get("time", known.each.time_s),
    )
    found = Layout(ranks=ranks, each=each)
    together = found.request
    said = {
        "cores": together.cores,
        "gpus": together.gpus,
        "memory": together.memory_bytes,
        "time": together.time_s,
        "bundle": False,
    }
    rest = {name: value for name, value in options.items() if name not in OF_RANKS}
    return found, TaskOptions.parse({**rest, **said}, base)


def check_launcher(launcher: object) -> None:
    """Check that a launcher is a command with no other holes than there are values for.

    Raises
    ------
    InvalidRequest
        It is not.
    """
    if launcher is None:
        return
    try:
        if not isinstance(launcher, str) or not launcher.format(ranks=1, cores=1, node="x").split():
            raise ValueError("it is no command")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise InvalidRequest(
            f"launcher={shown(launcher)} is not valid ({error}).",
            'Give a command, such as "srun --overlap --exact -w {node} -n {ranks} -c {cores}".',
        ) from error
