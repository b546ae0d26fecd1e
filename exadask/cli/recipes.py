"""Find a recipe, check what it needs, and read its parameters, before anything runs."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from exadask.errors import RecipeError
from exadask.texts import names_file

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to run.

    Parameters
    ----------
    file : Path
        The Python file.
    has_main : bool
        Whether it defines ``main``; otherwise it runs as a script.
    requirements : Path or None
        What it needs beyond exadask.
    """

    file: Path
    has_main: bool
    requirements: Path | None


def find_target(name: str) -> Target:
    """Find a recipe by its folder, its file, or its name below ``recipes``.

    Raises
    ------
    RecipeError
        There is none, or its code cannot be parsed.
    """
    given = Path(name)
    for folder in (given, Path("recipes") / name):
        if names_file(folder / "recipe.py"):
            requirements = folder / "requirements.txt"
            return _target(folder / "recipe.py", requirements if names_file(requirements) else None)
    if names_file(given) and given.suffix == ".py":
        return _target(given, None)
    known = sorted(path.parent.name for path in Path("recipes").glob("*/recipe.py"))
    near = difflib.get_close_matches(given.name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Recipes here: {', '.join(known) or 'none'}."
    raise RecipeError(
        f"{name!r} is neither a recipe (a folder with recipe.py) nor a Python file.", hint
    )


def _target(file: Path, requirements: Path | None) -> Target:
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror}.", "Is it yours?") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # as the parser likes
        raise RecipeError(f"{file} is not valid Python: {error}.", "Correct it.") from error
    has_main = any(isinstance(one, ast.FunctionDef) and one.name == "main" for one in tree.body)
    return Target(file=file.resolve(), has_main=has_main, requirements=requirements)


def check_requirements(target: Target) -> None:
    """Make sure that the packages are installed.

    Raises
    ------
    RecipeError
        Some are not; it names them and the command that installs them.
    """
    if target.requirements is None:
        return
    missing = []
    for line in target.requirements.read_text().splitlines():
        name = re.match(r"[A-Za-z0-9._-]+", line.strip())
        if name is not None:
            try:
                metadata.version(name.group())
            except metadata.PackageNotFoundError:
                missing.append(name.group())
    if missing:
        raise RecipeError(
            f"the recipe needs packages that are not installed: {', '.join(missing)}.",
            f"Install them: {sys.executable} -m pip install -r {target.requirements}",
        )


def load_main(target: Target) -> Callable[..., Any]:
    """Import a recipe and give its ``main``.

    Its folder goes on the module path, as for a script, and from there to the tasks.

    Raises
    ------
    RecipeError
        It cannot be imported by its name.
    """
    sys.path.insert(0, str(target.file.parent))
    name = target.file.stem
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the user's own code failed
        raise RecipeError(
            f"{target.file} cannot be imported: {type(error).__name__}: {error}.",
            "Where that is says: exadask --debug run ...",
        ) from error
    if getattr(module, "__file__", None) is None or not target.file.samefile(str(module.__file__)):
        raise RecipeError(
            f"{target.file} has the name of another module, {module}.", "Give it a name of its own."
        )
    main: Callable[..., Any] = module.main
    return main


def parse_parameters(main: Callable[..., Any], settings: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` by the types of a function's parameters.

    Parameters
    ----------
    main : callable
        All its parameters have defaults.
    settings : sequence of str
        What the user wrote after ``--set``.

    Raises
    ------
    RecipeError
        A parameter is unknown, or a value does not fit its type.

    Examples
    --------
    >>> def main(*, n: int = 1, names: tuple[str, ...] = ()): ...
    >>> parse_parameters(main, ["n=3", "names=H2O,CH4"])
    {'n': 3, 'names': ('H2O', 'CH4')}
    """
    known = typing.get_type_hints(main)
    parameters = inspect.signature(main).parameters
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting!r} has no '='.", "Write --set name=value.")
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(parameters)}."
            raise RecipeError(f"the recipe has no parameter {name!r}.", hint)
        try:
            values[name] = _parsed(text, known.get(name, str))
        except ValueError as error:
            wanted = known.get(name, str)
            shown = getattr(wanted, "__name__", None) if isinstance(wanted, type) else None
            raise RecipeError(
                f"--set {setting!r}: {text!r} is not a {shown or wanted}.",
                f"The default is {parameters[name].default!r}.",
            ) from error
    return values


def described_parameters(main: Callable[..., Any]) -> Mapping[str, tuple[str, str]]:
    """Give the type and the default of each parameter, as text."""
    return {
        name: (inspect.formatannotation(one.annotation), repr(one.default))
        for name, one in inspect.signature(main).parameters.items()
    }


def _parsed(text: str, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() in ("", "none"):
            return None
        return _parsed(text, next(one for one in arguments if one is not type(None)))
    if origin is typing.Literal:
        for choice in arguments:
            if str(choice) == text:
                return choice
        raise ValueError(text)
    if origin in (tuple, list):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return origin(_parsed(part, arguments[0]) for part in parts)
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ValueError(text)
        return text.lower() in _TRUE
    if kind in (int, float, Path):
        return kind(text)
    return text
