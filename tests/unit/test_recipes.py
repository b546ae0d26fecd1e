"""Finding recipes and reading their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from exadask.cli import recipes
from exadask.cli.main import cli
from exadask.errors import RecipeError


def main(
    *,
    n: int = 1,
    x: float = 0.5,
    names: tuple[str, ...] = (),
    sizes: list[int] | None = None,
    is_fast: bool = False,
    method: Literal["a", "b"] = "a",
    results: Path = Path("results"),
) -> Path:
    return results


def test_values_are_read_by_their_types() -> None:
    settings = [
        "n=3",
        "x=2",
        "names=H2O, CH4",
        "sizes=1,2",
        "is_fast=yes",
        "method=b",
        "results=/r",
    ]
    assert recipes.parse_parameters(main, settings) == {
        "n": 3,
        "x": 2.0,
        "names": ("H2O", "CH4"),
        "sizes": [1, 2],
        "is_fast": True,
        "method": "b",
        "results": Path("/r"),
    }
    assert recipes.parse_parameters(main, ["sizes=none"]) == {"sizes": None}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("n", "has no '='"),
        ("nn=1", "Did you mean 'n'"),
        ("quite_another=1", "Known: n, x"),
        ("n=three", "'three' is not a int"),
        ("is_fast=maybe", "is not a bool"),
        ("method=c", "is not a"),
        ("sizes=1,two", "is not a"),
    ],
)
def test_wrong_settings_are_refused(setting: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipes.parse_parameters(main, [setting])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipes" / "water"
    recipe.mkdir(parents=True)
    (recipe / "recipe.py").write_text("def main(*, n: int = 2) -> None: ...\n")
    return recipe


def test_recipe_is_found_by_folder_name_and_file(folder: Path) -> None:
    for name in ("water", str(folder), str(folder / "recipe.py")):
        target = recipes.find_target(name)
        assert target.file == folder / "recipe.py"
        assert target.has_main


def test_recipe_that_is_not_there(folder: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'water'"):
        recipes.find_target("watr")


def test_missing_requirements_are_named_before_anything_runs(folder: Path) -> None:
    (folder / "requirements.txt").write_text("# comment\npytest\nno-such-package-anywhere>=2\n")
    with pytest.raises(RecipeError, match=r"no-such-package-anywhere.*pip install"):
        recipes.check_requirements(recipes.find_target("water"))


def test_file_that_is_not_python(folder: Path) -> None:
    (folder / "recipe.py").write_text("def main(:\n")
    with pytest.raises(RecipeError, match="not valid Python"):
        recipes.find_target("water")


def test_help_and_list(folder: Path) -> None:
    shown = CliRunner().invoke(cli, ["--help"])
    assert "info" in shown.output
    assert "run" in shown.output
    listed = CliRunner().invoke(cli, ["run", "water", "--list"])
    assert "n: int = 2" in listed.output
