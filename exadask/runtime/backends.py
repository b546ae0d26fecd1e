"""How allocations are asked for, watched and ended: by commands of a batch system, or as processes.

The translators of `exadask.batch` make and read text; what runs is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from exadask.batch.model import AllocationRequest, BatchSystem, JobId, Reply
from exadask.batch.registry import batch_system
from exadask.errors import QueryFailed, SubmissionRefused
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape

_COMMAND_TIMEOUT_S = 60.0
_TAIL_LINES = 40
_TIMEOUT_CODES = (124, 137)  # of coreutils' timeout: it sent SIGTERM, or SIGKILL
_KILL_AFTER_S = 10
_CLOCK_MARGIN_S = 0.5
_UNKNOWN = JobStatus(state=JobState.UNKNOWN)


class Backend(Protocol):
    """Runs the jobs of a pool."""

    async def submit(self, request: AllocationRequest) -> JobId:
        """Write the scripts of an allocation and ask for it.

        Raises
        ------
        SubmissionRefused
            It was not taken.
        """

    async def status(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Ask how jobs are, all in one query.

        Raises
        ------
        QueryFailed
            There was no answer; that says nothing about the jobs.
        """

    async def cancel(self, ids: Sequence[JobId]) -> None:
        """End jobs, waiting or running; those that have ended already are no error.

        Raises
        ------
        QueryFailed
            The batch system did not take the order.
        """

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give a command that does so after the end of this process."""

    async def node_shape(self, pool: Pool) -> NodeShape | None:
        """Ask what a node of the pool has; None if nobody says."""


def backend_of(pool: Pool) -> Backend:
    """Choose what runs the jobs of a pool."""
    if pool.batch == "local":
        return ProcessBackend()
    if pool.batch == "psij":
        from exadask.runtime.psij_backend import PsijBackend

        assert pool.psij_executor is not None, "checked by Pool"
        return PsijBackend(pool.psij_executor)
    return CommandBackend(batch_system(pool.batch))


def write_scripts(system: BatchSystem, request: AllocationRequest) -> None:
    """Write the scripts of an allocation into its folder; only their owner can read them."""
    scripts = system.render(request)
    request.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path, text in ((request.job_script, scripts.job), (request.node_script, scripts.node)):
        path.write_text(text)
        path.chmod(0o700)


class CommandBackend:
    """Runs jobs by the commands of a batch system.

    Parameters
    ----------
    system : BatchSystem
        Its translator.
    """

    def __init__(self, system: BatchSystem) -> None:
        self._system = system
        self._requests: dict[JobId, AllocationRequest] = {}
        self._ended: set[JobId] = set()
        self._cancelled: set[JobId] = set()

    async def submit(self, request: AllocationRequest) -> JobId:
        """Write the scripts and submit them."""
        write_scripts(self._system, request)
        argv = self._system.submit_argv(request)
        try:
            reply = await self._run(argv, request.folder)
        except QueryFailed as error:
            is_missing = isinstance(error.__cause__, FileNotFoundError)
            advice = (
                f"Is this a login node of a machine with {self._system.name}? (see: exadask sites)"
                if is_missing
                else ""
            )
            raise SubmissionRefused(error.command, error.answer, is_missing, advice) from error
        job = self._system.parse_submit(reply)
        self._requests[job] = request
        return job

    async def status(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Ask the queue, then its memory, then the records that the job scripts leave."""
        if not ids:
            return {}
        found = dict.fromkeys(ids, _UNKNOWN)
        reply = await self._run(self._system.status_argv(ids))
        found.update(self._system.parse_status(reply, ids))
        await self._remember(found)
        found = {job: self._with_record(job, status) for job, status in found.items()}
        found = {job: self._with_cancelling(job, status) for job, status in found.items()}
        self._ended |= {job for job, one in found.items() if one.state is JobState.ENDED}
        return found

    def _with_cancelling(self, job: JobId, status: JobStatus) -> JobStatus:
        """Say that a job was cancelled from here, where the batch system cannot tell.

        Job scripts catch the signal that ends them, so that it may look like a failure; and a
        batch system without a history says nothing of a job that never began.
        """
        is_unclear = status.state is JobState.UNKNOWN or status.cause is EndCause.FAILED
        if job not in self._cancelled or not is_unclear:
            return status
        return replace(status, state=JobState.ENDED, cause=EndCause.CANCELLED)

    def _with_record(self, job: JobId, status: JobStatus) -> JobStatus:
        """Add what the job script has written, where the batch system says nothing or less."""
        is_known = status.state is not JobState.UNKNOWN
        if job not in self._requests or (is_known and status.cause is not EndCause.FAILED):
            return status
        record = recorded_end(self._requests[job].exit_record)
        if not is_known or record.exit_code is None or status.exit_code is not None:
            return record if not is_known else status
        reason = f"{status.reason}, {record.reason}"
        return replace(status, exit_code=record.exit_code, reason=reason)

    async def cancel(self, ids: Sequence[JobId]) -> None:
        """End jobs."""
        if ids:
            await self._run(self._system.cancel_argv(ids))
            self._cancelled |= set(ids) - self._ended

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give a command that ends jobs."""
        return self._system.cancel_argv(ids)

    async def node_shape(self, pool: Pool) -> NodeShape | None:
        """Ask the batch system what its nodes have."""
        argv = self._system.shape_argv(pool)
        if argv is None:
            return None
        try:
            return self._system.parse_shape(await self._run(argv), pool)
        except QueryFailed:  # submitting will say more clearly what is wrong
            return None

    async def _remember(self, found: dict[JobId, JobStatus]) -> None:
        forgotten = [job for job, one in found.items() if one.state is JobState.UNKNOWN]
        argv = self._system.history_argv(forgotten) if forgotten else None
        if argv is not None:
            with contextlib.suppress(QueryFailed):  # many sites keep no accounts
                reply = await self._run(argv)
                found.update(self._system.parse_history(reply, forgotten))

    async def _run(self, argv: Sequence[str], folder: Path | None = None) -> Reply:
        environ = {**os.environ, **self._system.environment}
        return await run_command(argv, environ, folder)


class ProcessBackend:
    """Runs jobs as processes of this machine: one node, no queue; `timeout` keeps the walltime."""

    def __init__(self) -> None:
        self._processes: dict[JobId, subprocess.Popen[bytes]] = {}
        self._deadlines: dict[JobId, float] = {}
        self._cancelled: set[JobId] = set()

    async def submit(self, request: AllocationRequest) -> JobId:
        """Start the job script."""
        write_scripts(batch_system("local"), request)
        limit = ["timeout", f"--kill-after={_KILL_AFTER_S}", f"{request.walltime_s:.0f}"]
        with request.log.open("ab") as log:
            try:
                process = subprocess.Popen(
                    [*limit, "bash", str(request.job_script)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=request.folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise SubmissionRefused("timeout", str(error), is_permanent=True) from error
        job = JobId(str(process.pid))
        self._processes[job] = process
        self._deadlines[job] = time.monotonic() + request.walltime_s - _CLOCK_MARGIN_S
        return job

    async def status(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Look at the processes."""
        return {job: self._status(job) for job in ids}

    async def cancel(self, ids: Sequence[JobId]) -> None:
        """End process groups: SIGTERM, and SIGKILL when they take no notice."""
        known = [job for job in ids if job in self._processes]
        self._cancelled |= {job for job in known if self._processes[job].poll() is None}
        groups = [self._processes[job] for job in known]
        for number in (signal.SIGTERM, signal.SIGKILL):
            living = [one for one in groups if one.poll() is None]
            for process in living:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            if living:
                await asyncio.to_thread(_wait_for, living, _KILL_AFTER_S)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give a command that ends process groups."""
        return ["kill", "-TERM", "--", *(f"-{job}" for job in ids)]

    async def node_shape(self, pool: Pool) -> NodeShape | None:
        """Find out what this machine has."""
        from exadask.runtime.detection import detect_node

        return detect_node()

    def _status(self, job: JobId) -> JobStatus:
        process = self._processes.get(job)
        if process is None:
            return _UNKNOWN
        code = process.poll()
        if code is None:
            return JobStatus(state=JobState.RUNNING)
        if code and job in self._cancelled:
            return JobStatus(state=JobState.ENDED, cause=EndCause.CANCELLED, exit_code=code)
        if code in _TIMEOUT_CODES and time.monotonic() >= self._deadlines[job]:
            return JobStatus(state=JobState.ENDED, cause=EndCause.TIMEOUT, exit_code=code)
        if code < 0:
            name = signal.Signals(-code).name
            return JobStatus(
                state=JobState.ENDED, cause=EndCause.CANCELLED, exit_code=code, reason=name
            )
        return ended_with(code)


def ended_with(code: int) -> JobStatus:
    """Say how a job ended that left this exit code."""
    cause = EndCause.FAILED if code else EndCause.COMPLETED
    reason = f"exit code {code}" if code else ""
    return JobStatus(state=JobState.ENDED, cause=cause, exit_code=code, reason=reason)


def recorded_end(record: Path) -> JobStatus:
    """Read what a job script wrote when it ended; UNKNOWN if it wrote nothing."""
    try:
        return ended_with(int(record.read_text()))
    except (OSError, ValueError):  # not there (yet), or cut off while it was written
        return _UNKNOWN


async def run_command(
    argv: Sequence[str], environ: Mapping[str, str], folder: Path | None = None
) -> Reply:
    """Run a command of the batch system.

    Raises
    ------
    QueryFailed
        It is not there, or takes longer than a minute.
    """
    command = " ".join(argv)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environ),
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for this program
        )
    except FileNotFoundError as error:
        raise QueryFailed(command, f"there is no {argv[0]} on this machine") from error
    except OSError as error:
        raise QueryFailed(command, str(error)) from error
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), _COMMAND_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        process.kill()
        await process.wait()
        raise QueryFailed(command, f"no answer in {_COMMAND_TIMEOUT_S:g} s") from error
    assert process.returncode is not None
    return Reply(
        argv=tuple(argv),
        exit_code=process.returncode,
        stdout=stdout.decode(errors="replace"),
        stderr=stderr.decode(errors="replace"),
    )


def tail_of(path: Path, lines: int = _TAIL_LINES) -> str:
    """Read the last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 200 * lines))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> None:
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
