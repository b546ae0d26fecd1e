"""Flux. Answers were captured from flux-core 0.88."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Any

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, text_of
from exadask.batch.directives import Dialect, Directive, getopt_flags, quoted
from exadask.batch.jobqueue import render_job
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB_ID = r"(?m)^\s*(?P<job_id>[f\u0192][1-9A-HJ-NP-Za-km-z]+)\s*$"


def _flags(text: str) -> set[str]:
    """Name the flag; ``--setattr`` with its attribute, as attributes add up."""
    found = re.match(r"--setattr[= ]([\w.]+)", text)
    return {f"--setattr={found[1]}"} if found else getopt_flags(text)


DIALECT = Dialect(
    prefix="#flux:",
    flags=_flags,
    aliases={
        "-B": "--bank",
        "-N": "--nodes",
        "-c": "--cores-per-slot",
        "-g": "--gpus-per-slot",
        "-n": "--nslots",
        "-q": "--queue",
        "-t": "--time-limit",
        "-x": "--exclusive",
        "--bank": "--setattr=bank",
    },
)

REFUSALS = (
    Refusal("Unable to connect|Connection (refused|reset)|timed out|broker socket", False),
    Refusal("max(imum)? .*jobs|job limit|disabled|stopped", False),
    Refusal("queue", advice="Change queue=."),
    Refusal("bank|association|user/bank|account", advice="Change account=."),
    Refusal("duration|time.?limit", advice="Change walltime=."),
    Refusal("nnodes|ncores|ngpus|unsatisfiable|size", advice="Change nodes=, cores= or gpus=."),
    Refusal("Permission denied", advice="This instance of Flux is somebody else's."),
    Refusal("unrecognized arguments|usage:", advice="Change directives= or skip_directives=."),
)

_PENDING = {"DEPEND", "PRIORITY", "SCHED"}
_RUNNING = {"RUN", "CLEANUP"}
_RESULTS = {
    "COMPLETED": EndCause.COMPLETED,
    "CANCELED": EndCause.CANCELLED,
    "TIMEOUT": EndCause.TIMEOUT,
    "FAILED": EndCause.FAILED,
}
_UNKNOWN_JOB = re.compile(r"JobID \S+ unknown|unknown job|No such job", re.IGNORECASE)


class Flux:
    """Flux: one batch job with N nodes, which is an instance of Flux of its own.

    Account means bank. Flux has no request for memory and no quality of service.
    """

    name = "flux"
    # Ids in ASCII: without it they begin with a florin sign, which not every locale can write.
    environment: Mapping[str, str] = MappingProxyType({"FLUX_F58_FORCE_ASCII": "1"})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        header = DIALECT.lines(_directives(request), request.pool)
        job = render_job("Job", request, header, job_body(request))
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits the job script."""
        return ["flux", "batch", str(request.job_script)]

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it."""
        return answers.submitted(reply, _JOB_ID, REFUSALS)

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give one command that asks for all these jobs, ended ones among them."""
        return ["flux", "jobs", "--json", *ids]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it; of a single job it is that job alone."""
        answer = answers.read_json(reply.stdout)
        jobs = answers.records(answer.get("jobs")) if isinstance(answer, dict) else []
        if isinstance(answer, dict) and "jobs" not in answer:
            jobs = [answer]
        found = {_ascii(text_of(job, "jobid")): _status(job) for job in jobs if "jobid" in job}
        if reply.exit_code and not found and not _UNKNOWN_JOB.search(reply.stderr):
            raise answers.query_failed(reply)
        return {job: found.get(_ascii(job), answers.UNKNOWN) for job in ids}

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Nothing: `status_argv` knows ended jobs too."""
        return None

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known."""
        return complete({}, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return ["flux", "cancel", *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Ask how many nodes have how many cores and GPUs together."""
        queue = ["-q", pool.queue] if pool.queue else []
        return ["flux", "resource", "list", *queue, "-s", "all", "-no", "{nnodes} {ncores} {ngpus}"]

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Read the answer to it: the mean of each line, rounded down; Flux knows no memory."""
        rows = [line.split() for line in reply.stdout.splitlines()]
        numbers = [[answers.whole_of(word) or 0 for word in row] for row in rows if len(row) == 3]
        return answers.smallest(
            (cores // nodes, None, max(0, gpus) // nodes)
            for nodes, cores, gpus in numbers
            if nodes > 0
        )


def _directives(request: AllocationRequest) -> list[Directive]:
    pool = request.pool
    asked = [
        Directive("--job-name", quoted(request.name)),
        Directive("--output", quoted(request.log)),
        Directive("-N", str(request.nodes)),
        Directive("-t", f"{ceil(request.walltime_s)}s"),
    ]
    if pool.queue:
        asked.append(Directive("--queue", quoted(pool.queue)))
    if pool.account:
        asked.append(Directive("--setattr=bank", quoted(pool.account)))
    if pool.exclusive or pool.shape is None:
        return [*asked, Directive("--exclusive")]
    asked += [Directive("-n", str(request.nodes)), Directive("-c", str(pool.shape.cores))]
    if pool.shape.gpus and pool.gpu_option != "none":
        asked.append(Directive("-g", str(pool.shape.gpus)))
    return asked


def _status(job: Mapping[str, Any]) -> JobStatus:
    state = text_of(job, "state")
    if state in _PENDING:
        annotations = answers.table(job, "annotations")
        sched = answers.table(annotations, "sched")
        is_held = answers.number_of(job, "urgency") == 0
        reason = text_of(sched, "reason_pending") or ("held" if is_held else state)
        return JobStatus(state=JobState.PENDING, reason=reason, is_held=is_held)
    if state in _RUNNING:
        return JobStatus(state=JobState.RUNNING, left_s=_left_s(job))
    if state != "INACTIVE":
        return JobStatus(state=JobState.UNKNOWN, reason=state)
    return _past(job)


def _past(job: Mapping[str, Any]) -> JobStatus:
    exception = answers.table(job, "exception")
    kind, note = text_of(exception, "type"), text_of(exception, "note")
    result = text_of(job, "result")
    code = answers.whole_of(job.get("returncode"))
    cause = _RESULTS.get(result)
    if result == "FAILED" and kind in ("node-failure", "lost-shell"):
        cause = EndCause.NODE_FAILURE
    return JobStatus(
        state=JobState.ENDED,
        reason=": ".join(part for part in (kind or result, note) if part),
        # Flux takes what it can never run, and lets it fail at once.
        is_hopeless=result == "FAILED" and kind == "alloc",
        cause=cause,
        exit_code=code,
    )


def _left_s(job: Mapping[str, Any]) -> float | None:
    """Subtract how long a job has run from how long it may; a duration of 0 is no limit."""
    may, has = answers.number_of(job, "duration"), answers.number_of(job, "runtime")
    return max(0.0, may - has) if may and has is not None else None


def _ascii(job: str) -> str:
    return job.replace("\u0192", "f")
