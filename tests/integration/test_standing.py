"""Standing schedulers by the command line; sessions of them: ``test_standing_sessions``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import exadask as xd

PROFILE = """
title = "agents on this machine"
[pools.here]
batch = "local"
interface = "lo"
exclusive = false
cores = 4
walltime = "5m"
source = "chosen"
"""


def exadask(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    program = "from exadask.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a site profile."""
    (tmp_path / "here.toml").write_text(PROFILE)
    return tmp_path


@contextmanager
def standing(folder: Path) -> Iterator[Path]:
    """Let a scheduler stand."""
    done = exadask("up", "--site", "./here.toml", folder=folder)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip())
    try:
        yield run
    finally:
        ended = exadask("down", str(run), folder=folder)
        assert ended.returncode == 0, ended.stderr
        assert not (run / "tls").exists()
        assert not (run / "cluster.json").exists()


def test_its_state_is_shown(site: Path) -> None:
    with standing(site) as run:
        with xd.Executor(attach=run) as ex:
            assert ex.submit(abs, -1).result(60) == 1
        status = json.loads(exadask("status", str(run), "--json", folder=site).stdout)
        assert [one["name"] for one in status["pools"]] == ["here"]
        assert list(status["nodes"]) == ["here-0-0"]
        assert "pool here: 1 nodes" in exadask("status", str(run), folder=site).stdout


def test_a_run_goes_to_the_standing_scheduler(site: Path) -> None:
    (site / "job.py").write_text(
        "import exadask as xd\nfrom exadask.active import active_executor\n"
        "print(active_executor('x').submit(pow, 2, 10).result(60))\n"
    )
    with standing(site) as run:
        done = exadask("run", "job.py", "--attach", str(run), folder=site)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "1024\n"
        wrong = exadask("run", "job.py", "--attach", str(run), "--account", "x", folder=site)
        assert wrong.returncode == 2
        assert "account=" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("up",), 2, "--site"),
        (("up", "--site", "nowhere"), 2, "nowhere"),
        (("up", "--site", "./here.toml", "--pool", "hear"), 2, "here"),
        (("up", "--site", "./here.toml", "-o", "walltme=5m"), 2, "walltime"),
        (("up", "--site", "./here.toml", "-o", "scheduler_interface=ib9"), 1, "ib9"),
        (("down", "no-such-run"), 2, "no such run"),
        (("status", "no-such-run"), 2, "no such run"),
    ],
)
def test_what_cannot_stand_says_why(
    site: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = exadask(*arguments, folder=site)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_others_could_have_written_is_not_attached_to(site: Path) -> None:
    with standing(site) as run:
        run.chmod(0o755)
        with pytest.raises(xd.errors.RunFolderError, match="chmod 700"):
            xd.Executor(attach=run)
        run.chmod(0o700)
