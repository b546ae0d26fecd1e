"""PBS Professional and OpenPBS. Answers were captured from OpenPBS 23.06."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from exadask.batch import answers
from exadask.batch.answers import Refusal, complete, ended, text_of
from exadask.batch.directives import Dialect, Directive, clock, quoted, resource_flags
from exadask.batch.jobqueue import cancel_command, format_bytes, render_job, submit_command
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_JOB = "PBSJob"
_JOB_ID = r"(?m)^\s*(?P<job_id>\d+(?:\.[\w.-]+)?)\s*$"  # with the server, as qstat's JSON names it

DIALECT = Dialect(prefix="#PBS", flags=resource_flags, aliases={})

REFUSALS = (
    Refusal("cannot connect to server|Connection refused|timed out|try again", False),
    Refusal("would exceed .* limit|job limit|limit on the number of", False),
    Refusal("Unknown queue|unauthorized.*queue|Access to queue", advice="Change queue=."),
    Refusal("queue is not enabled|not started", False),
    Refusal(
        "exceeds? (queue|resource|and/or server).*limit|Job violates queue",
        advice="Change walltime=, nodes= or queue=.",
    ),
    Refusal("account|project|allocation", advice="Change account=."),
    Refusal("walltime", advice="Change walltime=."),
    Refusal(
        "Unknown resource|resource is not|Illegal attribute or resource",
        advice="Change select=, directives= or gpu_option=.",
    ),
    Refusal("Unauthorized Request|not allowed", advice="Change queue= or account=."),
    Refusal("invalid option|illegal -|usage:", advice="Change directives= or skip_directives=."),
)

_RUNNING = {"R": "", "E": "exiting", "S": "suspended", "U": "suspended", "B": ""}
_PENDING = {"Q", "W", "T", "H"}
_UNKNOWN_JOB = re.compile(r"Unknown Job Id|Job has finished", re.IGNORECASE)
_WALLTIME_EXCEEDED = -29
_TERMINATED = 91  # substate after qdel; our scripts catch its signal, so that the code says nothing
_BY_SIGNAL = {256 + 15, 256 + 9, 256 + 2}  # how qdel ends a job
# OpenPBS has been seen to write JSON that is none; state and code are found all the same.
_JOB_IN_TEXT = re.compile(r'"(\d+[\w.\[\]-]*)"\s*:\s*\{\s*"Job_Name"')
_FIELD_IN_TEXT = re.compile(
    r'"(job_state|Exit_status|comment|substate)"\s*:\s*("(?:[^"\\]|\\.){0,2000}"|-?\d+)'
)


class Pbs:
    """PBS: one job with N chunks, each on a node of its own.

    A chunk of an exclusive node asks for no cores, as sites with whole nodes want it; where PBS
    confines jobs to the cores that they asked for, name them: ``select="ncpus=64"``. A quality of
    service is asked for as a resource, ``-l qos=``, which few sites have.
    """

    name = "pbs"
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
        """Ask for the jobs that have not ended; servers without a history refuse ``-x``."""
        return ["qstat", "-f", "-F", "json", *ids]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it; jobs that have ended are not in it."""
        found = _statuses(reply.stdout)
        if reply.exit_code and not found and not _UNKNOWN_JOB.search(reply.stderr):
            raise answers.query_failed(reply)
        return complete(found, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Ask for the jobs that have ended too."""
        return ["qstat", "-x", "-f", "-F", "json", *ids]

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it.

        Raises
        ------
        QueryFailed
            The server keeps no history.
        """
        return self.parse_status(reply, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs."""
        return [*cancel_command(_JOB), *ids]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Ask what the nodes have."""
        return ["pbsnodes", "-av", "-F", "json"]

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Read the answer to it: the hosts that the pool's queue and `select` leave over."""
        nodes = answers.table(answers.read_json(reply.stdout), "nodes")
        hosts: dict[str, tuple[int, int, int]] = {}
        for name in nodes:
            node = answers.table(nodes, name)
            has = answers.table(node, "resources_available")
            if not _is_in_pool(node, has, pool):
                continue
            cores, memory, gpus = hosts.get(text_of(has, "host") or name, (0, 0, 0))
            hosts[text_of(has, "host") or name] = (
                cores + (answers.whole_of(has.get("ncpus")) or 0),
                memory + _bytes(text_of(has, "mem")),
                gpus + (answers.whole_of(has.get("ngpus")) or 0),
            )
        return answers.smallest(hosts.values())


def _directives(request: AllocationRequest) -> list[Directive]:
    pool = request.pool
    asked = [
        Directive("-N", request.name if request.name[0].isalpha() else f"x{request.name}"),
        Directive("-S", "/bin/bash"),
        Directive("-j", "oe"),
        Directive("-o", quoted(request.log)),
        Directive("-k", "oed"),  # written while the job runs, not when it has ended
        Directive("-r", "n"),
        Directive("-l select", _select(request)),
        Directive("-l place", pool.place or ("scatter:excl" if pool.exclusive else "scatter")),
        Directive("-l walltime", clock(request.walltime_s)),
    ]
    named = {"-q": pool.queue, "-A": pool.account, "-l qos": pool.qos}
    return asked + [Directive(flag, quoted(value)) for flag, value in named.items() if value]


def _select(request: AllocationRequest) -> str:
    """Write the chunks; what the pool's `select` says of a resource, it says alone."""
    pool, shape = request.pool, request.pool.shape
    wanted: dict[str, str] = {}
    if shape and not pool.exclusive:
        wanted["ncpus"] = str(shape.cores)
    if shape and shape.gpus and pool.gpu_option != "none":
        wanted["ngpus"] = str(shape.gpus)
    if pool.memory_asked_bytes is not None:
        wanted["mem"] = format_bytes("pbs", pool.memory_asked_bytes)
    own = pool.select.split(":") if pool.select else []
    said = {part.partition("=")[0] for part in own}
    parts = [f"{name}={value}" for name, value in wanted.items() if name not in said]
    return ":".join([str(request.nodes), *parts, *own])


def _statuses(text: str) -> dict[str, JobStatus]:
    jobs = answers.table(answers.read_json(text), "Jobs")
    if jobs:
        return {name: _status(answers.table(jobs, name)) for name in jobs}
    found: dict[str, JobStatus] = {}
    matches = list(_JOB_IN_TEXT.finditer(text))
    for index, match in enumerate(matches):
        end = matches[index + 1].start() if index + 1 < len(matches) else len(text)
        fields = dict(_FIELD_IN_TEXT.findall(text, match.end(), end))
        found[match[1]] = _status({name: value.strip('"') for name, value in fields.items()})
    return found


def _status(job: Mapping[str, Any]) -> JobStatus:
    letter, comment = text_of(job, "job_state"), text_of(job, "comment")
    if letter in _RUNNING:
        return JobStatus(state=JobState.RUNNING, reason=_RUNNING[letter], left_s=_left_s(job))
    if letter in _PENDING:
        is_hopeless = comment.startswith("Can Never Run")
        return JobStatus(
            state=JobState.PENDING, reason=comment, is_held=letter == "H", is_hopeless=is_hopeless
        )
    if letter not in ("F", "X"):
        return JobStatus(state=JobState.UNKNOWN, reason=letter)
    code = answers.whole_of(job.get("Exit_status"))
    if code == _WALLTIME_EXCEEDED:
        return ended(EndCause.TIMEOUT, exit_code=code, reason="walltime exceeded")
    is_deleted = answers.whole_of(job.get("substate")) == _TERMINATED
    if code is None or code in _BY_SIGNAL or is_deleted:  # no code: deleted while it waited
        return ended(EndCause.CANCELLED, exit_code=code, reason=comment)
    return ended(exit_code=code, reason=f"exit status {code}" if code else "")


def _left_s(job: Mapping[str, Any]) -> float | None:
    """Subtract the time used, which PBS updates every few minutes, from the walltime."""
    asked = answers.seconds_of(text_of(answers.table(job, "Resource_List"), "walltime"))
    used = answers.seconds_of(text_of(answers.table(job, "resources_used"), "walltime"))
    return None if asked is None or used is None else max(0.0, asked - used)


def _is_in_pool(node: Mapping[str, Any], has: Mapping[str, Any], pool: Pool) -> bool:
    """Whether jobs of the pool may come to a node, as far as the node says."""
    queues = {text_of(node, "queue")} | set(text_of(has, "Qlist").split(",")) - {""}
    queues.discard("")
    if pool.queue and queues and pool.queue not in queues:
        return False
    wanted = dict(part.split("=", 1) for part in (pool.select or "").split(":") if "=" in part)
    amounts = {"ncpus", "mem", "ngpus", "mpiprocs", "ompthreads"}
    return all(
        value in text_of(has, name).split(",")
        for name, value in wanted.items()
        if name not in amounts and name in has
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,18})([kmgtp]?)[bw]?", text.lower())
    return int(found[1]) << (10 * " kmgtp".index(found[2] or " ")) if found else 0
