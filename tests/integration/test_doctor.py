"""Doctor with jobs that really run: as processes of this machine, and in a real Slurm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from exadask.cli.main import main
from exadask.pool import Pool
from exadask.runtime.certificates import create_certificates, load_certificates
from exadask.runtime.probe_listener import ProbeListener
from exadask.testing.waiting import eventually

_LOCAL = ("--site", "local", "-o", "interface=lo")


@dataclass(frozen=True)
class Answer:
    """What doctor answered: exit code, and (ok, found, advice) of each check by its name."""

    code: int
    found: Mapping[str, tuple[bool | None, str, str]]

    @property
    def bad(self) -> dict[str, bool | None]:
        return {check: ok for check, (ok, _, _) in self.found.items() if ok is not True}


Doctor = Callable[..., Answer]


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    """Run doctor in an empty folder; afterwards the folder must be empty again."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments, "--json"])
        assert list(tmp_path.glob("exadask-runs")) == []
        facts = json.loads(capsys.readouterr().out)
        found = {
            one["check"]: (one["ok"], one["found"], one["advice"])
            for section in facts["sections"]
            for one in section["findings"]
        }
        code = int(ended.value.code or 0)
        assert facts["ok"] is (code == 0)
        return Answer(code, found)

    return run


def test_without_a_site_this_machine_is_checked(doctor: Doctor) -> None:
    answer = doctor()
    assert answer.code == 0
    assert {"python", "packages", "open files", "cores", "memory", "GPUs"} <= answer.found.keys()
    assert "batch" not in answer.found


def test_without_submit_no_job_is_started(doctor: Doctor) -> None:
    answer = doctor(*_LOCAL)
    assert answer.bad == {}
    assert {"batch", "launcher", "run folder", "address", "interface"} <= answer.found.keys()
    assert "job" not in answer.found


def test_a_job_looks_at_a_node(doctor: Doctor) -> None:
    answer = doctor(*_LOCAL, "--submit")
    assert (answer.code, answer.bad) == (0, {})
    assert {"job", "network", "way back", "clock", "versions", "offers"} <= answer.found.keys()


@pytest.mark.parametrize(
    ("fact", "check", "advice"),
    [
        ("python=/nowhere/python", "python", "python="),
        ("interface=hsn9", "interface", "interface="),
        ("scheduler_interface=hsn9", "address", "scheduler_interface="),
        ("run_folder=a-file/runs", "run folder", "run_folder="),
        ("setup=['echo before', 'ls /nowhere']", "job", "setup="),
        ("prologue=['ls /nowhere']", "job", "prologue="),
        ("setup=['exit 3']", "job", "log"),
        ("scratch=/proc/nowhere", "job", "scratch="),
        ("python=python-of-nobody", "job", "python="),
        ("gpus=3", "GPUs", "gpus="),
        ("rank_launcher=mpirun-of-nobody", "MPI", "rank_launcher="),
    ],
)
def test_each_wrong_fact_has_its_finding(
    doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fact: str,
    check: str,
    advice: str,
) -> None:
    monkeypatch.delenv("EXADASK_GPUS", raising=False)
    (tmp_path / "a-file").touch()
    answer = doctor("--site", "local", "-o", fact, "--submit")
    assert answer.code == 1
    assert [one for one, ok in answer.bad.items() if ok is False] == [check]
    assert advice in answer.found[check][2]


def test_the_log_of_a_job_that_failed_is_quoted(doctor: Doctor) -> None:
    answer = doctor(*_LOCAL, "--submit", "-o", "setup=['ls /nowhere']")
    assert "ls: cannot access '/nowhere'" in answer.found["job"][1]


def test_a_blocked_network_is_a_finding(doctor: Doctor) -> None:
    """The report comes by the file system; the setup points the probe to where nobody listens."""
    misled = "setup=['sed -i s/127.0.0.1:[0-9]*/127.0.0.1:9/ agent.json']"
    answer = doctor(*_LOCAL, "--submit", "-o", misled)
    assert answer.code == 1
    assert [one for one, ok in answer.bad.items() if ok is False] == ["network"]
    assert answer.found["job"][0] is True
    assert answer.found["job"][1].endswith("by a file")
    assert "clock" not in answer.found


