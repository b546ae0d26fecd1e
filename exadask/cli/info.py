"""``exadask info``: this machine as tasks will see it."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib import metadata
from typing import Any

import click

import exadask
from exadask.config import Config
from exadask.resources import NodeShape
from exadask.runtime.detection import detect_node
from exadask.units import render_bytes

_PACKAGES = ("distributed", "dask", "dask-jobqueue", "cloudpickle")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Show this machine as tasks will see it, and how that was found."""
    facts = collected_facts(detect_node(), Config.resolve())
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_tables(facts)


def collected_facts(shape: NodeShape, config: Config) -> dict[str, Any]:
    """Gather what there is to say, as plain data."""
    values = dataclasses.asdict(config)
    origins = values.pop("origins")
    return {
        "exadask": exadask.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "node": {
            "cores": list(shape.core_ids),
            "numa": [list(group) for group in shape.numa],
            "gpus": list(shape.gpu_ids),
            "gpu_vendor": shape.gpu_vendor,
            "gpu_cores": [list(cores) for cores in shape.gpu_cores],
            "memory_bytes": shape.memory_bytes,
            "is_bound": shape.is_real,
            "origin": shape.origin,
        },
        "settings": {
            name: {"value": value, "origin": origins[name]} for name, value in values.items()
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _print_tables(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    console.print(f"exadask {facts['exadask']}, Python {facts['python']}, {packages}")
    node = facts["node"]
    table = Table("this machine", "offers to tasks", "found by")
    cores = f"{len(node['cores'])} in {len(node['numa'])} NUMA group(s)"
    bound = "" if node["is_bound"] else ", counted but not bound"
    table.add_row("cores", cores + bound, node["origin"].get("cores", ""))
    memory = render_bytes(node["memory_bytes"])
    table.add_row("memory", memory, node["origin"].get("memory", ""))
    gpus = f"{len(node['gpus'])} ({node['gpu_vendor']})" if node["gpus"] else "none"
    table.add_row("GPUs", gpus, node["origin"].get("gpus", ""))
    console.print(table)
    settings = Table("setting", "value", "origin")
    for name, one in facts["settings"].items():
        settings.add_row(name, str(one["value"]), one["origin"])
    console.print(settings)
