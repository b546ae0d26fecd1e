"""What futures and executors look like in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from exadask.resources import NodeShape
from exadask.units import render_bytes

_COLOURS = {"finished": "#2e7d32", "failed": "#c62828", "cancelled": "#757575"}


def future_html(name: str, state: str, request: str) -> str:
    """Render a future as one line.

    Examples
    --------
    >>> "relax" in future_html("relax", "waiting", "1 core")
    True
    """
    colour = _COLOURS.get(state.split()[0], "#1565c0")
    return (
        f"<div><b>{escape(name)}</b> "
        f'<span style="color:{colour}">{escape(state)}</span> '
        f"<small>{escape(request)}</small></div>"
    )


def executor_html(nodes: Mapping[str, NodeShape], *, is_closed: bool) -> str:
    """Render an executor as a table of its nodes."""
    if is_closed:
        return "<b>Executor</b>: closed"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{shape.cores}</td><td>{shape.gpus}</td>"
        f"<td>{escape(render_bytes(shape.memory_bytes))}</td></tr>"
        for name, shape in nodes.items()
    )
    head = "<tr><th>node</th><th>cores</th><th>GPUs</th><th>memory</th></tr>"
    return f"<b>Executor</b><table>{head}{rows}</table>"


def progress_html(description: str, done: int, failed: int, total: int) -> str:
    """Render a progress bar.

    Examples
    --------
    >>> "2 of 4" in progress_html("relax", 2, 0, 4)
    True
    """
    failures = f', <span style="color:#c62828">{failed} failed</span>' if failed else ""
    return (
        f"<div><b>{escape(description)}</b> "
        f'<progress value="{done}" max="{max(total, 1)}"></progress> '
        f"{done} of {total}{failures}</div>"
    )
