"""Grid Engine. Answers were captured from 8.1.9."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, ended
from exadask.batch.directives import Dialect, Directive, clock, quoted, resource_flags
from exadask.batch.jobqueue import cancel_command, render_job, submit_command
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB = "SGEJob"
_JOB_ID = r"Your job (?P<job_id>\d+) "
_EACH_JOB = 'for job; do qacct -j "$job"; done'  # qacct takes one at a time

DIALECT = Dialect(prefix="#$", flags=resource_flags, aliases={})

REFUSALS = (
    Refusal("unable to (send|contact|receive)|commlib|qmaster|timeout", False),
    Refusal("job limit|only \\d+ jobs|too many|max_u_jobs", False),
    Refusal("unknown queue|queue", advice="Change queue=, or less of cores= and walltime=."),
    Refusal("parallel environment", advice="Change select= (the parallel environment)."),
    Refusal("project|account", advice="Change account=."),
    Refusal("h_rt|time value", advice="Change walltime=."),
    Refusal("unknown resource|resource", advice="Change directives=, memory_option= or gpus=."),
    Refusal("invalid option|option argument", advice="Change directives= or skip_directives=."),
    Refusal("user id|access|denied|not allowed|rejected", advice="Ask who may submit here."),
)

_TIMEOUT = re.compile(r"h_rt|s_rt")


class GridEngine:
    """Grid Engine: one job on one host, with the slots of a parallel environment.

    Whole nodes cannot be asked for in a way that all sites share: add ``-l exclusive=true`` or what
    the site has to `directives`. It knows no quality of service.
    """

    name = "sge"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        header = DIALECT.lines(_directives(request), request.pool)
        job = render_job(_JOB, request, header, job_body(request))
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits the job script."""
        return [*submit_command(_JOB), str(request.job_script)]

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it."""
        return answers.submitted(reply, _JOB_ID, REFUSALS)

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Ask for the user's jobs; Grid Engine shows single jobs only with all their details."""
        return ["qstat", "-xml"]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it; jobs that have ended are not in it."""
        tree = _xml(reply.stdout)
        if tree is None:
            raise answers.query_failed(reply)
        found = {}
        for job in tree.iter("job_list"):
            number, state = job.findtext("JB_job_number", ""), job.findtext("state", "")
            found[number] = _status(state)
        return complete(found, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Ask the accounting."""
        return ["sh", "-c", _EACH_JOB, "qacct", *ids]

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it; jobs that never started are not in it."""
        found: dict[str, JobStatus] = {}
        for record in re.split(r"^={20,}$", reply.stdout, flags=re.MULTILINE):
            pairs = re.findall(r"^(\w+)[ \t]+(.*)$", record, re.MULTILINE)
            fields = {name: value.strip() for name, value in pairs}
            if "jobnumber" in fields:
                found[fields["jobnumber"]] = _past(fields)
        return complete(found, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return [*cancel_command(_JOB), *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Ask what the hosts have, and which queues."""
        return ["qhost", "-q", "-xml"]

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Read the answer to it; Grid Engine has no common word for GPUs."""
        tree = _xml(reply.stdout)
        return None if tree is None else answers.smallest(_hosts(tree, pool))


def _directives(request: AllocationRequest) -> list[Directive]:
    pool = request.pool
    asked = [
        Directive("-N", request.name if request.name[0].isalpha() else f"x{request.name}"),
        Directive("-S", "/bin/bash"),
        Directive("-j", "y"),
        Directive("-o", quoted(request.log)),
        Directive("-r", "n"),
        Directive("-w", "e"),  # what can never run is refused at once
        Directive("-l h_rt", clock(request.walltime_s)),
    ]
    named = {"-q": pool.queue, "-P": pool.account}
    asked += [Directive(flag, quoted(value)) for flag, value in named.items() if value]
    if pool.shape is None:
        return asked
    asked.append(Directive("-pe", f"{pool.select or 'smp'} {pool.shape.cores}"))
    if pool.memory_asked_bytes is not None:
        mebibytes = -(-pool.memory_asked_bytes // 2**20)
        asked.append(Directive("-l mem_free", f"{mebibytes}M"))
    if pool.shape.gpus and pool.gpu_option != "none":
        asked.append(Directive("-l gpu", str(pool.shape.gpus)))
    return asked


def _status(letters: str) -> JobStatus:
    """Read the letters of a job's state, such as ``hqw``, ``dr`` or ``Eqw``."""
    if "E" in letters:
        reason = f"{letters}: it could not be started (see: qstat -j)"
        return JobStatus(state=JobState.PENDING, reason=reason, is_hopeless=True)
    if "w" in letters:
        return JobStatus(state=JobState.PENDING, reason=letters, is_held="h" in letters)
    if letters and set(letters) <= set("rtRsSTdhN"):
        return JobStatus(state=JobState.RUNNING, reason="" if letters == "r" else letters)
    return JobStatus(state=JobState.UNKNOWN, reason=letters)


def _past(fields: Mapping[str, str]) -> JobStatus:
    code, failed = answers.whole_of(fields.get("exit_status", "")), fields.get("failed", "0")
    number = answers.whole_of(failed)
    if number in (0, None):
        return ended(exit_code=code, reason=f"exit status {code}" if code else "")
    if _TIMEOUT.search(failed):
        return ended(EndCause.TIMEOUT, exit_code=code, reason=failed)
    # "assumedly after job": a signal that the job did not send itself, as qdel does.
    cause = EndCause.CANCELLED if number == 100 else EndCause.FAILED
    return ended(cause, exit_code=code or None, reason=failed)


def _hosts(tree: ET.Element, pool: Pool) -> Iterator[tuple[int, int | None, int]]:
    """Give cores and memory of the hosts that have the pool's queue."""
    for host in tree.iter("host"):
        values = {one.get("name", ""): one.text or "" for one in host.findall("hostvalue")}
        queues = {one.get("name", "") for one in host.findall("queue")}
        if pool.queue and pool.queue.partition("@")[0] not in queues:
            continue
        cores = answers.whole_of(values.get("num_proc", ""))
        if cores:
            yield cores, _bytes(values.get("mem_total", "")), 0


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([KMGT])", text)
    return int(float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2])))) if found else None


def _xml(text: str) -> ET.Element | None:
    start = text.find("<?xml")
    try:
        return ET.fromstring(text[start:].strip()) if start >= 0 else None
    except (ET.ParseError, ValueError):
        return None
