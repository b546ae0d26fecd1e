"""What became of a job, in the words of no batch system: between its translator and the core."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class JobState(Enum):
    """What the batch system says of a job. UNKNOWN is no evidence of anything."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class EndCause(Enum):
    """Why a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "reached its walltime"
    NODE_FAILURE = "lost a node"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """What the batch system says of one job.

    Parameters
    ----------
    state : JobState
        Waiting, running, ended, or not known.
    reason : str
        The batch system's own words: why it waits, or how it ended.
    is_held : bool
        Whether somebody must release it before it can start.
    is_hopeless : bool
        Whether it waits for what will never come (larger than the queue allows, wrong account).
    cause : EndCause, optional
        Why it ended.
    exit_code : int, optional
        Exit code of the job script.
    left_s : float, optional
        Time until its end [s], of a running job.
    """

    state: JobState
    reason: str = ""
    is_held: bool = False
    is_hopeless: bool = False
    cause: EndCause | None = None
    exit_code: int | None = None
    left_s: float | None = None
