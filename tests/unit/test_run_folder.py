"""Folders of runs: private, found again, and without secrets when they are closed."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from exadask.config import Config
from exadask.errors import RunFolderError
from exadask.pool import NodeHints
from exadask.runtime.certificates import create_certificates, load_certificates
from exadask.runtime.granted import Grant
from exadask.runtime.posting import Berth, Posting
from exadask.runtime.run_folder import RunFolder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_enter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run = RunFolder.create(tmp_path / "runs")
        create_certificates(run.tls)
        run.publish({"address": "tls://1.2.3.4:5"})
    finally:
        os.umask(before)
    assert mode(run.path) == 0o700
    assert mode(run.tls) == 0o700
    assert {mode(one) for one in run.tls.iterdir()} == {0o600}
    assert mode(run.path / "cluster.json") == 0o600


def test_runs_of_one_second_are_different(tmp_path: Path) -> None:
    runs = [RunFolder.create(tmp_path) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert (tmp_path / "latest").resolve() == runs[-1].path


def test_a_run_is_found_by_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(Path("exadask-runs"))
    assert RunFolder.find(run.path) == run
    assert RunFolder.find(run.path.name) == run
    assert RunFolder.find("latest") == run
    with pytest.raises(RunFolderError, match=run.path.name):
        RunFolder.find("lates")


def test_a_run_that_others_could_have_written_is_not_trusted(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.path.chmod(0o770)
    with pytest.raises(RunFolderError, match="chmod 700"):
        RunFolder.find(run.path)


def test_closing_removes_what_is_secret(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    create_certificates(run.tls)
    facts = {"address": "tls://x:1", "host": "here", "pid": 7}
    run.publish(facts)
    assert run.published() == facts
    run.close()
    assert not run.tls.exists()
    with pytest.raises(RunFolderError, match="exadask up"):
        run.published()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="EXADASK_RUN_FOLDER"):
        RunFolder.create(tmp_path / "runs")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunFolderError, match="run_folder="):
        RunFolder.create(tmp_path / "runs")


def test_the_certificate_covers_clocks_that_disagree(tmp_path: Path) -> None:
    import datetime as dt

    from cryptography import x509

    security = create_certificates(tmp_path / "tls")
    assert security.require_encryption
    data = (tmp_path / "tls" / "certificate.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(data)
    now = dt.datetime.now(dt.timezone.utc)
    assert certificate.not_valid_before_utc < now - dt.timedelta(hours=20)
    assert certificate.not_valid_after_utc > now + dt.timedelta(days=365)
    assert load_certificates(tmp_path / "tls").tls_ca_file == security.tls_ca_file


def test_orders_of_an_agent_survive_the_file(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    posting = Posting(
        address="tls://1.2.3.4:5",
        pool="gpu",
        allocation="gpu-0",
        walltime_s=60.0,
        interface="hsn0",
        hints=NodeHints(blocked_cores=(0, 8), gpu_cores=((1, 2), (3,)), rank_launcher="srun"),
        asked=Grant(cores=4, gpus=2),
        config=Config.resolve({"kill_grace_s": 5}, environ={}),
    )
    path = run.write_private("allocations/gpu-0/agent.json", posting.as_json())
    assert Posting.read(path) == posting


def test_the_batch_system_knows_best_when_it_ends() -> None:
    posting = Posting(address="a", pool="p", allocation="p-0", walltime_s=60.0)
    began = time.time() - 10
    stated = {"SLURM_JOB_END_TIME": f"{began + 42:.0f}"}
    assert Berth.of(posting, began, {}).left_s == pytest.approx(50, abs=2)
    assert Berth.of(posting, began, stated).left_s == pytest.approx(32, abs=2)
    never = Berth.of(posting, began, {"SLURM_JOB_END_TIME": "never"})
    assert never.left_s == pytest.approx(50, abs=2)


def test_an_allocation_that_has_just_begun_has_not_ended_whatever_the_clock_says() -> None:
    posting = Posting(address="a", pool="p", allocation="p-0", walltime_s=60.0)
    assert Berth.of(posting, time.time() - 7200, {}).left_s == pytest.approx(60, abs=2)


def test_a_folder_is_closed_even_if_something_cannot_be_removed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    create_certificates(run.tls)
    (run.path / "cluster.json").mkdir()  # as if there were no right to remove it
    run.close()
    assert not run.tls.exists()


def test_what_cannot_be_written_is_the_fault_of_the_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.tls.touch()
    with pytest.raises(RunFolderError, match="Make room"), run.being_written():
        create_certificates(run.tls)


def test_the_reaper_runs_what_it_was_told(tmp_path: Path) -> None:
    import subprocess

    from exadask.testing.waiting import eventually

    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from exadask.runtime.reaper_process import Reaper\n"
        "from exadask.runtime.run_folder import RunFolder\n"
        "run = RunFolder.create(Path(sys.argv[1]))\n"
        "run.publish({'address': 'x'})\n"
        "reaper = Reaper(run)\n"
        "reaper.expect([['touch', str(run.path / 'ended')]])\n"
        "print(run.path, flush=True)\n"
        "if sys.argv[2] == 'dismissed': reaper.dismiss()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    for manner in ("killed", "dismissed"):
        argv = [sys.executable, "-c", program, str(tmp_path / manner), manner]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == -9, done.stderr
        folder = Path(done.stdout.strip())
        if manner == "killed":
            eventually((folder / "ended").exists)
            eventually(lambda folder=folder: not (folder / "cluster.json").exists())  # type: ignore[misc]  # a default binds it
        else:
            assert not (folder / "ended").exists()
            assert (folder / "cluster.json").exists()


def test_what_is_no_run_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(Path("exadask-runs"))
    (tmp_path / "exadask-runs" / "memo").mkdir()
    with pytest.raises(RunFolderError, match=f"Runs here: {run.path.name}\\."):
        RunFolder.find("never")
