"""Slurm. Answers were captured from 22.05."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, ended
from exadask.batch.directives import Dialect, Directive, clock, getopt_flags, quoted, whole_minutes
from exadask.batch.jobqueue import cancel_command, format_bytes, render_job, submit_command
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB = "SLURMJob"
_JOB_ID = r"Submitted batch job (?P<job_id>\d+)"  # sites print more, with numbers of their own

DIALECT = Dialect(
    prefix="#SBATCH",
    flags=getopt_flags,
    aliases={
        "-A": "--account",
        "-C": "--constraint",
        "-D": "--chdir",
        "-G": "--gpus",
        "-J": "--job-name",
        "-L": "--licenses",
        "-N": "--nodes",
        "-c": "--cpus-per-task",
        "-d": "--dependency",
        "-e": "--error",
        "-k": "--no-kill",
        "-n": "--ntasks",
        "-o": "--output",
        "-p": "--partition",
        "-q": "--qos",
        "-t": "--time",
        "-w": "--nodelist",
        "-x": "--exclude",
    },
)

REFUSALS = (
    Refusal("Unable to contact slurm controller|timed out|Socket|Zero Bytes|try again|busy", False),
    Refusal("(QOS|Assoc)(Max|Grp)Submit|(QOS|Assoc)Grp|(QOS|Assoc)Max\\w+Per(User|Acc)", False),
    Refusal("MaxWallDuration", advice="Change walltime=, or qos=."),
    Refusal("(QOS|Assoc)Max\\w+", advice="Change nodes=, cores= or gpus=, or qos=."),
    Refusal("violates accounting/QOS policy", False, "See the limits of account= and qos=."),
    Refusal("invalid partition|partition name", advice="Change queue=."),
    Refusal("account/partition|account or|invalid account|account", advice="Change account=."),
    Refusal("qos", advice="Change qos=."),
    Refusal("time limit|--time", advice="Change walltime=."),
    Refusal("memory", advice="Change memory=, or memory_option=."),
    Refusal("gres|gpu", advice="Change gpus=, or gpu_option=."),
    Refusal("node count|too many nodes|too many cpus", advice="Change nodes= or cores=."),
    Refusal("feature|constraint|reservation|node name", advice="Change directives=."),
    Refusal(
        "node configuration is not available",
        advice="No node has this: change queue=, cores=, memory= or gpus=.",
    ),
    Refusal("unrecognized option|invalid option", advice="Change directives= or skip_directives=."),
    Refusal("Requested operation is presently disabled|drain|partition.*(down|inactive)", False),
    Refusal("permission denied|not permitted", advice="Change queue= or account=."),
)

_ENDED = {
    "COMPLETED": EndCause.COMPLETED,
    "CANCELLED": EndCause.CANCELLED,
    "PREEMPTED": EndCause.CANCELLED,
    "REVOKED": EndCause.CANCELLED,
    "FAILED": EndCause.FAILED,
    "OUT_OF_MEMORY": EndCause.FAILED,
    "TIMEOUT": EndCause.TIMEOUT,
    "DEADLINE": EndCause.TIMEOUT,
    "NODE_FAIL": EndCause.NODE_FAILURE,
    "BOOT_FAIL": EndCause.NODE_FAILURE,
}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED"}
_HELD_STATES = {"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_HELD = {"JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue"}
_HOPELESS = {
    "AccountNotAllowed": "change account=",
    "AssocMaxWallDurationPerJobLimit": "change walltime=, or account=",
    "BadConstraints": "change directives=",
    "DependencyNeverSatisfied": "change directives=",
    "InvalidAccount": "change account=",
    "InvalidQOS": "change qos=",
    "PartitionConfig": "more than the partition allows: change nodes=, walltime= or queue=",
    "PartitionNodeLimit": "change nodes=, or queue=",
    "PartitionTimeLimit": "change walltime=, or queue=",
    "QOSMaxWallDurationPerJobLimit": "change walltime=, or qos=",
    "QOSNotAllowed": "change qos=",
    "QOSTimeLimit": "change walltime=, or qos=",
}
"""Why a job waits for ever, and what its pool should say instead."""

# What one job may have: it waits for ever, unlike limits on all jobs of a user or group.
_HOPELESS_PATTERN = re.compile(r"(?:Assoc|QOS)Max\w+Per(?:Job|Node)(?:Limit)?")
_NOT_A_FAILURE = re.compile(r"Invalid job id specified", re.IGNORECASE)


class Slurm:
    """Slurm: one job with N nodes, whose agents are one job step."""

    name = "slurm"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        header = DIALECT.lines(directives(request), request.pool)
        job = render_job(_JOB, request, header, job_body(request))
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits the job script."""
        return [*submit_command(_JOB), str(request.job_script)]

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it."""
        return answers.submitted(reply, _JOB_ID, REFUSALS)

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give one command that asks for all these jobs."""
        return ["squeue", "-h", "-t", "all", "-j", ",".join(ids), "-o", "%i|%T|%L|%r"]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it."""
        found: dict[str, JobStatus] = {}
        for line in reply.stdout.splitlines():
            fields = line.strip().split("|", 3)
            if len(fields) == 4:
                found[fields[0]] = _status(fields[1], fields[3], fields[2])
        if reply.exit_code and not found and not _NOT_A_FAILURE.search(reply.stderr):
            raise answers.query_failed(reply)
        return complete(found, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Ask the accounting."""
        fields = "JobIDRaw,State,ExitCode,Reason"
        return ["sacct", "-X", "-n", "-P", "-j", ",".join(ids), "-o", fields]

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it; a job that was requeued is named several times, the last counts.

        Raises
        ------
        QueryFailed
            The site keeps no accounts.
        """
        if reply.exit_code and not reply.stdout.strip():
            raise answers.query_failed(reply)
        found: dict[str, JobStatus] = {}
        for line in reply.stdout.splitlines():
            fields = line.strip().split("|", 3)
            if len(fields) == 4:
                found[fields[0]] = _status(fields[1], fields[3], exit_code=fields[2])
        return complete(found, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return [*cancel_command(_JOB), *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Ask for CPUs, memory and GPUs of the nodes of the partition, or of all."""
        partition = ["-p", pool.queue] if pool.queue else []
        return ["sinfo", "-h", "-e", *partition, "-o", "%P|%c|%m|%G"]

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Read the answer to it; without a queue, the default partition counts."""
        rows = [line.strip().split("|", 3) for line in reply.stdout.splitlines()]
        rows = [row for row in rows if len(row) == 4]
        usual = [row for row in rows if row[0].endswith("*")]
        if pool.queue is None and usual:
            rows = usual
        return answers.smallest(
            (answers.whole_of(cpus) or 0, (answers.whole_of(mib) or 0) << 20, _gpus(gres))
            for _, cpus, mib, gres in rows
        )


def directives(request: AllocationRequest) -> list[Directive]:
    """Say what an allocation asks of Slurm."""
    pool = request.pool
    asked = [
        Directive("--job-name", quoted(request.name)),
        Directive("--output", quoted(str(request.log).replace("%", "%%"))),
        Directive("--nodes", str(request.nodes)),
        Directive("--ntasks-per-node", "1"),
        Directive("--time", clock(60 * whole_minutes(request.walltime_s))),
        Directive("--no-requeue"),
        Directive("--no-kill"),  # the loss of one node is not the end of the others
    ]
    named = {"--partition": pool.queue, "--account": pool.account, "--qos": pool.qos}
    asked += [Directive(flag, quoted(value)) for flag, value in named.items() if value]
    if pool.exclusive:
        asked.append(Directive("--exclusive"))
    elif pool.shape:
        asked.append(Directive("--cpus-per-task", str(pool.shape.cores)))
    if pool.memory_option == "all":
        asked.append(Directive("--mem", "0"))
    elif pool.memory_asked_bytes is not None:
        asked.append(Directive("--mem", format_bytes("slurm", pool.memory_asked_bytes)))
    if pool.shape and pool.shape.gpus:
        asked += _gpu_directives(pool, request.nodes, pool.shape.gpus)
    return asked


def _gpu_directives(pool: Pool, nodes: int, gpus: int) -> list[Directive]:
    kind = f"{pool.gpu_type}:" if pool.gpu_type else ""
    options = {
        "gpus-per-node": Directive("--gpus-per-node", f"{kind}{gpus}"),
        "gres": Directive("--gres", f"gpu:{kind}{gpus}"),
        "gpus": Directive("--gpus", f"{kind}{nodes * gpus}"),
    }
    return [options[pool.gpu_option]] if pool.gpu_option in options else []


def _status(state: str, reason: str, left: str = "", exit_code: str = "") -> JobStatus:
    """Read state and reason; both are Slurm's words."""
    word = state.split()[0].rstrip("+") if state.split() else ""  # "CANCELLED by 1000"
    reason = "" if reason in ("None", "(null)") else reason
    if word in _ENDED:
        code = answers.whole_of(exit_code.partition(":")[0])
        return ended(_ENDED[word], exit_code=code, reason=f"{word} {reason}".strip())
    if word in _RUNNING:
        note = reason if word == "RUNNING" else word
        return JobStatus(state=JobState.RUNNING, reason=note, left_s=answers.seconds_of(left))
    if word not in _PENDING | _HELD_STATES:
        return JobStatus(state=JobState.UNKNOWN, reason=state)
    first = reason.split(",")[0].strip(" ()")
    return JobStatus(
        state=JobState.PENDING,
        reason=f"{reason or word} ({_HOPELESS[first]})" if first in _HOPELESS else reason or word,
        is_held=first in _HELD or word in _HELD_STATES,
        is_hopeless=first in _HOPELESS or bool(_HOPELESS_PATTERN.fullmatch(first)),
    )


def _gpus(gres: str) -> int:
    """Count the GPUs in a list such as ``gpu:a100:4(S:0-1),nvme:1``."""
    found = re.findall(r"(?:^|,)gpu(?::[^:,()]+)*?:(\d{1,6})(?![^:,()])", gres)
    return sum(int(count) for count in found)
