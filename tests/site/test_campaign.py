"""One campaign, everywhere: its table is the same to the last byte, whoever gives the nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for needed in ("ase", "tblite", "matplotlib", "bokeh"):
    pytest.importorskip(needed, reason="the recipe needs it")

RECIPE = Path(__file__).parents[2] / "recipes" / "g2-atomization"
SLURM = ("--site", "slurm", "--queue", "cpu", "--nodes", "2", "-o", "interface=lo")
COMMAND = "from exadask.cli.main import main; main()"
LONG_S = 100

pytestmark = pytest.mark.timeout(200)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(command: subprocess.Popen[str]) -> str:
    """Wait for its end; give what it has printed."""
    stdout, stderr = command.communicate(timeout=LONG_S)
    assert command.returncode == 0, f"{stdout}\n{stderr}"
    return stdout


def campaign(results: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the recipe on three molecules."""
    settings = ("--set", "molecules=H2O,CH4,O2", "--set", f"results={results}")
    return start(results.parent, "run", str(RECIPE), *settings, *arguments)


def table(results: Path, command: subprocess.Popen[str]) -> bytes:
    """Wait for the campaign; give its table."""
    assert f"results: {results}" in ended(command)
    return (results / "table.csv").read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run in one process."""
    results = tmp_path_factory.mktemp("embedded") / "results"
    found = table(results, campaign(results))
    rows = found.decode().splitlines()
    assert [row.split(",")[3] for row in rows[1:]] == ["ok", "ok", "ok"]
    return found


def test_on_nodes_of_slurm(slurm: Any, runs: Path, tmp_path: Path, expected: bytes) -> None:
    results = tmp_path / "results"
    assert table(results, campaign(results, *SLURM)) == expected


def test_inside_a_job_of_slurm(slurm: Any, runs: Path, tmp_path: Path, expected: bytes) -> None:
    results = tmp_path / "results"
    assert table(results, campaign(results, *SLURM, "--inside", "--wait")) == expected
    assert [*runs.glob("*/tls"), *runs.glob("*/cluster.json")] == []


def test_in_two_sessions_of_a_standing_scheduler(
    slurm: Any, runs: Path, tmp_path: Path, expected: bytes
) -> None:
    run = ended(start(tmp_path, "up", *SLURM)).strip()
    try:
        folders = [tmp_path / "one", tmp_path / "other"]
        sessions = [campaign(folder, "--attach", run) for folder in folders]
        tables = [table(*each) for each in zip(folders, sessions, strict=True)]
        assert tables == [expected, expected]
        assert len(slurm.jobs()) == 1, "both used the same nodes"
    finally:
        ended(start(tmp_path, "down", run))


def test_on_a_node_of_grid_engine(
    gridengine: Any, runs: Path, tmp_path: Path, expected: bytes
) -> None:
    results = tmp_path / "results"
    assert table(results, campaign(results, "--site", "sge", "-o", "interface=lo")) == expected
