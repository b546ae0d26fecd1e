"""The words between exadask and a batch system: what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, Protocol

from exadask.job_status import JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

JobId = NewType("JobId", str)
"""What the batch system calls an allocation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRequest:
    """One allocation that is to be asked for.

    Parameters
    ----------
    pool : Pool
        Its kind.
    name : str
        Its name in the run, such as ``cpu-0``: letters, digits, '-', '_' and '.'.
    nodes : int
        Nodes [nodes], >= 1.
    walltime_s : float
        How long it may last [s].
    folder : Path
        Its own folder, which all nodes see: scripts, log, exit record.
    agent_argv : tuple of str
        What starts an agent; the time when the allocation began and the rank of the node are added.
    first_node_only : bool
        Whether that is started on the first node alone, whatever the launcher: a driver.
    """

    pool: Pool
    name: str
    nodes: int
    walltime_s: float
    folder: Path
    agent_argv: tuple[str, ...]
    first_node_only: bool = False

    @property
    def job_script(self) -> Path:
        """Where the script lies that the batch system runs on the first node."""
        return self.folder / "job.sh"

    @property
    def node_script(self) -> Path:
        """Where the script lies that the launcher runs on each node."""
        return self.folder / "node.sh"

    @property
    def log(self) -> Path:
        """Where the output of the job and of all its agents goes."""
        return self.folder / "job.log"

    @property
    def exit_record(self) -> Path:
        """Where the job script writes its exit code when it ends: proof that it has ended."""
        return self.folder / "exit-code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """The two scripts of an allocation.

    Parameters
    ----------
    job : str
        With the directives; runs once, and starts the launcher.
    node : str
        Runs on each node: sets the environment up and becomes the agent. Its arguments: seconds
        since the epoch at which the allocation began, and the node's rank where the launcher gives
        no variable for it.
    """

    job: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a command of the batch system answered."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str


class BatchSystem(Protocol):
    """A translator for one batch system: it makes and reads text, and runs nothing.

    Attributes
    ----------
    name : str
        As in `Pool.batch`.
    environment : mapping of str to str
        Variables that its commands need, added to those of this process.
    """

    name: str
    environment: Mapping[str, str]

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Give the command that submits `request.job_script`, which has been written."""

    def parse_submit(self, reply: Reply) -> JobId:
        """Read the answer to it.

        Raises
        ------
        SubmissionRefused
            The batch system did not take the job; says whether another attempt may help.
        """

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give one command that asks for all these jobs."""

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it: an entry for each of `ids`, UNKNOWN where nothing is said.

        Raises
        ------
        QueryFailed
            The batch system could not answer: no job's state is known.
        """

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Give the command that asks for jobs which the queue has forgotten, if there is one."""

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Read the answer to it: an entry for each of `ids`, UNKNOWN where nothing is said."""

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give the command that ends these jobs, waiting or running."""

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Give the command that asks what a node of the pool's queue has, if there is one."""

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Read the answer to it: the smallest node of the queue; None if it does not say."""
