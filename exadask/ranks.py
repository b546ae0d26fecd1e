"""What a user says about the ranks of a program: how many, and what each asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from exadask.errors import InvalidRequest, shown
from exadask.resources import Resources
from exadask.runtime.ranks import Layout
from exadask.tasks import OF_RANKS, TaskOptions

_MOST = 2**31
_OF_TASK = {"cores": "cores_per_rank", "gpus": "gpus_per_rank", "memory": "memory_per_rank"}


def parse_ranks(
    options: Mapping[str, Any], layout: Layout | None = None, base: TaskOptions | None = None
) -> tuple[Layout, TaskOptions]:
    """Build what the ranks of a program ask for, and what its task does.

    Parameters
    ----------
    options : mapping
        ``ranks``, ``nodes``, ``ranks_per_node``, ``cores_per_rank``, ``gpus_per_rank``,
        ``memory_per_rank``, and the options of `exadask.task` that make sense for programs with
        ranks.
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
    ranks, nodes = _layout(options, known)
    each = Resources.parse(
        cores=options.get("cores_per_rank", known.each.cores),
        gpus=options.get("gpus_per_rank", known.each.gpus),
        memory=options.get("memory_per_rank", known.each.memory_bytes),
        time=options.get("time", known.each.time_s),
    )
    found = Layout(ranks=ranks, each=each, nodes=nodes)
    rest = {name: value for name, value in options.items() if name not in (*OF_RANKS, "time")}
    parsed = TaskOptions.parse({**rest, "bundle": False}, base)
    return found, replace(parsed, request=found.request, rungs=())


def _layout(options: Mapping[str, Any], known: Layout) -> tuple[int, int | None]:
    """Read how many ranks are on how many nodes: two of three numbers say it all."""
    names = ("ranks", "nodes", "ranks_per_node")
    said = {name: options[name] for name in names if options.get(name) is not None}
    for name, value in said.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _MOST:
            raise InvalidRequest(
                f"{name}={shown(value)} is not valid.", f"Give a whole number >= 1, below {_MOST}."
            )
    if not said:
        return known.ranks, known.nodes
    ranks, nodes, on_each = (said.get(name) for name in names)
    if ranks is None:
        ranks = (nodes or 1) * (on_each or 1)
    if nodes is None and on_each is not None:
        nodes = -(-ranks // on_each)
    if nodes is not None and (ranks % nodes or on_each not in (None, ranks // nodes)):
        wrong = ", ".join(f"{name}={value}" for name, value in said.items())
        raise InvalidRequest(
            f"{wrong} do not go together: each node has equally many ranks.",
            "Give two of ranks=, nodes= and ranks_per_node=, or ranks= alone for as few nodes as "
            "have room.",
        )
    return ranks, nodes
