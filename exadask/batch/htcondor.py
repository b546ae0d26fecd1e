"""HTCondor. Answers follow its manual (23); no real system was at hand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Any

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, ended, text_of
from exadask.batch.directives import Dialect, Directive
from exadask.batch.jobqueue import cancel_command, render_job, submit_command
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_body
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB = "HTCondorJob"
_JOB_ID = r"submitted to cluster (?P<job_id>\d+)"
_FIELDS = (
    "ClusterId,JobStatus,HoldReason,RemoveReason,ExitCode,ExitBySignal,ExitSignal,"
    "ServerTime,JobCurrentStartDate,ExadaskWalltime"
)
_WALLTIME_WORDS = "JobCurrentStartDate"  # in our expression, which RemoveReason quotes


def _flags(text: str) -> set[str]:
    """Name the command of a submit description; their case does not matter."""
    return {text.partition("=")[0].strip().lower()}


DIALECT = Dialect(prefix="", flags=_flags, aliases={})

REFUSALS = (
    Refusal("connect|timed out|Can't find address|failed to (connect|commit)|try again", False),
    Refusal("MAX_JOBS|exceed|too many", False),
    Refusal("accounting|group", advice="Change account=."),
    Refusal("request_?(cpus|memory|gpus)", advice="Change cores=, memory= or gpus=."),
    Refusal("requirements|parse|expression|submit file", advice="Change select= or directives=."),
)


class HtCondor:
    """HTCondor: one job on one machine.

    ``job.sh`` is a submit description; what runs once is in ``node.sh``, which calls itself again
    for the agent. The walltime is kept by an expression that removes the job; a job that lost its
    machine is removed instead of run again. There are no queues and no quality of service;
    `Pool.select` holds requirements, `Pool.account` the accounting group.
    """

    name = "htcondor"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        asked = [f"{one.flag} = {one.value}" for one in _commands(request)]
        kept = DIALECT.asked([Directive(line) for line in asked], request.pool)
        command = f"exec /bin/bash {shlex.quote(str(request.node_script))} 2>&1"
        job = render_job(_JOB, request, kept, command.replace("$", "$(DOLLAR)"))
        node = (
            "#!/bin/bash\nif [ $# -eq 0 ]; then # the job itself\n"
            f"{job_body(request)}fi\n{node_body(request)}"
        )
        return Scripts(job=job, node=node)

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits the submit description."""
        return [*submit_command(_JOB), str(request.job_script)]

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it."""
        return answers.submitted(reply, _JOB_ID, REFUSALS)

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give one command that asks for all these jobs."""
        return ["condor_q", "-json", "-attributes", _FIELDS, *ids]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it; of jobs that have left the queue it says nothing."""
        if reply.exit_code:
            raise answers.query_failed(reply)
        jobs = answers.records(answers.read_json(reply.stdout))
        return complete({text_of(job, "ClusterId"): _status(job) for job in jobs}, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Ask the history."""
        return ["condor_history", "-json", "-attributes", _FIELDS, *ids]

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it."""
        return self.parse_status(reply, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return [*cancel_command(_JOB), *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Nothing: machines of a pool of HTCondor have little in common."""
        return None

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Say that nothing is known."""
        return None


def _commands(request: AllocationRequest) -> list[Directive]:
    pool, shape = request.pool, request.pool.shape
    walltime = ceil(request.walltime_s)
    log = str(request.log).replace("$", "$(DOLLAR)")
    over_time = f"JobStatus == 2 && time() - {_WALLTIME_WORDS} > {walltime}"
    asked = {
        "batch_name": request.name,
        "output": log,
        "stream_output": "True",  # while it runs
        "log": f"{request.folder}/htcondor.log".replace("$", "$(DOLLAR)"),
        "MY.ExadaskWalltime": str(walltime),
        "periodic_remove": f"({over_time}) || (JobStatus == 1 && NumJobStarts > 0)",
    }
    if shape:
        asked["request_cpus"] = str(shape.cores)
    if pool.memory_asked_bytes is not None:
        asked["request_memory"] = str(-(-pool.memory_asked_bytes // 2**20))
    if shape and shape.gpus and pool.gpu_option != "none":
        asked["request_gpus"] = str(shape.gpus)
    if pool.account:
        asked["accounting_group"] = pool.account
    if pool.select:
        asked["requirements"] = pool.select
    return [Directive(name, value) for name, value in asked.items()]


def _status(job: Mapping[str, Any]) -> JobStatus:
    number = job.get("JobStatus")
    if number == 1:
        return JobStatus(state=JobState.PENDING)
    if number == 5:
        reason = text_of(job, "HoldReason")
        return JobStatus(state=JobState.PENDING, reason=reason, is_held=True)
    if number in (2, 6, 7):
        reason = "suspended" if number == 7 else ""
        return JobStatus(state=JobState.RUNNING, reason=reason, left_s=_left_s(job))
    if number == 3:
        return _removed(text_of(job, "RemoveReason"))
    if number != 4:
        return JobStatus(state=JobState.UNKNOWN, reason=text_of(job, "JobStatus"))
    code = answers.whole_of(job.get("ExitCode"))
    if job.get("ExitBySignal") is True:
        reason = f"signal {text_of(job, 'ExitSignal')}"
        return ended(EndCause.FAILED, exit_code=code, reason=reason)
    return ended(exit_code=code, reason=f"exit code {code}" if code else "")


def _removed(reason: str) -> JobStatus:
    """Tell our own expression, which says twice why, from somebody's condor_rm."""
    if "PeriodicRemove" not in reason:
        return ended(EndCause.CANCELLED, reason=reason)
    return ended(EndCause.TIMEOUT, reason="its walltime is over, or it lost its machine")


def _left_s(job: Mapping[str, Any]) -> float | None:
    now, start, may = (
        answers.number_of(job, name)
        for name in ("ServerTime", "JobCurrentStartDate", "ExadaskWalltime")
    )
    if now is None or start is None or may is None:
        return None
    return max(0.0, may - (now - start))