def test_a_job_that_takes_too_long_is_cancelled(doctor: Doctor, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hanging = f"setup=['echo $$ >{pid}; exec sleep 300']"
    answer = doctor(*_LOCAL, "--submit", "-o", hanging, "--timeout", "1s")
    assert answer.bad == {"job": False}
    assert "cancelled" in answer.found["job"][1]
    assert not psutil.pid_exists(int(pid.read_text()))


def test_ctrl_c_cancels_the_job(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hanging = f"setup=['echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 300']"
    command = [sys.executable, "-c", "from exadask.cli.main import main; main()"]
    process = subprocess.Popen(
        [*command, "doctor", *_LOCAL, "--submit", "-o", hanging],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(pid.is_file)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted" in errors
    assert not psutil.pid_exists(int(pid.read_text()))
    assert not (tmp_path / "exadask-runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--timeout", "3s"),
        ("--submit",),
        ("-o", "gpus=3"),
        ("--site", "local", "-o", "gpu=3"),
        ("--site", "local", "--pool", "none"),
    ],
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert ended.value.code == 2


def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    """Other keys than those of the run do not open the listener."""
    from distributed.comm import connect

    async def visit() -> None:
        listener = ProbeListener(create_certificates(tmp_path / "ours"))
        create_certificates(tmp_path / "theirs")
        await listener.start([Pool.declare("here")])
        try:
            for keys in ("ours", "theirs"):
                arguments = load_certificates(tmp_path / keys).get_connection_args("worker")
                comm = await connect(listener.address, timeout=1, **arguments)
                await comm.close()
                welcome.append(keys)
        finally:
            listener.stop()

    welcome: list[str] = []
    with pytest.raises(OSError, match=r"(?i)timed out|certificate|ssl"):
        asyncio.run(visit())
    assert welcome == ["ours"]


# -- a real Slurm: ci/slurm up DIR; . DIR/env --------------------------------------------------

_SLURM = ("--site", "slurm", "--queue", "gpu", "-o", "interface=lo", "-o", "scheduler_interface=lo")
_in_slurm = pytest.mark.skipif(
    "SLURM_CONF" not in os.environ or shutil.which("sinfo") is None,
    reason="needs a Slurm: ci/slurm up DIR",
)


def jobs_named(name: str) -> list[str]:
    command = ["squeue", "-h", "-t", "PD,R,CG", "-n", name, "-o", "%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@_in_slurm
@pytest.mark.timeout(400)
def test_a_node_of_slurm(doctor: Doctor) -> None:
    answer = doctor(*_SLURM, "--submit", "--timeout", "5min", "--nodes", "2")
    assert answer.code == 0
    assert "answers" in answer.found["batch"][1]
    assert answer.found["launcher"][0] is True
    assert answer.found["MPI"][0] is True
    assert answer.found["network"][0] is True
    assert "8 cores, 4 GPUs" in answer.found["node"][1]


@_in_slurm
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("facts", "said", "advice"),
    [
        (("--queue", "nobody"), "refused", "queue="),
        (("-o", "directives=['--hold']"), "held", "release"),
        (("-o", "setup=['ls /nowhere']"), "ls /nowhere", "setup="),
        (("-o", "directives=['--begin=now+1hour']", "--timeout", "2s"), "pending", "--timeout"),
    ],
)
def test_a_job_of_slurm_that_never_reports(
    doctor: Doctor, facts: tuple[str, ...], said: str, advice: str
) -> None:
    answer = doctor(*_SLURM, "--submit", "--timeout", "5min", *facts)
    assert [one for one, ok in answer.bad.items() if ok is False] == ["job"]
    assert said in answer.found["job"][1]
    assert advice in answer.found["job"][2]
    eventually(lambda: jobs_named("doctor-slurm") == [])
