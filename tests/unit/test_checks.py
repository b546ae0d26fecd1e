"""What doctor makes of facts, without a cluster: each wrong fact has its own finding and advice."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exadask.cli.doctor import Section, _rendered
from exadask.pool import Pool
from exadask.resources import NodeShape
from exadask.runtime import checks, node_checks
from exadask.runtime.checks import Door, Finding
from exadask.runtime.node_checks import ProbeOutcome
from exadask.runtime.probe_job import probe_request
from exadask.runtime.survey import (
    PACKAGES,
    Folder,
    MachineFacts,
    NodeReport,
    PoolFacts,
    survey_folder,
    survey_machine,
    survey_run_folder,
)

SHAPE = NodeShape.declare(cores=8, gpus=4, memory="64GiB")
NVIDIA = replace(SHAPE, gpu_vendor="nvidia", is_real=True, origin={"gpus": "NVML"})
HOME = Folder(path="/home/me", free_bytes=2**40, file_system="nfs")
CLUSTER = Pool.declare("gpu", batch="slurm", cores=8, gpus=4, memory="64GiB", nodes=[1, 4])


def machine(**changes: Any) -> MachineFacts:
    facts = MachineFacts(
        host="login1",
        python="3.11.7",
        packages=dict.fromkeys(PACKAGES, "1.0"),
        open_files=65536,
        interfaces={"lo": "127.0.0.1", "eth0": "10.0.0.1"},
        shape=NVIDIA,
        n_affinity=8,
        n_machine=8,
        has_memfd=True,
        temporary=HOME,
    )
    return replace(facts, **changes)


def report(**changes: Any) -> NodeReport:
    facts = NodeReport(
        machine=machine(host="nid0001"),
        n_driver_gpus=4,
        n_granted=8,
        folder=HOME,
        scratch=HOME,
        home=HOME,
        launcher="srun",
        launcher_path="/usr/bin/srun",
        rank_launcher="/usr/bin/mpiexec",
        own_address="10.0.0.2",
        clock_ahead_s=0.001,
        round_trip_s=0.0004,
    )
    return replace(facts, **changes)


def pool_facts(**facts: Any) -> PoolFacts:
    """What doctor found of a pool whose python is where all nodes see it."""
    return PoolFacts(**{"python": "/opt/venv/bin/python"} | facts)


def judged(pool: Pool = CLUSTER, here: MachineFacts | None = None, **seen: Any) -> list[Finding]:
    outcome = ProbeOutcome(job="7", report=report(**seen), came_by="connection", waited_s=3.0)
    return node_checks.check_outcome(pool, here or machine(), outcome)


def bad(findings: list[Finding]) -> Mapping[str, Finding]:
    return {one.check: one for one in findings if one.ok is not True}


def test_a_good_machine_has_nothing_but_good_findings() -> None:
    assert bad(checks.check_machine(machine(), is_node=True)) == {}
    assert bad(checks.check_pool(CLUSTER, machine(), pool_facts(programs={"sbatch": "/x"}))) == {}
    assert bad(judged()) == {}


@pytest.mark.parametrize(
    ("change", "check", "ok", "said"),
    [
        ({"python": "3.9.2"}, "python", False, "3.10"),
        ({"packages": {"dask": None}}, "packages", False, "pip install dask"),
        ({"packages": {"numpy": None}}, "", True, ""),
        ({"temporary": replace(HOME, problem="Read-only file system")}, "temporary", False, "TMP"),
        ({"temporary": replace(HOME, free_bytes=2**20)}, "temporary", None, "TMPDIR"),
        ({"has_memfd": False}, "memfd", None, "slowly"),
        ({"shape": SHAPE}, "cores", None, "not bound"),
    ],
)
def test_a_bad_machine(change: dict[str, Any], check: str, ok: bool | None, said: str) -> None:
    found = bad(checks.check_machine(machine(**change), is_node=True))
    assert list(found) == [check][: len(check)]
    if check:
        assert found[check].ok is ok
        assert said in found[check].advice


def test_many_nodes_need_many_descriptors() -> None:
    few = machine(open_files=1024)
    assert checks.check_open_files(few, 256).ok
    finding = checks.check_open_files(few, 9408)
    assert finding.ok is False
    assert "19328" in finding.found


@pytest.mark.parametrize(
    ("facts", "check", "ok", "said"),
    [
        ({"programs": {"sbatch": None}}, "batch", False, "--site"),
        ({"problem": "`sinfo` gave no answer"}, "batch", False, "queue="),
        ({"answered_s": 30.0}, "batch", None, "poll_jobs_s"),
        ({"launcher_problem": "nothing starts agents"}, "launcher", False, "launcher="),
        ({"launcher": "mpiexec"}, "launcher", None, "prologue="),
        ({"python": "/x/python", "python_problem": "does not exist"}, "python", False, "python="),
        ({"python": "python3", "python_problem": "unseen"}, "python", None, "setup"),
        ({"python": "/tmp/venv/bin/python"}, "python", None, "all nodes"),
        ({"shape": NodeShape.declare(cores=8)}, "node", None, "gpus="),
    ],
)
def test_a_bad_pool(facts: dict[str, Any], check: str, ok: bool | None, said: str) -> None:
    found = bad(checks.check_pool(CLUSTER, machine(), pool_facts(**facts)))
    assert list(found) == [check]
    assert found[check].ok is ok
    assert said in found[check].advice


def test_an_interface_that_only_nodes_have_is_a_warning() -> None:
    facts = pool_facts()
    remote = checks.check_pool(CLUSTER.updated(interface="hsn0"), machine(), facts)
    assert bad(remote)["interface"].ok is None
    local = checks.check_pool(Pool.declare("here", interface="hsn0", cores=1), machine(), facts)
    assert bad(local)["interface"].ok is False
    assert "lo, eth0" in bad(local)["interface"].found


def test_limits_of_the_site_are_said() -> None:
    bins = [{"nodes": [1, 2], "walltime": "2h"}, {"nodes": [3, 8], "walltime": "30min"}]
    pool = CLUSTER.updated(bins=bins, walltime="1h", max_allocations=9, max_queued=4)
    found = bad(checks.check_limits(pool))
    assert "4 nodes at most 30m" in found["walltime"].found
    assert "4" in found["allocations"].advice


def test_where_runs_are_kept() -> None:
    pools = [CLUSTER]
    here = [Pool.declare("here")]
    in_tmp = replace(HOME, path="/tmp/me/runs", file_system="xfs")
    in_memory = replace(HOME, path="/work/runs", file_system="tmpfs")
    assert checks.check_run_folder(HOME, pools).ok
    assert checks.check_run_folder(in_tmp, here).ok
    assert checks.check_run_folder(in_tmp, pools).ok is None
    assert checks.check_run_folder(in_memory, pools).ok is None
    wrong = checks.check_run_folder(replace(HOME, problem="Permission denied"), here)
    assert wrong.ok is False
    assert "run_folder=" in wrong.advice


def test_where_the_scheduler_listens() -> None:
    assert checks.check_address(Door(host="10.0.0.1"), machine(), [CLUSTER]).found.endswith(
        "(eth0)"
    )
    assert checks.check_address(Door(host="127.0.0.1"), machine(), [CLUSTER]).ok is None
    assert checks.check_address(Door(host="127.0.0.1"), machine(), [Pool.declare("here")]).ok
    wrong = checks.check_address(Door(problem="no 'hsn0' here"), machine(), [CLUSTER])
    assert wrong.ok is False
    assert "scheduler_interface=" in wrong.advice


@pytest.mark.parametrize(
    ("seen", "check", "ok", "said"),
    [
        ({"connection_problem": "refused"}, "network", False, "scheduler_interface="),
        ({"connection_problem": "[SSL] unknown ca"}, "network", False, "clock"),
        ({"round_trip_s": 0.5}, "network", None, "--inside"),
        ({"callback_problem": "timed out"}, "way back", False, "interface="),
        ({"clock_ahead_s": -90.0}, "clock", None, "logs"),
        ({"n_granted": 4}, "granted", None, "exclusive=true"),
        ({"n_granted": 64}, "granted", None, "launcher_options="),
        ({"folder": replace(HOME, problem="Read-only")}, "run folder", False, "run_folder="),
        ({"scratch": replace(HOME, problem="Permission denied")}, "scratch", False, "scratch="),
        ({"home": replace(HOME, problem="not visible")}, "home", None, "elsewhere"),
        ({"launcher_path": None}, "launcher", False, "prologue="),
        ({"machine": machine(open_files=1024)}, "open files", None, "ulimit"),
        ({"machine": machine(python="3.12.1")}, "versions", False, "one environment"),
    ],
)
def test_a_bad_node(seen: dict[str, Any], check: str, ok: bool | None, said: str) -> None:
    found = bad(judged(**seen))
    assert list(found) == [check]
    assert found[check].ok is ok
    assert said in found[check].advice


def test_what_starts_ranks_is_needed_only_if_the_pool_says_so() -> None:
    nothing = report(rank_launcher="", rank_problem="there is no mpirun.", rank_advice="Load it.")
    silent = node_checks.check_rank_launcher(nothing, CLUSTER)
    assert silent.ok is True
    assert "Load it" in silent.found
    wanted = node_checks.check_rank_launcher(nothing, CLUSTER.updated(rank_launcher="mpirun"))
    assert (wanted.ok, wanted.found, wanted.advice) == (False, "there is no mpirun.", "Load it.")
    assert node_checks.check_rank_launcher(report(), CLUSTER).found.startswith("/usr/bin/mpiexec")


def test_packages_of_both_sides_are_compared() -> None:
    there = machine(packages=dict.fromkeys(PACKAGES, "1.0") | {"distributed": "0.9"})
    found = bad(judged(machine=there))["versions"]
    assert found.ok is False
    assert found.found == "distributed 0.9 (1.0 here)"
    other_numpy = machine(packages=dict.fromkeys(PACKAGES, "1.0") | {"numpy": None})
    assert bad(judged(machine=other_numpy))["versions"].ok is None


@pytest.mark.parametrize(
    ("shape", "n_driver", "ok", "said"),
    [
        (replace(NVIDIA, gpu_ids=("0",)), 1, False, "4 were expected"),
        (replace(NVIDIA, gpu_ids=tuple("012345")), 6, None, "4 were expected"),
        (replace(NVIDIA, origin={"gpus": "asked of the batch system"}), 0, False, "no driver"),
        (replace(NVIDIA, origin={"gpus": "CUDA_VISIBLE_DEVICES"}), 0, None, "shows 0"),
        (replace(NVIDIA, gpu_vendor="amd"), 4, False, "profile says nvidia"),
    ],
)
def test_gpus_are_counted(shape: NodeShape, n_driver: int, ok: bool | None, said: str) -> None:
    pool = CLUSTER.updated(gpu_vendor="nvidia")
    found = bad(judged(pool, machine=machine(shape=shape), n_driver_gpus=n_driver))
    assert list(found) == ["GPUs"]
    assert found["GPUs"].ok is ok
    assert said in found["GPUs"].found


def test_a_node_smaller_than_its_profile() -> None:
    small = NodeShape.declare(cores=6, gpus=4, memory="16GiB")
    shape = replace(small, is_real=True, gpu_vendor="nvidia")
    found = judged(machine=machine(shape=shape, n_affinity=6), n_granted=6)
    assert [(one.ok, one.check) for one in found if one.ok is not True] == [
        (False, "offers"),
        (None, "offers"),
    ]


def test_a_job_without_report_is_explained_by_its_log() -> None:
    log = "loading\nexadask: a line of the pool's setup failed on n1 with exit code 1: module x\n"
    outcome = ProbeOutcome(job="7", problem="failed (exit code 1)", log_tail=log)
    (finding,) = node_checks.check_outcome(CLUSTER, machine(), outcome)
    assert finding.ok is False
    assert finding.found.splitlines()[0] == "job 7 failed (exit code 1)"
    assert "module x" in finding.found
    assert finding.advice.startswith("Correct setup=")


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("/opt/python: No module named exadask", "exadask"),
        ("node.sh: line 7: exec: python9: not found", "python="),
        ("bash: /home/me/runs/allocations/a/node.sh: No such file or directory", "run_folder="),
        ("job.sh: line 30: mpiexec: command not found", "mpiexec in prologue="),
        ("exadask: the launcher gave n1 no rank", "launcher="),
        ("something else", "log"),
    ],
)
def test_logs_name_the_fact_to_change(log: str, advice: str) -> None:
    assert advice in node_checks.cure_of(log)


def test_a_report_survives_the_way() -> None:
    assert NodeReport.from_json(report().as_json()) == report()
    with pytest.raises(TypeError):
        NodeReport.from_json(json.dumps(json.loads(report().as_json()) | {"new": 1}))
    with pytest.raises(ValueError, match="line 1"):
        NodeReport.from_json(report().as_json()[:50])


def test_the_probe_is_the_shortest_sensible_job() -> None:
    bins = [{"nodes": 1, "walltime": "2min"}, {"nodes": [2, 4], "walltime": "12h"}]
    pool = CLUSTER.updated(walltime="12h", bins=bins)
    request = probe_request(pool, Path("/r"), "srun")
    assert (request.nodes, request.walltime_s) == (1, 120.0)
    assert request.agent_argv[-4:] == ("/r", "doctor-gpu", "--launcher", "srun")


def test_this_machine_can_be_surveyed() -> None:
    facts = survey_machine()
    assert facts.interfaces["lo"] == "127.0.0.1"
    assert facts.packages["dask"] is not None
    assert sys.version.startswith(facts.python)
    assert facts.open_files > 0


def test_looking_at_folders_leaves_nothing(tmp_path: Path) -> None:
    assert survey_folder(tmp_path).problem == ""
    assert survey_run_folder(tmp_path / "new" / "runs").problem == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert survey_run_folder(tmp_path / "file").problem == "a file is in the way"
    assert survey_folder(tmp_path / "none").problem == os.strerror(2)


def test_findings_fit_a_terminal() -> None:
    long = Finding(check="run folder", ok=False, found="word " * 30, advice="do this " * 20)
    quoting = Finding(check="job", ok=None, found="it failed\n" + "log " * 30)
    lines = "\n".join(_rendered([Section(title="a node", findings=[long, quoting])])).splitlines()
    assert max(len(line) for line in lines if "| log" not in line and "\x1b" not in line) <= 80
    assert lines[-1] == "1 failure, 1 warning"
    assert sum("->" in line for line in lines) == 1
