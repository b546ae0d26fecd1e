"""Shell commands as tasks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import exadask as xd


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_command_gives_its_exit_code_and_files(ex: xd.Executor, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("3 atoms\n")
    count = xd.command("wc -l < {file} > lines; echo counted {file}", cores=2)
    future = count.submit(file="in.txt")
    result = future.result(30)
    assert result.exit_code == 0
    assert [path.name for path in result.files] == ["lines", "stderr", "stdout"]
    assert (result.directory / "lines").read_text().strip() == "1"
    assert result.stdout == f"counted {tmp_path / 'in.txt'}\n"
    assert future.stdout() == result.stdout
    assert future.resources.cores == 2


def test_values_are_quoted(ex: xd.Executor) -> None:
    result = xd.command("printf %s {text}").submit(text="a b; exit 9 'c'").result(30)
    assert result.stdout == "a b; exit 9 'c'"


def test_calls_do_not_overwrite_each_other(ex: xd.Executor) -> None:
    futures = xd.command("echo {n} > out").map([{"n": n} for n in range(4)])
    results = [future.result(30) for future in futures]
    assert [(one.directory / "out").read_text() for one in results] == ["0\n", "1\n", "2\n", "3\n"]


def test_futures_are_values(ex: xd.Executor) -> None:
    first = xd.command("echo 5 > number").submit()
    second = xd.command("cat {made}/number").submit(made=first)
    assert second.result(30).stdout == "5\n"


def test_failure_says_what_was_run_and_what_it_said(ex: xd.Executor) -> None:
    future = xd.command("echo oh no >&2; exit 4").submit()
    with pytest.raises(xd.errors.CommandFailed, match="exit code 4") as caught:
        future.result(30)
    assert "oh no" in str(caught.value)
    assert Path(caught.value.directory).is_dir()


def test_failure_can_be_accepted(ex: xd.Executor) -> None:
    assert xd.command("exit 4", check=False).submit().result(30).exit_code == 4


def test_command_runs_here_as_well() -> None:
    assert xd.command("echo {word}")(word="here").stdout == "here\n"


def test_directory_can_be_chosen(ex: xd.Executor, tmp_path: Path) -> None:
    result = xd.command("pwd", directory=tmp_path / "work").submit().result(30)
    assert result.stdout.strip() == str(tmp_path / "work")


# -- what it leaves -----------------------------------------------------------------------------


def test_outputs_are_collected_by_name(ex: xd.Executor, tmp_path: Path) -> None:
    (tmp_path / "start.xyz").write_text("1\n")
    program = xd.command(
        "cp {start} {workdir}/copy.xyz; mkdir out; touch out/b.dat out/a.dat; echo done > run.log",
        outputs={"log": "*.log", "frames": "out/*.dat", "copy": "copy.xyz"},
    )
    result = program.submit(start=xd.File("start.xyz")).result(30)
    assert {name: [one.name for one in paths] for name, paths in result.outputs.items()} == {
        "log": ["run.log"],
        "frames": ["a.dat", "b.dat"],
        "copy": ["copy.xyz"],
    }
    (log,) = result.outputs["log"]
    assert xd.command("cat {log}").submit(log=log).result(30).stdout == "done\n"


def test_an_output_that_is_missing_is_a_failure(ex: xd.Executor) -> None:
    program = xd.command("touch run.out", outputs={"log": "*.log"})
    with pytest.raises(xd.errors.OutputMissing, match=r"log='\*.log'.*there are: run.out"):
        program.submit().result(30)
    lenient = xd.command("touch run.out", outputs={"log": "*.log"}, check=False)
    assert lenient.submit().result(30).outputs == {"log": ()}


@pytest.mark.parametrize(
    "outputs", ["*.log", {"log": ""}, {"log": "/tmp/x"}, {"log": "../x"}, {1: "x"}]
)
def test_outputs_that_make_no_sense_are_refused(outputs: Any) -> None:
    with pytest.raises(xd.errors.InvalidRequest, match="outputs"):
        xd.command("true", outputs=outputs)


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_memoised_results_whose_files_are_damaged_are_made_again(
    tmp_path: Path, damage: str
) -> None:
    program = xd.command("echo {n} > number", memo=True)
    nodes = [xd.NodeShape.declare(cores=1)]
    with xd.Executor(nodes=nodes, run_folder=tmp_path / "runs") as ex:
        first = ex.submit(program, n=7).result(30)
        assert ex.submit(program, n=7).result(30).directory == first.directory
        if damage == "removed":
            shutil.rmtree(first.directory)
        else:
            (first.directory / "number").write_text("")
        assert ex.submit(program, n=7).result(30).directory != first.directory
    with xd.Executor(nodes=nodes, run_folder=tmp_path / "runs") as ex:
        again = ex.submit(program, n=7).result(30)
    assert again.directory != first.directory
    assert (again.directory / "number").read_text() == "7\n"
