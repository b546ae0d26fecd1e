"""OAR. Answers follow its manual (2.5); no real system was at hand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, ended, text_of
from exadask.batch.directives import Dialect, Directive, clock, quoted, word_flags
from exadask.batch.jobqueue import cancel_command, job_id_regexp, render_job, submit_command
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB = "OARJob"

DIALECT = Dialect(
    prefix="#OAR",
    flags=word_flags,
    aliases={
        "-n": "--name",
        "-q": "--queue",
        "-l": "--resource",
        "-p": "--property",
        "-t": "--type",
        "-O": "--stdout",
        "-E": "--stderr",
    },
)

REFUSALS = (
    Refusal("connect|timed out|database|try again", False),
    Refusal("quota|too many jobs|limit of jobs", False),
    Refusal("queue", advice="Change queue=."),
    Refusal("project", advice="Change account=."),
    Refusal("walltime", advice="Change walltime=."),
    Refusal(
        "not enough resources|resource|property|properties",
        advice="Change nodes=, cores=, gpus= or select=.",
    ),
    Refusal("Unknown option|syntax", advice="Change directives= or skip_directives=."),
)

_PENDING = {"Waiting", "Hold", "toLaunch", "Launching", "toAckReservation"}
_RUNNING = {"Running", "Suspended", "Resuming", "Finishing"}
_UNKNOWN_JOB = re.compile(r"(?:No job|unknown job|does not exist|not found)", re.IGNORECASE)


class Oar:
    """OAR: one job with N nodes, of which a network of ``oarsh`` reaches the others.

    `Pool.select` holds properties, as SQL. OAR knows no quality of service.
    """

    name = "oar"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        header = DIALECT.lines(_directives(request), request.pool)
        job = render_job(_JOB, request, header, job_body(request))
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits the job script, with its directives as options.

        OAR hands the command to a shell on the first node, and reads no directives then.
        """
        asked = DIALECT.asked(_directives(request), request.pool)
        options = [word for one in asked for word in shlex.split(one)]
        return [
            *submit_command(_JOB),
            *options,
            f"/bin/bash {shlex.quote(str(request.job_script))}",
        ]

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it."""
        return answers.submitted(reply, job_id_regexp(_JOB), REFUSALS)

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give one command that asks for all these jobs, ended ones among them."""
        return ["oarstat", "-J", "-f", *(word for job in ids for word in ("-j", job))]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it."""
        answer = answers.read_json(reply.stdout)
        jobs = answer if isinstance(answer, dict) else {}
        found = {job: _status(answers.table(jobs, job)) for job in jobs if isinstance(job, str)}
        if reply.exit_code and not found and not _UNKNOWN_JOB.search(reply.stdout + reply.stderr):
            raise answers.query_failed(reply)
        return complete(found, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Nothing: `status_argv` knows ended jobs too."""
        return None

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known."""
        return complete({}, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return [*cancel_command(_JOB), *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Nothing: OAR describes single cores, in words of each site."""
        return None

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Say that nothing is known."""
        return None


def _directives(request: AllocationRequest) -> list[Directive]:
    pool = request.pool
    part = ""
    if pool.shape and not pool.exclusive:
        has_gpus = pool.shape.gpus and pool.gpu_option != "none"
        part = f"/gpu={pool.shape.gpus}" if has_gpus else f"/core={pool.shape.cores}"
    asked = [
        Directive("-n", request.name),
        Directive("-O", quoted(request.log)),
        Directive("-E", quoted(request.log)),
        # On one line: of several, OAR would choose one.
        Directive("-l", f"/nodes={request.nodes}{part},walltime={clock(request.walltime_s)}"),
    ]
    if pool.queue:
        asked.append(Directive("-q", quoted(pool.queue)))
    if pool.account:
        asked.append(Directive("--project", quoted(pool.account)))
    if pool.select:
        asked.append(Directive("-p", shlex.quote(pool.select)))
    return asked


def _status(job: Mapping[str, Any]) -> JobStatus:
    state, message = text_of(job, "state"), text_of(job, "message")
    if state in _PENDING:
        return JobStatus(state=JobState.PENDING, reason=message or state, is_held=state == "Hold")
    if state in _RUNNING:
        return JobStatus(state=JobState.RUNNING, reason="" if state == "Running" else state)
    code = answers.whole_of(job.get("exit_code"))
    if code is not None and code > 255:  # as wait() gives it
        code >>= 8
    if state == "Terminated":
        return ended(exit_code=code, reason=f"exit code {code}" if code else "")
    if state not in ("Error", "toError"):
        return JobStatus(state=JobState.UNKNOWN, reason=state)
    events = message + str(job.get("events", ""))[:10000]
    if re.search("WALLTIME", events):
        return ended(EndCause.TIMEOUT, exit_code=code, reason="walltime")
    if re.search("FRAG_JOB_REQUEST|SWITCH_INTO_ERROR_STATE.*delet", events):
        return ended(EndCause.CANCELLED, exit_code=code, reason=message or state)
    return ended(EndCause.FAILED, exit_code=code, reason=message or state)
