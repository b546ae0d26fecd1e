"""Whatever is written after ``exadask``: it ends with 0, 1 or 2, and an error is told in words."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exadask as xd
from exadask.cli.main import main
from exadask.pool import FACTS
from exadask.sites.profile import SHIPPED
from tests.property.oddities import TEXTS

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(many, max_examples=25)

RECIPE = """
from typing import Literal

def main(*, n: int = 1, names: tuple[str, ...] = (), x: float | None = None,
         kind: Literal["a", "b"] = "a", is_on: bool = False): ...
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is all that commands see: a finished run, memo files, recipes, profiles."""
    folder = tmp_path_factory.mktemp("home")
    own = folder / ".config" / "exadask" / "sites"
    own.mkdir(parents=True)
    (own / "broken.toml").write_text("[pools.x\n")
    (own / "mine.toml").write_text('extends = "slurm"\n[pools.p]\ncores = 4\n')
    (folder / "recipe.py").write_text(RECIPE)
    (folder / "garbage.py").write_bytes(b"\x00\xff def")
    (folder / "empty.py").touch()
    (folder / "latin.py").write_bytes("# é\n".encode("latin-1"))
    (folder / "fails.py").write_text("raise RuntimeError('at import')\ndef main(): ...\n")
    (folder / "json.py").write_text("def main(): ...\n")
    (folder / "two.dots.py").write_text("def main(): ...\n")
    (folder / "folder.py").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("EXADASK_RUN_FOLDER", str(folder / "exadask-runs"))
        patch.setenv("COLUMNS", "100")
        patch.chdir(folder)
        node = xd.NodeShape.declare(cores=2)
        with xd.Executor(nodes=[node], keep_results=True) as executor:
            executor.submit(abs, -1).result(30)
            executor.submit(int, "x").exception(30)
            xd.task(memo=True, name="memoised")(abs).submit(-2).result(30)
        yield folder


def end_of(arguments: list[str]) -> tuple[int, str, str]:
    """Give the exit code of a command line, and what it wrote to stdout and stderr."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    path, modules = list(sys.path), set(sys.modules)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            caught = stack.enter_context(pytest.raises(SystemExit))
            main(list(arguments))
    finally:
        sys.path[:] = path
        for name in {"recipe", "garbage", "empty", "latin", "fails"} - modules:
            sys.modules.pop(name, None)
    texts = [one.buffer.getvalue().decode() for one in (out, err)]
    assert isinstance(caught.value.code, int)
    return caught.value.code, texts[0], texts[1]


def require_a_proper_end(arguments: list[str]) -> None:
    before = {path for path in Path.cwd().rglob("*") if "exadask-runs" not in path.parts}
    code, _, err = end_of(arguments)
    assert code in (0, 1, 2), (arguments, code)
    assert "Traceback" not in err or "--debug" in arguments, arguments
    assert err.strip() or code == 0 or "doctor" in arguments, (arguments, code)
    after = {path for path in Path.cwd().rglob("*") if "exadask-runs" not in path.parts}
    assert {path for path in after - before if "__pycache__" not in path.parts} == set()


SITES = st.one_of(
    st.sampled_from([path.stem for path in SHIPPED.glob("*.toml")]),
    st.sampled_from(("here", "mine", "broken", "nowhere", "./x.toml", "/", "recipe.py")),
    TEXTS,
)
VALUES = st.one_of(
    TEXTS,
    st.sampled_from(
        (
            *(
                "2h",
                "[1, 2]",
                "-1",
                "nan",
                "true",
                "{a=1}",
                "'x",
                "9" * 5000,
                "[" * 5000,
                "1\nb = 2",
            ),
            *("1979-05-27", "1 # x", '"\\u0000"', "0x" + "f" * 5000, "8GiB", "latest", "abs", "1"),
        )
    ),
)
KEYS = st.one_of(st.sampled_from((*FACTS, "kill_grace_s", "budget", "memo_folder")), TEXTS)


@st.composite
def machines(draw: st.DrawFn) -> list[str]:
    """Write options that say where to run."""
    words = ["--site", draw(SITES)] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(("pool", "account", "queue", "nodes", "walltime", "budget")))
        words += [f"--{name}", draw(VALUES)]
    for _ in range(draw(st.integers(0, 2))):
        equals = draw(st.sampled_from(("=", "=", "=", "")))
        words += ["-o", f"{draw(KEYS)}{equals}{draw(VALUES)}"]
    return words


