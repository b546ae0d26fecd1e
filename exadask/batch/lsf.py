"""IBM Spectrum LSF. Answers follow its manual (10.1); no real system was at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, ended, text_of
from exadask.batch.directives import Dialect, Directive, quoted, whole_minutes, word_flags
from exadask.batch.jobqueue import cancel_command, format_bytes, render_job, submit_command
from exadask.batch.launchers import launcher_name
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB = "LSFJob"
_JOB_ID = r"Job <(?P<job_id>\d+)> is submitted"
_FIELDS = "jobid stat exit_code time_left exit_reason pend_reason"


def _flags(text: str) -> set[str]:
    """Name the flag; ``-R`` with the section that it states, as sections add up."""
    sections = re.findall(r"(\w+)\s*\[", text) if text.startswith("-R") else []
    return {f"-R {section}" for section in sections} or word_flags(text)


DIALECT = Dialect(prefix="#BSUB", flags=_flags, aliases={})

REFUSALS = (
    Refusal("Cannot connect|LSF is down|not responding|timed out|try(ing)? (again|later)", False),
    Refusal("pending job threshold|job limit|too many", False),
    Refusal("closed|inactive", False),
    Refusal("no such queue|queue|cannot use", advice="Change queue=."),
    Refusal("project|user group|account", advice="Change account=."),
    Refusal("RUNLIMIT|run limit|time limit", advice="Change walltime=."),
    Refusal("MEMLIMIT|memory", advice="Change memory=, or memory_option=."),
    Refusal("PROCLIMIT|TASKLIMIT|processors|hosts|nnodes", advice="Change nodes= or cores=."),
    Refusal("bad (resource|argument)|syntax|option", advice="Change directives=."),
)

_RUNNING = {"RUN": "", "USUSP": "suspended", "SSUSP": "suspended", "PROV": "", "WAIT": ""}
_UNKNOWN_JOB = re.compile(r"is not found|No (?:matching |unfinished )?job found", re.IGNORECASE)
_TIMEOUT = re.compile(r"RUNLIMIT|run limit|run time limit|DEADLINE", re.IGNORECASE)
_CANCELLED = re.compile(r"TERM_(?:FORCE_)?(?:OWNER|ADMIN)|by (?:job )?owner|by .*admin", re.I)
_NODE = re.compile(r"TERM_(?:UNKNOWN_HOST|EXTERNAL_HOST)|host (?:down|unreach|unavail)", re.I)


class Lsf:
    """LSF: one job with N hosts.

    With the launcher ``jsrun`` nodes are asked for as CSM's easy mode wants it, ``-nnodes N``,
    without slots, memory or exclusive use; otherwise as slots, one per host of an exclusive node.
    A quality of service is asked for as a service class, ``-sla``.
    """

    name = "lsf"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        header = DIALECT.lines(_directives(request), request.pool)
        job = render_job(_JOB, request, header, job_body(request))
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits the job script: LSF reads directives from stdin only."""
        (command,) = submit_command(_JOB)
        return ["sh", "-c", f'exec {command} < "$1"', command, str(request.job_script)]

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it."""
        return answers.submitted(reply, _JOB_ID, REFUSALS)

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give one command that asks for all these jobs, ended ones among them."""
        return ["bjobs", "-a", "-json", "-o", _FIELDS, *ids]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it."""
        answer = answers.read_json(reply.stdout)
        rows = answers.records(answer.get("RECORDS")) if isinstance(answer, dict) else []
        known = [row for row in rows if "STAT" in row]
        found = {text_of(row, "JOBID"): _status(row) for row in known}
        is_unknown = _UNKNOWN_JOB.search(reply.stdout + reply.stderr)
        if reply.exit_code and not found and not is_unknown:
            raise answers.query_failed(reply)
        return complete(found, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Nothing: `bjobs` knows jobs for an hour after their end, and bhist is slow."""
        return None

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known."""
        return complete({}, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return [*cancel_command(_JOB), *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Nothing: hosts of a queue cannot be asked for in one command."""
        return None

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Say that nothing is known."""
        return None


def _directives(request: AllocationRequest) -> list[Directive]:
    pool = request.pool
    minutes = whole_minutes(request.walltime_s)
    asked = [
        Directive("-J", request.name),
        Directive("-o", quoted(request.log)),
        Directive("-W", f"{minutes // 60:02d}:{minutes % 60:02d}"),
        Directive("-rn"),
    ]
    named = {"-q": pool.queue, "-P": pool.account, "-sla": pool.qos}
    asked += [Directive(flag, quoted(value)) for flag, value in named.items() if value]
    if launcher_name(request) == "jsrun":
        return [*asked, Directive("-nnodes", str(request.nodes))]
    slots = 1 if pool.exclusive or not pool.shape else pool.shape.cores
    asked += [
        Directive("-n", str(request.nodes * slots)),
        Directive("-R", f'"span[ptile={slots}]"', key="-R span"),
    ]
    if pool.exclusive:
        asked.append(Directive("-x"))
    if pool.memory_asked_bytes is not None:
        asked.append(Directive("-M", format_bytes("lsf", pool.memory_asked_bytes)))
    if pool.shape and pool.shape.gpus and pool.gpu_option != "none":
        asked.append(Directive("-gpu", f'"num={pool.shape.gpus}"'))
    return asked


def _status(row: Mapping[str, Any]) -> JobStatus:
    state, why = text_of(row, "STAT"), text_of(row, "EXIT_REASON")
    if state in _RUNNING:
        return JobStatus(state=JobState.RUNNING, reason=_RUNNING[state], left_s=_left_s(row))
    if state in ("PEND", "PSUSP"):
        reason = text_of(row, "PEND_REASON")
        return JobStatus(state=JobState.PENDING, reason=reason, is_held=state == "PSUSP")
    code = answers.whole_of(row.get("EXIT_CODE"))
    if state == "DONE":
        return ended(EndCause.COMPLETED, exit_code=0)
    if state not in ("EXIT", "ZOMBI"):
        return JobStatus(state=JobState.UNKNOWN, reason=state)
    for pattern, cause in (
        (_TIMEOUT, EndCause.TIMEOUT),
        (_CANCELLED, EndCause.CANCELLED),
        (_NODE, EndCause.NODE_FAILURE),
    ):
        if pattern.search(why):
            return ended(cause, exit_code=code, reason=why)
    return ended(EndCause.FAILED, exit_code=code, reason=why)


def _left_s(row: Mapping[str, Any]) -> float | None:
    """Read ``0:57 L``: hours and minutes until the limit; ``E`` would be a guess."""
    found = re.fullmatch(r"\s*(\d{1,6}):(\d{1,2})\s+L\s*", text_of(row, "TIME_LEFT"))
    return 60.0 * (60 * int(found[1]) + int(found[2])) if found else None
