"""What starts agents on nodes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from exadask.batch.launchers import LAUNCHERS, launch_lines, launcher_name, rank_expression
from exadask.batch.model import AllocationRequest
from exadask.errors import InvalidRequest
from exadask.pool import LAUNCHERS as LAUNCHER_NAMES
from exadask.pool import Pool

_STANDS_FOR_AGENT = '#!/bin/bash\necho "began=$1 rank=$2 line=$LINE"\n[ "$2" != 1 ] || exit 5\n'


def request_for(
    batch: str, nodes: int, folder: Path = Path("/r"), **facts: Any
) -> AllocationRequest:
    pool = Pool.declare("p", batch=batch, **facts)
    return AllocationRequest(
        pool=pool, name="p-0", nodes=nodes, walltime_s=60, folder=folder, agent_argv=("agent",)
    )


def test_every_launcher_of_a_pool_is_known() -> None:
    assert set(LAUNCHERS) == set(LAUNCHER_NAMES)


@pytest.mark.parametrize(
    ("batch", "nodes", "name"),
    [
        ("slurm", 1, "srun"),
        ("slurm", 2, "srun"),
        ("pbs", 1, "none"),
        ("pbs", 2, "pbsdsh"),
        ("lsf", 1, "none"),
        ("lsf", 2, "blaunch"),
        ("flux", 1, "flux"),
        ("oar", 2, "oarsh"),
        ("sge", 1, "none"),
        ("htcondor", 1, "none"),
        ("local", 1, "none"),
        ("psij:slurm", 2, "srun"),
        ("psij:local", 1, "none"),
    ],
)
def test_each_batch_system_has_a_usual_launcher(batch: str, nodes: int, name: str) -> None:
    assert launcher_name(request_for(batch, nodes)) == name


def test_the_pools_launcher_wins() -> None:
    request = request_for("slurm", 2, launcher="mpiexec")
    assert launcher_name(request) == "mpiexec"
    assert "SLURM" not in rank_expression(request)


def test_nothing_to_start_agents_with_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="launcher="):
        launch_lines(request_for("slurm", 2, launcher="none"))


@pytest.mark.parametrize(
    ("batch", "facts", "line"),
    [
        (
            "slurm",
            {"launcher_options": ["--network=single_node_vni", "-m block:block"]},
            "exec srun --nodes=3 --ntasks=3 --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 "
            "--no-kill --overlap --cpu-bind=none --mpi=none --network=single_node_vni -m "
            'block:block /bin/bash /r/node.sh "$exadask_began"',
        ),
        (
            "pbs",
            {"launcher": "pals"},
            'exec mpiexec -n 3 --ppn 1 --cpu-bind none /bin/bash /r/node.sh "$exadask_began"',
        ),
        (
            "lsf",
            {"launcher": "jsrun"},
            "exec jsrun -n 3 -r 1 -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none /bin/bash /r/node.sh "
            '"$exadask_began"',
        ),
        (
            "flux",
            {},
            "exec flux run -N 3 --exclusive -o exit-timeout=none -o cpu-affinity=off -o "
            'gpu-affinity=off /bin/bash /r/node.sh "$exadask_began"',
        ),
        ("slurm", {"launcher": "ibrun"}, 'exec ibrun /bin/bash /r/node.sh "$exadask_began"'),
    ],
)
def test_launchers_of_one_command(batch: str, facts: dict[str, Any], line: str) -> None:
    assert launch_lines(request_for(batch, 3, **facts)) == [line]


@pytest.mark.parametrize(
    ("launcher", "variable"),
    [
        ("srun", "SLURM_PROCID"),
        ("mpiexec", "PMI_RANK"),
        ("mpiexec", "OMPI_COMM_WORLD_RANK"),
        ("pals", "PALS_RANKID"),
        ("jsrun", "JSM_NAMESPACE_RANK"),
        ("flux", "FLUX_TASK_RANK"),
        ("pbsdsh", "PBS_NODENUM"),
    ],
)
def test_ranks_come_from_the_launcher(launcher: str, variable: str) -> None:
    expression = rank_expression(request_for("slurm", 2, launcher=launcher))
    script = f"echo {expression}"
    environ = {"PATH": os.environ["PATH"], variable: "4"}
    given = subprocess.check_output(["bash", "-c", script], env=environ, text=True)
    assert given == "4\n"
    argued = subprocess.check_output(["bash", "-c", script, "x", "0", "7"], env=environ, text=True)
    assert argued == "7\n"


def run(request: AllocationRequest, programs: dict[str, str], **env: str) -> tuple[int, list[str]]:
    """Run the lines of a launcher with programs that stand for those of a site."""
    folder = request.folder
    folder.mkdir(parents=True)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, text in programs.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    request.node_script.write_text(_STANDS_FOR_AGENT)
    script = "\n".join(["exadask_began=100", *launch_lines(request)])
    environ = {"PATH": f"{bin_folder}:{os.environ['PATH']}", **env}
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.stderr == ""
    return done.returncode, sorted(done.stdout.splitlines())


_SSH = """\
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
LINE=$1; shift; export LINE
"""
_HOSTS = "n1\nn1\nn2\nn3\nn2\n"


@pytest.mark.parametrize("launcher", ["ssh", "oarsh", "blaunch", "pbsdsh"])
def test_one_agent_per_host_though_hosts_repeat(launcher: str, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(_HOSTS)
    programs = {
        "ssh": _SSH + 'exec sh -c "$*"',  # a shell on the node reads its arguments
        "oarsh": _SSH + 'exec sh -c "$*"',
        "blaunch": 'LINE=$1; shift; export LINE\nexec "$@"',
        "pbsdsh": '[ "$1" = -n ] || exit 9\nLINE=$2; shift 3; export LINE\nexec "$@"',
    }
    request = request_for("pbs", 3, tmp_path / 'it\'s a "folder"', launcher=launcher)
    code, lines = run(request, programs, PBS_NODEFILE=str(hosts))
    names = ["0", "2", "3"] if launcher == "pbsdsh" else ["n1", "n2", "n3"]
    expected = [f"began=100 rank={rank} line={name}" for rank, name in enumerate(names)]
    assert lines == expected
    assert code == 5  # one agent failed; the others were waited for


def test_pbsdsh_of_distinct_nodes_is_one_command(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("n1\nn2\n")
    request = request_for("pbs", 2, tmp_path / "a b")
    programs = {"pbsdsh": '[ "$1" = -- ] || exit 9\nshift\nexec "$@" 0'}
    assert run(request, programs, PBS_NODEFILE=str(hosts)) == (0, ["began=100 rank=0 line="])


@pytest.mark.parametrize(
    ("batch", "programs", "env"),
    [
        (
            "slurm",
            {"scontrol": 'echo n1; echo n2; [ "$3" = "n[1-2]" ]'},
            {"SLURM_JOB_NODELIST": "n[1-2]"},
        ),
        ("lsf", {}, {"LSB_HOSTS": "n1 n1 n2"}),
        ("flux", {"flux": "echo n1 n2"}, {}),
    ],
)
def test_hosts_of_a_job(
    batch: str, programs: dict[str, str], env: dict[str, str], tmp_path: Path
) -> None:
    request = request_for(batch, 2, tmp_path / "x", launcher="ssh")
    ssh = {"ssh": _SSH + 'exec sh -c "$*"'}
    code, lines = run(request, programs | ssh, **env)
    assert lines == ["began=100 rank=0 line=n1", "began=100 rank=1 line=n2"]
    assert code == 5


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("mpiexec (OpenRTE) 4.1.4", "--map-by ppr:1:node --bind-to none"),
        ("HYDRA build details:", "-ppn 1 -disable-auto-cleanup"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9", "-ppn 1 /bin/bash"),
    ],
)
def test_mpiexec_of_each_family(version: str, words: str, tmp_path: Path) -> None:
    request = request_for("slurm", 2, tmp_path / "x", launcher="mpiexec")
    text = f'if [ "$1" = --version ]; then echo \'{version}\'; else echo got "$@"; fi'
    code, (line,) = run(request, {"mpiexec": text})
    assert code == 0
    assert line.startswith("got -n 2 ")
    assert words in line
