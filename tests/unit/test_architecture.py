"""Imports point one way, modules stay small, and importing exadask stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import exadask

_ROOT = Path(exadask.__file__).parent
_BASE = {
    "errors",
    "units",
    "resources",
    "config",
    "cpulist",
    "job_status",
    "pool",
    "pool_facts",
    "rank_launcher",
    "texts",
    "toml_file",
}
_ALLOWED = {
    "core": {"core"} | _BASE,
    "batch": {"batch"} | _BASE,
    "sites": {"sites", "batch"} | _BASE,
    "runtime": {"runtime", "batch", "core", "inside", "staging"} | _BASE,
    "inside": {"errors"},
    "journal": {"journal", "files", "future", "opening", "runtime", "core", "tasks"} | _BASE,
    "monitor": {"monitor", "runtime", "core"} | _BASE,
    "testing": {"testing", "runtime", "batch", "core"} | _BASE,
    "cli": {"cli", "sites", "executor", "opening", "future", "tasks", "monitor", "runtime"}
    | {"journal"}
    | {"batch", "core"}
    | _BASE,
    "submitter": {"executor", "future", "packing", "tasks"} | _BASE,
    "files": {"errors", "staging", "texts"},
    "staging": {"errors"},
    "tasks": {"active", "future", "runtime"} | _BASE,
    "commands": {"active", "files", "future", "ranks", "runtime", "tasks"} | _BASE,
    "mpi_task": {"inside", "ranks", "runtime", "tasks"} | _BASE,
    "services": {"active", "commands", "executor", "future", "runtime", "tasks"} | _BASE,
    "ranks": {"runtime", "tasks"} | _BASE,
    "active": {"executor", "future", "lifetime", "runtime"} | _BASE,
    "deputy": {"executor"},
    "executor": {"future", "handover", "intake", "lifetime", "mapped", "opening", "packing"}
    | {"submitter", "tasks", "journal", "monitor", "runtime", "core"}
    | _BASE,
    "handover": {"future", "runtime", "core"} | _BASE,
    "standing": {"journal", "runtime"} | _BASE,
    "intake": {"future", "journal", "packing", "runtime", "core"} | _BASE,
    "opening": {"core", "sites", "runtime"} | _BASE,
    "packing": {"captures", "future", "tasks", "runtime"} | _BASE,
    "captures": {"tasks"} | _BASE,
    "lifetime": {"executor"},
    "mapped": {"future", "runtime"} | _BASE,
    "waiting": {"future", "monitor", "runtime"} | _BASE,
    "future": {"monitor", "runtime", "core"} | _BASE,
    "config": _BASE,
    "resources": _BASE,
    "pool": _BASE,
    "pool_facts": {"cpulist", "errors", "rank_launcher", "texts", "units"},
    "rank_launcher": {"errors"},
    "job_status": set[str](),
    "cpulist": set[str](),
    "texts": set[str](),
    "toml_file": {"errors"},
    "units": {"errors"},
    "errors": set[str](),
    "__init__": {
        "active",
        "commands",
        "executor",
        "files",
        "future",
        "inside",
        "mpi_task",
        "pool",
        "services",
        "tasks",
        "waiting",
    }
    | _BASE,
}


def imported_rooms(path: Path) -> set[str]:
    """Name the parts of exadask that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("exadask."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "exadask":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {parts[1] for parts in names if parts[0] == "exadask" and len(parts) > 1}
    return found


def modules() -> list[Path]:
    return sorted(_ROOT.rglob("*.py"))


def test_imports_point_one_way() -> None:
    wrong = []
    for path in modules():
        parts = path.relative_to(_ROOT).with_suffix("").parts
        for room in imported_rooms(path) - _ALLOWED[parts[0]]:
            wrong.append(f"{path.relative_to(_ROOT)} imports {room}")
    assert wrong == []


def test_core_touches_nothing_outside() -> None:
    forbidden = {
        "asyncio",
        "dask",
        "distributed",
        "logging",
        "os",
        "random",
        "socket",
        "threading",
        "time",
    }
    for path in (_ROOT / "core").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        assert names & forbidden == set(), path


def test_modules_are_short() -> None:
    too_long = {
        path.name: n for path in modules() if (n := len(path.read_text().splitlines())) > 560
    }
    assert too_long == {}


def test_public_names_are_few_and_there() -> None:
    assert len(exadask.__all__) <= 15
    for name in exadask.__all__:
        assert getattr(exadask, name) is not None


def test_importing_exadask_imports_nothing_heavy() -> None:
    heavy = {"distributed", "dask", "numpy", "rich", "click", "psutil", "asyncio"}
    program = "import exadask, sys; print(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert heavy & set(loaded) == set()
