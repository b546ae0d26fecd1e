"""The machine itself: the runtime starts the job script as a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from exadask.batch import answers
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.job_status import JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape


class Local:
    """The machine itself: scripts without directives, and no queue to ask.

    The runtime starts ``bash job.sh`` and watches the process itself; the ids are process ids.
    """

    name = "local"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        job = f"#!/bin/bash\n{job_body(request)}"
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that is the job: it runs in the foreground."""
        return ["bash", str(request.job_script)]

    def parse_submit(self, reply: Reply) -> JobId:
        """Refuse: the command of `submit_argv` ends with the job, and names none.

        Raises
        ------
        SubmissionRefused
            Always.
        """
        return answers.submitted(reply, r"(?!)(?P<job_id>)", ())

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that lists which of these processes live."""
        return ["ps", "-o", "pid=", "-p", ",".join(ids)]

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known: only the parent of a process knows how it ended."""
        return answers.complete({}, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Nothing: there is no history."""
        return None

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known."""
        return answers.complete({}, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends the process groups."""
        return ["kill", "-TERM", "--", *(f"-{job}" for job in ids)]

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Nothing: the runtime looks at the machine itself."""
        return None

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Say that nothing is known."""
        return None
