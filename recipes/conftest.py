"""What the tests of all recipes share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the modules of recipes alone: they import each other by name, which only a run can."""
    is_module = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if is_module else None


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Import the recipe beside the test as a run does: `recipe`, from its own folder."""
    folder = Path(request.path).parent
    names = [path.stem for path in folder.glob("*.py") if not path.name.startswith("test_")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    yield importlib.import_module("recipe")
    sys.path.remove(str(folder))
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)
