"""A job that looks at one node of a pool: submitted, watched politely, and always ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from exadask.batch.model import AllocationRequest, JobId
from exadask.config import Config
from exadask.errors import InvalidRequest, QueryFailed, SubmissionRefused
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.runtime.backends import Backend, backend_of, tail_of
from exadask.runtime.node_checks import ProbeOutcome
from exadask.runtime.node_probe import REPORT
from exadask.runtime.probe_listener import ProbeListener
from exadask.runtime.requests import request_for, write_posting
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.survey import NodeReport
from exadask.units import render_seconds

Tell = Callable[[str, str], None]
"""Takes the name of a pool, and how its job is."""

_PROBE = "exadask.runtime.node_probe"
_WALLTIME_S = 300.0
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 30.0
_OWN_POLL_S = 0.1
_SHARED_FILES_S = 3.0
"""How long a file may take from a node to this machine [s]."""
_END_S = 10.0


def probe_request(pool: Pool, run: Path, launcher: str | None) -> AllocationRequest:
    """Describe the shortest sensible job of a pool, which runs the probe on one node.

    Parameters
    ----------
    pool : Pool
        The pool.
    run : Path
        Folder of the run.
    launcher : str, optional
        The program that the probe looks for, because it starts agents on several nodes.
    """
    walltime_s = min(pool.walltime_s, _WALLTIME_S, pool.limits.longest_s(1) or _WALLTIME_S)
    name = f"doctor-{pool.name}"
    request = request_for(pool, run, name=name, nodes=1, walltime_s=walltime_s)
    python, unbuffered, as_module = request.agent_argv[:3]
    options = ("--launcher", launcher) if launcher else ()
    argv = (python, unbuffered, as_module, _PROBE, str(run), name, *options)
    return replace(request, agent_argv=argv)


async def probe_pool(
    request: AllocationRequest,
    run: RunFolder,
    listener: ProbeListener,
    tell: Tell,
    *,
    timeout_s: float,
) -> ProbeOutcome:
    """Submit a probe job, and wait for its report; the job has ended, or was cancelled, afterwards.

    Parameters
    ----------
    request : AllocationRequest
        The job; see `probe_request`.
    run : RunFolder
        Where its files go.
    listener : ProbeListener
        Where it reports.
    tell : callable
        Is told how the job is, whenever that was asked of the batch system.
    timeout_s : float
        How long to wait, in the queue too [s].

    Returns
    -------
    ProbeOutcome
        The report, or why there is none.
    """
    write_posting(request, run, listener.address, Config())
    backend = backend_of(request.pool)
    try:
        job = await _submitted(backend, request)
    except SubmissionRefused as error:
        problem = f"was refused: {error.answer}"
        return ProbeOutcome(problem=problem, advice=error.advice or "Correct the pool.")
    except InvalidRequest as error:
        return ProbeOutcome(problem=f"cannot be described: {error.what}", advice=error.advice)
    watch = _Watch(backend, request, job, listener.report_of(request.name), tell)
    try:
        return await watch.wait(timeout_s)
    finally:
        await watch.end()


async def _submitted(backend: Backend, request: AllocationRequest) -> JobId:
    """Submit; if that is interrupted, the job that comes of it is ended."""
    submitting = asyncio.ensure_future(backend.submit(request))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        with contextlib.suppress(SubmissionRefused, QueryFailed):
            await backend.cancel([await submitting])
        raise


class _Watch:
    """Waits for the report of one job."""

    def __init__(
        self,
        backend: Backend,
        request: AllocationRequest,
        job: JobId,
        report: asyncio.Future[str],
        tell: Tell,
    ) -> None:
        self._backend, self._request, self._job = backend, request, job
        self._report, self._tell = report, tell
        self._is_over = self._has_report = False
        self._began_s = time.monotonic()
        is_own = not request.pool.is_batch
        self._poll_s, self._most_s = (
            (_OWN_POLL_S, _OWN_POLL_S) if is_own else (_FIRST_POLL_S, _LONGEST_POLL_S)
        )

    async def wait(self, timeout_s: float) -> ProbeOutcome:
        """Return when there is a report, or will be none."""
        status = JobStatus(state=JobState.UNKNOWN)
        while (outcome := self._arrived()) is None:
            if self._waited_s >= timeout_s:
                return self._late(status, timeout_s)
            await self._pause(min(self._poll_s, timeout_s - self._waited_s))
            if (outcome := self._arrived()) is not None:
                break
            status = await self._ask() or status
            if status.state is JobState.ENDED:
                self._is_over = True
                return await self._ended(status)
            if status.is_hopeless or status.is_held:
                return self._stuck(status)
        return outcome

    async def end(self) -> None:
        """Let the job end by itself if it is about to; otherwise cancel it."""
        deadline_s = time.monotonic() + _END_S
        self._poll_s = min(self._poll_s, _FIRST_POLL_S)
        while self._has_report and not self._is_over and time.monotonic() < deadline_s:
            await asyncio.sleep(self._poll_s)
            status = await self._ask()
            self._is_over = status is not None and status.state is JobState.ENDED
        if not self._is_over:
            with contextlib.suppress(QueryFailed):  # it will end by its walltime
                await self._backend.cancel([self._job])

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _pause(self, seconds: float) -> None:
        await asyncio.wait({self._report}, timeout=max(0.0, seconds))
        self._poll_s = min(2 * self._poll_s, self._most_s)

    async def _ask(self) -> JobStatus | None:
        """Ask how the job is; no answer says nothing about it."""
        try:
            status = (await self._backend.status([self._job]))[self._job]
        except QueryFailed:
            self._say("the batch system gives no answer")
            return None
        self._say(_in_words(status))
        return status

    def _say(self, words: str) -> None:
        waited = render_seconds(round(self._waited_s))
        self._tell(self._request.pool.name, f"job {self._job} {words} ({waited})")

    def _arrived(self) -> ProbeOutcome | None:
        """Take the report, from wherever it came."""
        if self._report.done():
            return self._outcome(self._report.result(), is_file=False)
        path = self._request.folder / REPORT
        try:
            return self._outcome(path.read_text(), is_file=True)
        except OSError:  # not there yet, or never
            return None

    def _outcome(self, text: str, *, is_file: bool) -> ProbeOutcome:
        try:
            report = NodeReport.from_json(text)
        except (ValueError, TypeError, KeyError):
            problem = "sent a report that cannot be read: is exadask there of another version?"
            advice = "Use one environment for both: python=, or venv=."
            return self._failure(problem, advice)
        self._has_report = True
        return ProbeOutcome(
            job=self._job,
            report=report,
            came_by="file" if is_file else "connection",
            waited_s=self._waited_s,
        )

    async def _ended(self, status: JobStatus) -> ProbeOutcome:
        """Look once more: a report may still be on its way from the node's file system."""
        patience_s = _SHARED_FILES_S if self._request.pool.is_batch else _OWN_POLL_S
        deadline_s = time.monotonic() + patience_s
        while (outcome := self._arrived()) is None and time.monotonic() < deadline_s:
            await asyncio.wait({self._report}, timeout=_OWN_POLL_S)
            list(self._request.folder.glob("*"))  # lets NFS look again
        if outcome is not None:
            return outcome
        cause = status.cause or EndCause.FAILED
        how = "ended" if cause is EndCause.COMPLETED else str(cause.value)
        reason = f" ({status.reason})" if status.reason else ""
        advice = ""
        if cause is EndCause.CANCELLED:
            advice = "Somebody ended it: you, the site, or a rule of it. Try again."
        return self._failure(f"{how}{reason} and sent no report", advice, log=self._log())

    def _stuck(self, status: JobStatus) -> ProbeOutcome:
        reason = status.reason or "no reason given"
        if status.is_held:
            advice = "Somebody must release it: ask the site, or look at account= and qos=."
            return self._failure(f"is held: {reason}; cancelled", advice)
        advice = "It would never start: correct queue=, account=, nodes= or walltime=."
        return self._failure(f"waits for what never comes: {reason}; cancelled", advice)

    def _late(self, status: JobStatus, timeout_s: float) -> ProbeOutcome:
        advice = "Wait longer (--timeout 1h), or choose a shorter queue (--queue, --pool)."
        if status.state is JobState.RUNNING:
            advice = "The node hangs or is very slow; its log is above."
        problem = f"sent no report in {render_seconds(timeout_s)}; last {_in_words(status)}"
        return self._failure(f"{problem}; cancelled", advice, log=self._log())

    def _failure(self, problem: str, advice: str = "", log: str = "") -> ProbeOutcome:
        return ProbeOutcome(
            job=self._job,
            waited_s=self._waited_s,
            problem=problem,
            advice=advice,
            log_tail=log,
        )

    def _log(self) -> str:
        return tail_of(self._request.log)


def _in_words(status: JobStatus) -> str:
    return f"{status.state.value}: {status.reason}" if status.reason else status.state.value
