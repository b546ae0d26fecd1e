"""Reading what batch systems answer: tolerant of anything, silent about what is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from exadask.batch.model import JobId, Reply
from exadask.errors import InvalidQuantity, QueryFailed, SubmissionRefused
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.resources import NodeShape

UNKNOWN = JobStatus(state=JobState.UNKNOWN)

_CLOCK = re.compile(r"(?:(\d{1,6})-)?(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6})")
_WHOLE = re.compile(r"\s*(-?\d{1,12})(?!\d)")
_ANSWER_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class Refusal:
    """How to read one kind of refusal.

    Parameters
    ----------
    pattern : str
        What the answer says, as a regular expression; upper and lower case are the same.
    is_permanent : bool
        Whether another attempt would be refused too.
    advice : str
        Which fact of the pool to change.
    """

    pattern: str
    is_permanent: bool = True
    advice: str = ""


def submitted(reply: Reply, pattern: str, refusals: Iterable[Refusal]) -> JobId:
    """Read the answer to a submission.

    Parameters
    ----------
    reply : Reply
        The answer.
    pattern : str
        How an answer names a job; the id is its group `job_id`.
    refusals : iterable of Refusal
        What refusals say; the first that fits counts. Of others nothing is known.

    Returns
    -------
    JobId
        The job's id.

    Raises
    ------
    SubmissionRefused
        The job was not taken, or its id is not in the answer: trying again might then leave jobs
        behind that nobody knows.
    """
    if reply.exit_code == 0:
        found = re.search(pattern, reply.stdout)
        if found:
            return JobId(found["job_id"])
        advice = "It names no job, but may have taken one: look at the queue."
        raise SubmissionRefused(_command(reply), _said(reply), True, advice)
    answer = _said(reply)
    for one in refusals:
        if re.search(one.pattern, answer, re.IGNORECASE):
            raise SubmissionRefused(_command(reply), answer, one.is_permanent, one.advice)
    raise SubmissionRefused(_command(reply), answer, None)


def query_failed(reply: Reply) -> QueryFailed:
    """Make the error for a query that was not answered."""
    return QueryFailed(_command(reply), _said(reply))


def complete(found: Mapping[str, JobStatus], ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
    """Give each job that was asked for its status: UNKNOWN where nothing was said."""
    return {job: found.get(job, UNKNOWN) for job in ids}


def ended(
    cause: EndCause | None = None, *, exit_code: int | None = None, reason: str = ""
) -> JobStatus:
    """Describe a job that has ended; without a cause, its exit code tells."""
    if cause is None and exit_code is not None:
        cause = EndCause.FAILED if exit_code else EndCause.COMPLETED
    return JobStatus(state=JobState.ENDED, cause=cause, exit_code=exit_code, reason=reason)


def read_json(text: str) -> Any:
    r"""Read the JSON in an answer, whatever stands before it; None if there is none.

    Examples
    --------
    >>> read_json('Warning: slow day\n{"a": 1}'), read_json("nothing"), read_json("[]")
    ({'a': 1}, None, [])
    """
    starts = [match.start() for match in re.finditer(r"^\s*[\[{]", text, re.MULTILINE)]
    for start in starts[:20]:
        try:
            return json.JSONDecoder(strict=False).raw_decode(text[start:].lstrip())[0]
        except (ValueError, RecursionError):  # not JSON, or made to break us
            continue
    return None


def records(value: Any) -> list[dict[str, Any]]:
    """Keep the tables of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def table(value: Any, key: str) -> dict[str, Any]:
    """Look a table up in a table; empty if it is not there."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Look a text up; empty if it is not there."""
    value = record.get(key)
    return str(value) if isinstance(value, (str, int, float)) else ""


def whole_of(text: object) -> int | None:
    """Read the whole number that a text begins with.

    Examples
    --------
    >>> whole_of("137 (Killed)"), whole_of(" -29"), whole_of("none")
    (137, -29, None)
    """
    found = _WHOLE.match(str(text))
    return int(found[1]) if found else None


def number_of(record: Mapping[str, Any], key: str) -> float | None:
    """Look a finite number up."""
    value = record.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if is_number and isfinite(float(value)) else None  # type: ignore[arg-type]  # is_number says so
    except OverflowError:
        return None


def seconds_of(text: str) -> float | None:
    """Read a batch system's clock: ``[D-][H:]M:S``.

    Examples
    --------
    >>> seconds_of("59:30"), seconds_of("1-00:00:10"), seconds_of("UNLIMITED")
    (3570.0, 86410.0, None)
    """
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def smallest(nodes: Iterable[tuple[int, int | None, int]]) -> NodeShape | None:
    """Describe what every node has at least.

    Parameters
    ----------
    nodes : iterable of (int, int or None, int)
        Cores, memory [bytes] where it is known, and GPUs of each node.

    Returns
    -------
    NodeShape or None
        The least of each; None if there are no nodes.
    """
    found = [one for one in nodes if one[0] > 0]
    if not found:
        return None
    try:
        return NodeShape.declare(
            cores=min(one[0] for one in found),
            gpus=min(one[2] for one in found),
            memory=min((one[1] for one in found if one[1]), default=None),
        )
    except InvalidQuantity:  # no machine has that; better asked of the node itself
        return None


def _command(reply: Reply) -> str:
    return " ".join(reply.argv)


def _said(reply: Reply) -> str:
    words = " ".join((reply.stderr.strip() or reply.stdout.strip()).split())[:_ANSWER_LENGTH]
    return words or f"it ended with exit code {reply.exit_code} and said nothing"
