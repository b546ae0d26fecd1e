"""``exadask sites``: tables for humans, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from exadask.cli.main import cli
from exadask.sites.profile import list_profiles


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own profiles lie; the machine is a laptop."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("socket.gethostname", lambda: "laptop.local")
    for name in ("SLURM_SUBMIT_HOST", "PBS_O_HOST", "NERSC_HOST", "LMOD_SYSTEM_NAME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "exadask" / "sites"
    folder.mkdir(parents=True)
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["sites", *arguments])


@pytest.mark.usefixtures("home")
def test_list() -> None:
    result = invoke()
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    for name in list_profiles():
        assert name in result.output
    assert "cannot be used" in result.output
    assert "…" not in result.output
    assert "This machine is none that is recognised." in result.output


def test_list_marks_this_machine_and_own_profiles(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "polaris-login-01.x")
    (home / "mine.toml").write_text('title = "[red]my[/red]"\n[pools.cpu]')
    (home / "broken.toml").write_text("[[[")
    result = invoke()
    assert result.exit_code == 0
    assert "polaris *" in result.output
    assert "[red]my[/red]" in result.output
    rows = {row["name"]: row for row in json.loads(invoke("--json").stdout)}
    assert rows["polaris"]["is_here"]
    assert not rows["polaris"]["is_own"]
    assert rows["mine"]["is_own"]
    assert rows["mine"]["pools"] == ["cpu"]
    assert rows["mine"]["batch"] == ["local"]
    assert "cannot be read" in rows["broken"]["problem"]
    assert "PJM" in rows["fugaku"]["problem"]


@pytest.mark.usefixtures("home")
def test_one_site_shows_limits_with_date_and_provenance() -> None:
    result = invoke("frontier")
    assert result.exit_code == 0
    assert "pool batch: production (default)" in result.output
    assert "node: 56 cores, 8 GPUs, 512GB of memory; launcher: the usual one" in result.output
    limits = [line for line in result.output.splitlines() if "limit: bins" in line]
    assert any("1 to 91 nodes: 2h" in line and "2026-07-22" in line for line in limits)
    assert all(" read " in line for line in limits)
    assert "You must say account=." in result.output
    assert "Frontier user guide" in result.output


@pytest.mark.parametrize("name", sorted(list_profiles(environ={})))
@pytest.mark.usefixtures("home")
def test_every_site_can_be_shown_and_marks_doubts(name: str) -> None:
    described = json.loads(invoke(name, "--json").stdout)
    assert described["name"] == name
    output = invoke(name).output
    lines = [line for line in output.splitlines() if "http" not in line and "toml" not in line]
    assert max(map(len, lines)) <= 80
    for pool in described["pools"]:
        assert f"pool {pool['name']}" in output
        for fact in pool["facts"]:
            assert fact["key"] in output
            assert fact["source"]["provenance"] in output


@pytest.mark.usefixtures("home")
def test_unusable_site() -> None:
    result = invoke("fugaku")
    assert result.exit_code == 0
    assert "Cannot be used: its batch system is PJM" in result.output


@pytest.mark.usefixtures("home")
def test_unknown_site() -> None:
    result = invoke("fronteer")
    assert result.exit_code == 2
    assert "Did you mean 'frontier'" in result.output


def test_broken_site(home: Path) -> None:
    (home / "mine.toml").write_text("[pools.a]\ncores = 0")
    result = invoke("mine")
    assert result.exit_code == 1
    assert "pools.a.cores" in str(result.exception)


def test_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none of the machines" in str(invoke("here").exception)
    monkeypatch.setattr("socket.gethostname", lambda: "polaris-login-01.x")
    assert "This machine is recognised as it." in invoke("here").output
    for name in ("one", "two"):
        (home / f"{name}.toml").write_text('[match]\nhostnames = ["polaris*"]\n[pools.a]')
    assert "one and as two" in invoke("one").output
