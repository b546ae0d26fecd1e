"""The first recipe, unchanged, wherever it can run: the same table."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ase", reason="the recipe's molecules come with ase")
pytest.importorskip("tblite", reason="the recipe's energies come from tblite")

RECIPE = Path(__file__).parents[2] / "recipes" / "g2-atomization"
SLURM = ("--site", "slurm", "--queue", "cpu", "--nodes", "2", "-o", "interface=lo")
ENGINE = ("--site", "sge", "-o", "interface=lo")


def exadask(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start the command line."""
    program = "from exadask.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a command that must go well; give what it printed."""
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stdout + stderr
    return stdout


def campaign(folder: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    """Start the recipe with three molecules."""
    settings = ("--set", "molecules=H2O,CH4,O2", "--set", f"results={name}")
    return exadask("run", str(RECIPE), *settings, *arguments, folder=folder)


def table(folder: Path, name: str) -> str:
    return (folder / name / "table.csv").read_text()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of an embedded run."""
    folder = tmp_path_factory.mktemp("embedded")
    ended(campaign(folder, "here"))
    return table(folder, "here")


@pytest.fixture
def gridengine() -> Iterator[None]:
    """The Grid Engine that ``ci/gridengine up`` has started."""
    if "SGE_ROOT" not in os.environ or shutil.which("qsub") is None:
        missing = os.environ.get(
            "CI_GRIDENGINE_MISSING", "ci/gridengine up DIR, then source DIR/env"
        )
        why = f"no Grid Engine runs here: {missing}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    yield
    left = subprocess.run(["qstat"], capture_output=True, text=True, check=True).stdout
    assert left == "", "jobs were left behind"


def test_on_slurm(slurm: Any, runs: Path, tmp_path: Path, expected: str) -> None:
    ended(campaign(tmp_path, "slurm", *SLURM))
    assert table(tmp_path, "slurm") == expected


def test_inside_one_job(slurm: Any, runs: Path, tmp_path: Path, expected: str) -> None:
    ended(campaign(tmp_path, "inside", "--inside", "--wait", *SLURM))
    assert table(tmp_path, "inside") == expected


def test_on_a_standing_scheduler_from_two_sessions_at_once(
    slurm: Any, runs: Path, tmp_path: Path, expected: str
) -> None:
    run = ended(exadask("up", *SLURM, folder=tmp_path)).strip()
    try:
        sessions = [campaign(tmp_path, name, "--attach", run) for name in ("one", "two")]
        for session in sessions:
            ended(session)
        assert len(slurm.jobs()) == 1
    finally:
        ended(exadask("down", run, folder=tmp_path))
    assert table(tmp_path, "one") == table(tmp_path, "two") == expected


def test_on_grid_engine(gridengine: None, runs: Path, tmp_path: Path, expected: str) -> None:
    ended(campaign(tmp_path, "engine", *ENGINE))
    assert table(tmp_path, "engine") == expected
