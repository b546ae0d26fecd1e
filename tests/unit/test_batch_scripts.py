"""The scripts of an allocation: what they ask of the batch system, and what they do when run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exadask.batch.directives import Dialect, Directive, resource_flags
from exadask.batch.model import AllocationRequest
from exadask.batch.psij import psij_spec
from exadask.batch.registry import batch_system
from exadask.errors import InvalidRequest
from exadask.pool import BATCH_SYSTEMS, Pool

_ONE_NODE_ONLY = {"sge", "htcondor", "local"}
_PRINT_ARGV = "import sys; print('agent', *sys.argv[1:])"


def request_for(batch: str, folder: Path = Path("/runs/x"), **facts: Any) -> AllocationRequest:
    name = batch.partition(":")[0]
    nodes = facts.pop("nodes", 1 if name in _ONE_NODE_ONLY else 2)
    code = facts.pop("code", _PRINT_ARGV)
    pool = Pool.declare("gpu", batch=batch, nodes=nodes, **facts)
    return AllocationRequest(
        pool=pool,
        name="gpu-0",
        nodes=nodes,
        walltime_s=pool.walltime_s,
        folder=folder,
        agent_argv=(sys.executable, "-c", code),
    )


def header(request: AllocationRequest) -> list[str]:
    """What a job script asks of its batch system."""
    script = batch_system(request.pool.batch).render(request).job
    prefixes = ("#SBATCH ", "#PBS ", "#BSUB ", "#$ ", "#OAR ", "#flux: ")
    return [line.partition(" ")[2] for line in script.splitlines() if line.startswith(prefixes)]


def written(request: AllocationRequest) -> AllocationRequest:
    request.folder.mkdir(parents=True, exist_ok=True)
    scripts = batch_system(request.pool.batch).render(request)
    request.job_script.write_text(scripts.job)
    request.node_script.write_text(scripts.node)
    return request


def run(request: AllocationRequest, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", written(request).job_script],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=30,
        check=False,
    )


# -- directives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "skipped", "left"),
    [
        ((), (), ["--mem=4G", "-t 5", "-l walltime=1:00:00", "-l select=2"]),
        (("--mem-per-cpu=1G",), (), ["--mem=4G", "-t 5", "-l walltime=1:00:00", "-l select=2"]),
        (("--time=9",), (), ["--mem=4G", "-l walltime=1:00:00", "-l select=2"]),
        (("#X -l walltime=9,nodes=2",), (), ["--mem=4G", "-t 5", "-l select=2"]),
        ((), ("--mem", "-t"), ["-l walltime=1:00:00", "-l select=2"]),
        ((), ("-l",), ["--mem=4G", "-t 5"]),
        ((), ("-l wall", "--me"), ["--mem=4G", "-t 5", "-l walltime=1:00:00", "-l select=2"]),
    ],
)
def test_flags_are_compared_whole(
    directives: tuple[str, ...], skipped: tuple[str, ...], left: list[str]
) -> None:
    dialect = Dialect(prefix="#X", flags=resource_flags, aliases={"-t": "--time"})
    own = [
        Directive("--mem", "4G"),
        Directive("-t", "5"),
        Directive("-l walltime", "1:00:00"),
        Directive("-l select", "2"),
    ]
    pool = Pool.declare("x", directives=list(directives), skip_directives=list(skipped))
    added = [one.removeprefix("#X ") for one in directives]
    assert dialect.asked(own, pool) == [*left, *added]


def test_slurm_exclusive() -> None:
    request = request_for(
        "slurm", queue="gpu", account="p1", qos="high", gpus=4, cores=64, walltime="61s"
    )
    assert header(request) == [
        "--job-name=gpu-0",
        "--output=/runs/x/job.log",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--time=00:02:00",
        "--no-requeue",
        "--no-kill",
        "--partition=gpu",
        "--account=p1",
        "--qos=high",
        "--exclusive",
        "--gpus-per-node=4",
    ]


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("gpus-per-node", "--gpus-per-node=4"),
        ("gres", "--gres=gpu:4"),
        ("gpus", "--gpus=8"),
        ("none", "--mem=3G"),
    ],
)
def test_slurm_shared(option: str, wanted: str) -> None:
    request = request_for(
        "slurm", gpus=4, cores=8, memory="3GiB", exclusive=False, gpu_option=option
    )
    asked = header(request)
    assert "--exclusive" not in asked
    assert {"--cpus-per-task=8", "--mem=3G"} <= set(asked)
    assert asked[-1] == wanted


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("gpus-per-node", "--gpus-per-node=v100-32:8"),
        ("gres", "--gres=gpu:v100-32:8"),
        ("gpus", "--gpus=v100-32:16"),
    ],
)
def test_slurm_gpus_of_a_type(option: str, wanted: str) -> None:
    request = request_for("slurm", cores=40, gpus=8, gpu_type="v100-32", gpu_option=option)
    assert header(request)[-1] == wanted


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [("494000MiB", "--mem=494000M"), ("480GiB", "--mem=480G"), ("96GB", "--mem=91553M")],
)
def test_memory_is_not_rounded_up_to_more_than_a_node_has(memory: str, wanted: str) -> None:
    request = request_for("slurm", cores=32, memory=memory, memory_option="shape")
    assert header(request)[-1] == wanted
    pbs = request_for("pbs", cores=32, memory="15GB", memory_option="shape")
    assert "-l select=2:mem=14306MB" in header(pbs)


@pytest.mark.parametrize("batch", [name for name in BATCH_SYSTEMS if name != "psij"])
def test_memory_that_nobody_stated_is_never_asked_for(batch: str) -> None:
    request = request_for(batch, cores=4, exclusive=False)
    pool = replace(request.pool, memory_option="shape")  # `Pool.updated` refuses it
    job = batch_system(batch).render(replace(request, pool=pool)).job
    assert not re.search(r"mem|^#BSUB -M|1048576|1T", job, re.MULTILINE)


def test_psij_asks_for_memory_only_if_it_was_stated() -> None:
    request = request_for("psij:slurm", cores=4, exclusive=False)
    assert psij_spec(request).memory_bytes is None
    stated = request_for("psij:slurm", cores=4, exclusive=False, memory="1GiB")
    assert psij_spec(stated).memory_bytes == 2 * 2**30


def test_slurm_directives_of_the_user_come_last_and_replace() -> None:
    request = request_for(
        "slurm", queue="gpu", directives=["-p debug", "-C nvme", "-N3"], skip_directives=["-o"]
    )
    asked = header(request)
    assert asked[-3:] == ["-p debug", "-C nvme", "-N3"]
    assert not any(one.startswith(("--partition", "--nodes", "--output")) for one in asked)


def test_pbs() -> None:
    facts: dict[str, Any] = {"queue": "prod", "account": "p1", "gpus": 4, "cores": 32}
    request = request_for("pbs", walltime="90s", select="system=polaris:ngpus=2", **facts)
    assert header(request) == [
        "-N gpu-0",
        "-S /bin/bash",
        "-j oe",
        "-o /runs/x/job.log",
        "-k oed",
        "-r n",
        "-l select=2:system=polaris:ngpus=2",
        "-l place=scatter:excl",
        "-l walltime=00:01:30",
        "-q prod",
        "-A p1",
    ]
    shared = request_for("pbs", exclusive=False, memory="3GiB", **facts)
    assert "-l select=2:ncpus=32:ngpus=4:mem=3072MB" in header(shared)
    assert "-l place=scatter" in header(shared)


def test_lsf() -> None:
    request = request_for("lsf", walltime="61m", queue="q", account="p1", gpus=4, cores=44)
    assert header(request) == [
        "-J gpu-0",
        "-o /runs/x/job.log",
        "-W 01:01",
        "-rn",
        "-q q",
        "-P p1",
        "-n 2",
        '-R "span[ptile=1]"',
        "-x",
        '-gpu "num=4"',
    ]
    shared = request_for("lsf", cores=4, exclusive=False, directives=['-R "rusage[mem=1]"'])
    assert {"-n 8", '-R "span[ptile=4]"', '-R "rusage[mem=1]"'} <= set(header(shared))
    skipped = request_for("lsf", skip_directives=["-R span"])
    assert not any(one.startswith("-R") for one in header(skipped))
    easy = header(request_for("lsf", launcher="jsrun", cores=44, gpus=4, memory="1GiB"))
    assert easy[-1] == "-nnodes 2"
    assert not any(one.startswith(("-n ", "-R", "-M", "-x", "-gpu")) for one in easy)


def test_grid_engine() -> None:
    request = request_for("sge", cores=4, queue="all.q", directives=["-l h_rt=9,gpu=1"])
    assert header(request) == [
        "-N gpu-0",
        "-S /bin/bash",
        "-j y",
        "-o /runs/x/job.log",
        "-r n",
        "-w e",
        "-q all.q",
        "-pe smp 4",
        "-l h_rt=9,gpu=1",
    ]


def test_flux() -> None:
    request = request_for("flux", queue="pbatch", account="b1", walltime="90s", cores=8)
    assert header(request) == [
        "--job-name=gpu-0",
        "--output=/runs/x/job.log",
        "-N 2",
        "-t 90s",
        "--queue=pbatch",
        "--setattr=bank=b1",
        "--exclusive",
    ]
    shared = request_for("flux", cores=4, gpus=2, exclusive=False, directives=["--bank=b2"])
    assert header(shared)[-4:] == ["-n 2", "-c 4", "-g 2", "--bank=b2"]
    assert batch_system("flux").environment == {"FLUX_F58_FORCE_ASCII": "1"}


def test_oar_gives_its_directives_as_options() -> None:
    request = request_for(
        "oar",
        Path("/a b"),
        walltime="90s",
        select="cluster='x'",
        account="p",
        exclusive=False,
        cores=2,
    )
    argv = batch_system("oar").submit_argv(request)
    assert argv == [
        *("oarsub", "-n", "gpu-0", "-O", "/a b/job.log", "-E", "/a b/job.log"),
        *("-l", "/nodes=2/core=2,walltime=00:01:30", "--project=p", "-p", "cluster='x'"),
        "/bin/bash '/a b/job.sh'",
    ]


def test_htcondor_writes_a_submit_description() -> None:
    facts: dict[str, Any] = {"cores": 4, "gpus": 1, "walltime": "90s", "memory": "2GiB"}
    request = request_for("htcondor", exclusive=False, directives=["Request_Cpus=8"], **facts)
    scripts = batch_system("htcondor").render(request)
    lines = scripts.job.splitlines()
    assert {"request_memory = 2048", "request_gpus = 1", "Request_Cpus = 8"} <= set(lines)
    assert "Executable = /bin/sh" in lines
    assert "Arguments = \"-c 'exec /bin/bash /runs/x/node.sh 2>&1'\"" in lines
    assert lines[-1].strip() == "" or lines[-1] == "Queue"


def test_psij_is_given_a_specification() -> None:
    request = request_for(
        "psij:slurm",
        queue="q",
        qos="high",
        cores=8,
        exclusive=False,
        directives=["-C nvme", "-x=n1"],
    )
    spec = psij_spec(request)
    assert (spec.executor, spec.node_count, spec.processes_per_node) == ("slurm", 2, 1)
    assert (spec.queue, spec.cores_per_process, spec.is_exclusive) == ("q", 8, False)
    assert spec.attributes == (
        ("slurm.qos", "high"),
        ("slurm.constraint", "nvme"),
        ("slurm.exclude", "n1"),
    )
    with pytest.raises(InvalidRequest):
        batch_system("psij").submit_argv(request)


def test_commands_are_those_of_dask_jobqueue() -> None:
    request = request_for("slurm")
    assert batch_system("slurm").submit_argv(request) == ["sbatch", "/runs/x/job.sh"]
    lsf = batch_system("lsf").submit_argv(request_for("lsf"))
    assert lsf == ["sh", "-c", 'exec bsub < "$1"', "bsub", "/runs/x/job.sh"]


# -- what the scripts do ----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [one for one in BATCH_SYSTEMS if one != "psij"] + ["psij:slurm"])
def test_scripts_are_bash(batch: str, tmp_path: Path) -> None:
    request = request_for(
        batch,
        tmp_path / 'it\'s a "run" $HOME',
        env={"A": 'it\'s "$x"\nand `more`'},
        modules=["gcc/12"],
        venv="/venv",
        prologue=["if true; then", "  echo hi", "fi"],
        scratch='$TMPDIR/"x`y`',
    )
    written(request)
    for script in (request.job_script, request.node_script):
        if batch != "htcondor" or script != request.job_script:
            subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("batch", ["local", "sge", "htcondor"])
def test_a_job_starts_its_agent_and_records_its_end(batch: str, tmp_path: Path) -> None:
    request = request_for(batch, tmp_path / 'it\'s a "run" $HOME')
    if batch == "htcondor":
        written(request)
        done = subprocess.run(
            ["bash", request.node_script], capture_output=True, text=True, check=False
        )
    else:
        done = run(request)
    word, began, seconds, rank, zero = done.stdout.split()
    assert (word, began, rank, zero) == ("agent", "--began", "--rank", "0")
    assert abs(int(seconds) - time.time()) < 60
    assert request.exit_record.read_text() == "0\n"


def test_the_exit_code_of_the_agent_is_recorded(tmp_path: Path) -> None:
    request = request_for("local", tmp_path / "x", code="import sys; sys.exit(7)")
    assert run(request).returncode == 7
    assert request.exit_record.read_text() == "7\n"


def test_a_job_that_is_ended_lets_its_agent_say_goodbye(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: (print('bye'), sys.exit(3)));"
        "print('up', flush=True); time.sleep(20)"
    )
    request = written(request_for("local", tmp_path / "x", code=code))
    command = ["bash", str(request.job_script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        job.terminate()
        assert job.stdout.read() == "bye\n"
    assert job.returncode == 3
    assert request.exit_record.read_text() == "3\n"


def test_the_environment_reaches_the_agent(tmp_path: Path) -> None:
    code = "import os; print([os.environ.get(k) for k in ('A', 'B', 'C', 'EXADASK_SCRATCH')])"
    sourced = tmp_path / "activate"
    sourced.write_text('false\nexport C="<$*>"\n')  # a failing command in it is normal
    request = request_for(
        "local",
        tmp_path / "x",
        code=code,
        env={"A": 'it\'s "$HOME"'},
        setup=[
            "if [ -d / ]; then",
            "  export B=block",
            "fi",
            "[ -f /nonexistent ] && source /nonexistent",
            f"source {sourced}",
        ],
        scratch="$BASE/my scratch",
    )
    done = run(request, BASE=str(tmp_path))
    scratch = tmp_path / "my scratch"
    assert done.stdout == f"""['it\\'s "$HOME"', 'block', '<>', '{scratch}']\n"""
    assert scratch.is_dir()


@pytest.mark.parametrize(
    ("part", "line", "named"),
    [
        ("setup", "source /nonexistent/bin/activate", "source /nonexistent/bin/activate"),
        ("setup", "nosuchcommand now", "nosuchcommand now"),
        ("prologue", "false", "false"),
        ("setup", 'eval "$(nosuch shell.bash hook)" && nosuch activate x', "nosuch activate x"),
    ],
)
def test_a_failing_line_is_named(part: str, line: str, named: str, tmp_path: Path) -> None:
    request = request_for("local", tmp_path / "x", **{part: ["true", line, "echo never"]})
    done = run(request)
    assert done.returncode not in (0, None)
    assert f"a line of the pool's {part} failed on" in done.stderr
    assert named in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert request.exit_record.read_text() == f"{done.returncode}\n"


@pytest.mark.parametrize(
    ("body", "is_good"),
    [
        ("echo 'ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile' >&2", False),
        ("echo 'Lmod has detected the following error' >&2; return 1", False),
        ("echo 'gcc/12 loaded' >&2", True),
    ],
)
def test_modules_that_fail_quietly(body: str, is_good: bool, tmp_path: Path) -> None:
    request = request_for(
        "local", tmp_path / "x", setup=[f"module() {{ {body}; }}", "module load gcc/12"]
    )
    done = run(request)
    assert (done.returncode == 0) is is_good
    assert body.split("'")[1] in done.stderr  # the module system's own words
    assert ("module load gcc/12" in done.stderr) is not is_good or not is_good
    assert ("agent" in done.stdout) is is_good


def test_modules_in_the_middle_of_a_command(tmp_path: Path) -> None:
    lines = ['module() { echo "loaded $2"; }', "true &&", "module load a", "module load b"]
    done = run(request_for("local", tmp_path / "x", setup=lines))
    assert done.stdout.splitlines()[:2] == ["loaded a", "loaded b"]
    assert done.returncode == 0


def test_a_job_script_may_come_from_standard_input(tmp_path: Path) -> None:
    sourced = tmp_path / "activate"
    sourced.write_text("false\ntrue\n")
    request = written(request_for("local", tmp_path / "x", prologue=[f"source {sourced}"]))
    with request.job_script.open() as script:
        done = subprocess.run(["bash"], stdin=script, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("agent")
    assert done.returncode == 0, done.stderr


def test_a_scratch_that_cannot_be_made(tmp_path: Path) -> None:
    done = run(request_for("local", tmp_path / "x", scratch="$NOSUCH"))
    assert done.returncode == 1
    assert "scratch=" in done.stderr


@pytest.mark.skipif(shutil.which("mpiexec.mpich") is None, reason="no mpiexec of MPICH")
def test_mpiexec_gives_ranks(tmp_path: Path) -> None:
    mpiexec = tmp_path / "mpiexec"  # that of MPICH, whatever else is there
    mpiexec.write_text('#!/bin/sh\nexec mpiexec.mpich "$@"\n')
    mpiexec.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    request = request_for("slurm", tmp_path / "it's", launcher="mpiexec", code=_PRINT_ARGV)
    done = run(request, SLURM_PROCID="9", PATH=path)  # the number is there too, and wrong
    ranks = sorted(line.split()[-1] for line in done.stdout.splitlines())
    assert ranks == ["0", "1"], done.stderr
    assert request.exit_record.read_text() == "0\n"


# -- dask-jobqueue ----------------------------------------------------------------------------

_IMPORT_PROBE = """
import signal, sys, threading
before = signal.getsignal(signal.SIGINT)
from exadask.batch.registry import batch_system
for name in ("slurm", "pbs", "lsf", "sge", "oar", "htcondor", "flux", "psij", "local"):
    batch_system(name)
assert not {"dask_jobqueue", "distributed"} & set(sys.modules)
from exadask.batch.jobqueue import submit_command
def work():
    found.append(submit_command("SLURMJob"))
found = []
if sys.argv[1] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
assert found == [["sbatch"]], found
assert "dask_jobqueue" in sys.modules
assert signal.getsignal(signal.SIGINT) is before
signal.signal(signal.SIGINT, before)
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_importing_leaves_signals_and_home_alone(where: str, tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    argv = [sys.executable, "-c", _IMPORT_PROBE, where]
    subprocess.run(argv, check=True, timeout=60, env=environ)
    assert not list(tmp_path.rglob("jobqueue.yaml"))


def test_handlers_of_this_process_stay() -> None:
    before = signal.getsignal(signal.SIGINT)
    batch_system("slurm").render(request_for("slurm"))
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.current_thread() is threading.main_thread()


def test_a_users_configuration_does_not_leak() -> None:
    import dask

    plain = batch_system("slurm").render(request_for("slurm"))
    leaks = {
        "cores": 99,
        "queue": "leaked",
        "job-extra": ["--leaked"],
        "job-extra-directives": ["--leaked"],
        "job-script-prologue": ["echo leaked"],
        "env-extra": ["echo leaked"],
        "header-skip": ["--nodes"],
        "shebang": "#!/leaked",
        "walltime": "99:00:00",
        "account": "leaked",
        "name": "leaked",
    }
    with dask.config.set({"jobqueue.slurm": leaks}):
        assert batch_system("slurm").render(request_for("slurm")) == plain