TARGETS = st.one_of(
    st.sampled_from(
        (
            "recipe.py",
            "garbage.py",
            "empty.py",
            "latin.py",
            "fails.py",
            "json.py",
            "folder.py",
            ".",
            "/",
        )
    ),
    TEXTS,
)
SETTINGS = st.builds(
    lambda name, equals, value: f"{name}{equals}{value}",
    st.one_of(st.sampled_from(("n", "names", "x", "kind", "is_on")), TEXTS),
    st.sampled_from(("=", "=", "")),
    VALUES,
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Write a command that only looks: none of these submits, serves or ends anything."""
    verb = draw(st.sampled_from(("sites", "script", "run", "explain", "memo", "other", "garbage")))
    words: list[str]
    match verb:
        case "sites":
            words = [verb, *draw(st.lists(SITES, max_size=2))]
        case "script":
            words = [verb, *draw(machines())]
        case "run":
            words = [verb, draw(TARGETS), "--list", *draw(machines())]
            words += [
                word for one in draw(st.lists(SETTINGS, max_size=2)) for word in ("--set", one)
            ]
        case "explain":
            verbs = st.sampled_from(("explain", "failures", "advise", "status", "down"))
            words = [draw(verbs), *draw(st.lists(VALUES, max_size=2))]
        case "memo":
            verbs = st.sampled_from(("ls", "gc", "rm", "x"))
            words = ["memo", draw(verbs), *draw(st.lists(VALUES, max_size=2))]
            if draw(st.booleans()):
                words += [draw(st.sampled_from(("--older-than", "--keep"))), draw(VALUES)]
        case "other":
            words = [draw(st.sampled_from(("info", "--version", "--help", "run", "up", "x")))]
            words += draw(st.lists(st.sampled_from(("--help", "--json", "-x")), max_size=2))
        case _:
            words = draw(st.lists(TEXTS, max_size=3))
    if draw(st.booleans()):
        words.insert(
            draw(st.integers(0, len(words))), draw(st.sampled_from(("--json", "--", "-h")))
        )
    return words if draw(st.integers(0, 4)) else ["--debug", *words]


def test_any_command_line_ends_properly(home: Path) -> None:
    @many
    @given(command_lines())
    def check(arguments: list[str]) -> None:
        require_a_proper_end(arguments)

    check()
    assert home == Path.cwd()


def test_the_doctor_ends_properly_whatever_it_is_asked(home: Path) -> None:
    @few
    @given(machines())
    def check(arguments: list[str]) -> None:
        require_a_proper_end(["doctor", *arguments])

    check()
    assert os.environ["HOME"] == str(home)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "garbage.py"], "garbage.py is not valid Python"),
        (["run", "fails.py", "--list"], "RuntimeError: at import"),
        (["run", "two.dots.py", "--list"], "two.dots.py cannot be imported"),
        (["run", "json.py", "--list"], "json.py has the name of another module"),
        (["run", "x" * 5000], "is neither a recipe"),
        (["explain", "x" * 5000], "there is no such run"),
        (["script", "--site", "mine", "--nodes", "9" * 5000], "a whole number, or [least, most]"),
        (["script", "--site", "mine", "--nodes", "1\nnodes = 2"], "a whole number"),
        (["script", "--site", "mine", "--nodes", "[" * 5000], "a whole number"),
        (["script", "--site", "mine", "--account", "a\0b"], "a text of one line"),
        (["memo", "gc", "--keep", "9" * 5000], "an amount of memory"),
    ],
)
def test_what_once_ended_with_a_traceback(home: Path, arguments: list[str], words: str) -> None:
    assert home == Path.cwd()
    code, out, err = end_of(arguments)
    assert code in (1, 2)
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err


@pytest.mark.parametrize("account", ["2024001", "true", "1979-05-27", "inf"])
def test_an_account_is_a_text_whatever_it_looks_like(home: Path, account: str) -> None:
    assert home == Path.cwd()
    code, out, err = end_of(["script", "--site", "mine", "--account", account])
    assert (code, err) == (0, "")
    assert account in out


@pytest.mark.parametrize("words", [("--walltime", "02:00:00"), ("-o", "walltime=02:00:00")])
def test_a_walltime_may_be_written_as_batch_systems_do(home: Path, words: tuple[str, str]) -> None:
    assert home == Path.cwd()
    code, out, err = end_of(["script", "--site", "mine", *words])
    assert (code, err) == (0, "")
    assert "7200 s" in out
