"""Batch systems that are not there: their commands on PATH, jobs that really run, pretended nodes.

`FakeBatch` lays out a folder with the commands of PBS, LSF or Flux. They answer with the formats,
exit codes and quirks of the real ones, as captured (OpenPBS 23.06, flux-core 0.88) or, for LSF,
as its manual shows them. There is no server: each job has a runner, a process that waits for its
turn, starts the job script, keeps the walltime, and ends with the job.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from exadask.testing.waiting import eventually

FOLDER = "FAKE_BATCH_HOME"
NODE = "FAKE_BATCH_NODE"
_MARK = "FAKE_BATCH_JOB"
_POLL_S = 0.05
_COMMANDS = {
    "pbs": ("qsub", "qstat", "qdel", "pbsdsh", "pbsnodes"),
    "lsf": ("bsub", "bjobs", "bkill", "blaunch"),
    "flux": ("flux",),
}
_KILL_AFTER_S = 2.0
_NODES = 4
_NODE_CORES = 4

State = Literal["held", "pending", "running", "ended"]


@dataclass(kw_only=True)
class FakeJob:
    """A job, as its runner and the commands see it."""

    number: int
    name: str
    script: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    nodes: int
    walltime_s: float
    queue: str
    output: str = ""
    is_direct: bool = False
    state: State = "pending"
    submitted_s: float = field(default_factory=time.time)
    began_s: float = 0.0
    ended_s: float = 0.0
    hosts: list[int] = field(default_factory=list)
    is_cancelled: bool = False
    is_late: bool = False
    exit_code: int | None = None


class System(Protocol):
    """What differs between the systems when a job runs: a module of this package."""

    def job_environment(self, machine: Machine, job: FakeJob) -> dict[str, str]:
        """Give the variables of a job script, added to those of its submission."""

    def job_folder(self, job: FakeJob) -> str:
        """Say where a job script starts."""


class Machine:
    """The shared memory of the commands and runners: one locked file.

    Parameters
    ----------
    folder : Path
        Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "machine.json").read_text())
        self.name: str = facts["name"]
        self.minute_s: float = facts["minute_s"]

    @contextlib.contextmanager
    def jobs(self) -> Iterator[dict[int, FakeJob]]:
        """Give all jobs, to look at and to change, while nobody else does."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.folder / "jobs.json"
            stored = json.loads(path.read_text()) if path.exists() else []
            found = {one["number"]: FakeJob(**one) for one in stored}
            yield found
            path.write_text(json.dumps([asdict(one) for one in found.values()]))

    def submit(self, job: FakeJob) -> FakeJob:
        """Take a job, and start its runner."""
        with self.jobs() as jobs:
            job.number = max(jobs, default=0) + 1
            script = self.folder / f"{job.number}.sh"
            script.write_bytes(Path(job.script).read_bytes())
            job.script = str(script)
            jobs[job.number] = job
        command = [sys.executable, "-I", "-m", __name__, str(self.folder), str(job.number)]
        environment = {name: text for name, text in os.environ.items() if name != _MARK}
        nothing = subprocess.DEVNULL
        with (self.folder / f"{job.number}.err").open("wb") as errors:
            subprocess.Popen(
                command,
                stdin=nothing,
                stdout=nothing,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        return job

    def look(self) -> dict[int, FakeJob]:
        """Give all jobs, to look at."""
        with self.jobs() as jobs:
            return jobs

    def cancel(self, number: int) -> FakeJob | None:
        """Ask the runner of a job to end it; None if there is no such job."""
        with self.jobs() as jobs:
            job = jobs.get(number)
            if job is not None and job.state != "ended":
                job.is_cancelled = True
            return job

    def mark(self, job: FakeJob) -> dict[str, str]:
        """Give the variable by which the processes of a job are found."""
        return {_MARK: f"{self.folder}#{job.number}", FOLDER: str(self.folder)}

    def current(self) -> FakeJob:
        """Find the job in which this process runs."""
        return self.look()[int(os.environ[_MARK].rpartition("#")[2])]

    def try_begin(self, number: int) -> FakeJob:
        """Give a job its nodes if it is its turn, or end it if it was cancelled before."""
        with self.jobs() as jobs:
            job = jobs[number]
            waiting = [one for one in jobs.values() if one.state == "pending" and is_possible(one)]
            busy = {host for one in jobs.values() if one.state == "running" for host in one.hosts}
            free = [host for host in range(_NODES) if host not in busy]
            if job.is_cancelled:
                job.state, job.ended_s = "ended", time.time()
            elif waiting and waiting[0] is job and job.nodes <= len(free):
                job.hosts, job.state, job.began_s = free[: job.nodes], "running", time.time()
            return job

    def finish(self, job: FakeJob, exit_code: int, *, is_late: bool) -> None:
        """Write down how a job has ended."""
        with self.jobs() as jobs:
            jobs[job.number].exit_code = exit_code
            jobs[job.number].is_late = is_late
            jobs[job.number].ended_s = time.time()
            jobs[job.number].state = "ended"


class FakeBatch:
    """A batch system of four pretended nodes, for as long as the context lasts.

    Parameters
    ----------
    name : {"pbs", "lsf", "flux"}
        Which one.
    folder : Path
        Where its commands and jobs are kept.
    minute_s : float
        How long a minute of a walltime lasts [s].
    """

    def __init__(self, name: str, folder: Path, *, minute_s: float = 60.0) -> None:
        self._folder = folder
        self._programs = folder / "bin"
        self._programs.mkdir(parents=True)
        facts = {"name": name, "minute_s": minute_s}
        (folder / "machine.json").write_text(json.dumps(facts))
        for command in _COMMANDS[name]:
            self._write(name, command)
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> FakeBatch:
        changes = {
            FOLDER: str(self._folder),
            "PATH": f"{self._programs}{os.pathsep}{os.environ['PATH']}",
        }
        self._before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        return self

    def __exit__(self, *_: object) -> None:
        machine = Machine(self._folder)
        with machine.jobs() as jobs:
            for job in jobs.values():
                job.is_cancelled = True
        eventually(lambda: all(one.state == "ended" for one in machine.look().values()))
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value

    def _write(self, system: str, command: str) -> None:
        program = self._programs / command
        module = f"exadask.testing.fake_{system}"
        line = f'exec {sys.executable} -I -m {module} {command} "$@"'
        program.write_text(f"#!/bin/sh\nexport {FOLDER}={self._folder}\n{line}\n")
        program.chmod(0o755)


def is_possible(job: FakeJob) -> bool:
    """Whether the machine, were it empty, could run a job."""
    return job.nodes <= _NODES


def this_machine() -> Machine:
    """Find the machine whose command is running."""
    return Machine(Path(os.environ[FOLDER]))


def spread(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    *,
    folder: str | None = None,
    output: Path | None = None,
) -> list[int]:
    """Run one process per node; return the exit codes, negative for a signal."""
    with contextlib.ExitStack() as stack:
        log = None if output is None else stack.enter_context(output.open("ab"))
        processes = [
            subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
            )
            for command, environment in zip(commands, environments, strict=True)
        ]
        return [process.wait() for process in processes]


def run_job(folder: Path, number: int) -> None:
    """Be the runner of a job."""
    machine = Machine(folder)
    while (job := machine.try_begin(number)).state in ("pending", "held"):
        time.sleep(_POLL_S)
    if job.state == "ended":
        return
    system: System = importlib.import_module(f"exadask.testing.fake_{machine.name}")
    spool = spool_of(machine, job)
    environment = job.environment | machine.mark(job) | system.job_environment(machine, job)
    with spool.open("ab") as output:
        process = subprocess.Popen(
            ["/bin/bash", job.script, *job.arguments],
            env=environment,
            cwd=system.job_folder(job),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    is_late = _watch(machine, job, process)
    _end_all(machine, job)
    code = process.wait()
    if job.output and not job.is_direct:
        with contextlib.suppress(OSError):
            deliver(spool, Path(job.output))
    machine.finish(job, code, is_late=is_late)


def spool_of(machine: Machine, job: FakeJob) -> Path:
    """Say where the output of a running job goes."""
    return Path(job.output) if job.is_direct else machine.folder / f"{job.number}.out"


def deliver(spool: Path, output: Path) -> None:
    """Bring the output of a job where it belongs, as its owner's only."""
    with output.open("ab") as file:
        file.write(spool.read_bytes())
    output.chmod(0o600)


def _watch(machine: Machine, job: FakeJob, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a job ends, or must end; return whether its time was up."""
    deadline_s = time.monotonic() + job.walltime_s
    while process.poll() is None:
        if time.monotonic() > deadline_s:
            return True
        if machine.look()[job.number].is_cancelled:
            return False
        time.sleep(_POLL_S)
    return False


def _end_all(machine: Machine, job: FakeJob) -> None:
    """End all processes of a job: SIGTERM, and SIGKILL some time later."""
    mark = f"{_MARK}={machine.mark(job)[_MARK]}"
    kill_at_s = time.monotonic() + _KILL_AFTER_S
    number = signal.SIGTERM
    while pids := _marked(mark):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(_POLL_S)
        if time.monotonic() > kill_at_s:
            number = signal.SIGKILL


def _marked(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_zombie = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        if mark.encode() in environment and not is_zombie and path.name != str(os.getpid()):
            found.append(int(path.name))
    return found


if __name__ == "__main__":
    run_job(Path(sys.argv[1]), int(sys.argv[2]))
