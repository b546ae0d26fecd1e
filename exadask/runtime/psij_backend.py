"""How PSI/J is asked for allocations, where exadask speaks no batch system's dialect itself.

PSI/J (``pip install 'exadask[psij]'``) watches its jobs in threads of its own; here its words are
translated. What it believes without evidence is not repeated: it takes a job for completed when
the queue has forgotten it, and for failed when the queue gave no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any

from exadask.batch.model import AllocationRequest, JobId, Reply
from exadask.batch.psij import psij_spec
from exadask.batch.registry import batch_system
from exadask.errors import ExadaskError, QueryFailed, SubmissionRefused
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import BATCH_SYSTEMS, Pool
from exadask.resources import NodeShape
from exadask.runtime.backends import ended_with, recorded_end, write_scripts

_POLL_S = 5
_CANCEL_TIMEOUT_S = 30.0
_KILL_AFTER_S = 10
_LOCAL = "local"
_NO_ANSWER = ("Failed to poll", "Failed to update", "Error updating")
_CAUSES = {  # in messages of PSI/J's executors
    "time limit": EndCause.TIMEOUT,
    "walltime": EndCause.TIMEOUT,
    "node required by the job is down": EndCause.NODE_FAILURE,
}
_TIMEOUT_CODES = (124, 137)  # of coreutils' timeout, which keeps the walltime of local jobs


class PsijBackend:
    """Runs the jobs of a pool through PSI/J.

    Parameters
    ----------
    executor : str
        Which of PSI/J's executors: slurm, pbs, pbs_classic, lsf, cobalt, flux, local, ...
    poll_s : int
        How often it asks the batch system [s].
    """

    def __init__(self, executor: str, poll_s: int = _POLL_S) -> None:
        self._name, self._poll_s = executor, poll_s
        self._lock = threading.Lock()
        self._connected: Any = None
        self._jobs: dict[JobId, Any] = {}
        self._requests: dict[JobId, AllocationRequest] = {}

    async def submit(self, request: AllocationRequest) -> JobId:
        """Write the scripts and submit them."""
        write_scripts(batch_system("psij"), request)
        return await asyncio.to_thread(self._submit, request)

    async def status(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say what PSI/J has seen last; asks nobody."""
        return {job: self._status(job) for job in ids}

    async def cancel(self, ids: Sequence[JobId]) -> None:
        """End jobs."""
        await asyncio.to_thread(self._cancel, [job for job in ids if job in self._jobs])

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Give a command that attaches to these jobs by PSI/J and ends them."""
        return [sys.executable, "-m", __name__, self._name, *ids]

    async def node_shape(self, pool: Pool) -> NodeShape | None:
        """Ask the batch system behind PSI/J; only this machine is known."""
        if self._name != _LOCAL:
            return None
        from exadask.runtime.detection import detect_node

        return detect_node()

    def _submit(self, request: AllocationRequest) -> JobId:
        import_psij()
        from psij import InvalidJobException, SubmitException

        command = f"psij:{self._name}"
        try:
            executor = self._executor(request.folder.parent)
            job = _psij_job(request)
            executor.submit(job)
        except ValueError as error:  # no such executor
            raise SubmissionRefused(
                command, str(error), True, 'Write batch="psij:slurm".'
            ) from error
        except (SubmitException, InvalidJobException) as error:
            cause = f": {error.exception}" if error.exception else ""
            raise _refusal(self._name, f"{error.message}{cause}".strip()) from error
        name = JobId(str(job.native_id))
        self._jobs[name], self._requests[name] = job, request
        return name

    def _executor(self, folder: Path) -> Any:
        """Connect once; in its usual folder PSI/J would find what old jobs of the same id left."""
        with self._lock:
            if self._connected is None:
                self._connected = connect(self._name, self._poll_s, folder / "psij")
            return self._connected

    def _status(self, name: JobId) -> JobStatus:
        job = self._jobs.get(name)
        if job is None:
            return JobStatus(state=JobState.UNKNOWN)
        last = job.status
        state, message, code = last.state.name, last.message or "", last.exit_code
        if state in ("NEW", "QUEUED"):
            return JobStatus(state=JobState.PENDING, reason=message)
        if state == "ACTIVE":
            return JobStatus(state=JobState.RUNNING, reason=message)
        if state == "CANCELED":
            return JobStatus(state=JobState.ENDED, cause=EndCause.CANCELLED, reason=message)
        recorded = recorded_end(self._requests[name].exit_record)
        if message.startswith(_NO_ANSWER):
            if recorded.state is JobState.ENDED:
                return recorded
            self._attach_again(name)
            return JobStatus(state=JobState.UNKNOWN, reason=message.splitlines()[-1])
        if state == "FAILED":
            return self._failed(code, message)
        return ended_with(code) if code is not None else recorded

    def _failed(self, code: int | None, message: str) -> JobStatus:
        cause = next((one for words, one in _CAUSES.items() if words in message), EndCause.FAILED)
        if self._name == _LOCAL and code in _TIMEOUT_CODES:
            cause = EndCause.TIMEOUT
        reason = message or f"exit code {code}"
        return JobStatus(state=JobState.ENDED, cause=cause, exit_code=code, reason=reason)

    def _attach_again(self, name: JobId) -> None:
        """Watch a job again that PSI/J has given up, because it could not ask the queue."""
        from psij import Job

        job = Job()
        self._connected.attach(job, name)
        self._jobs[name] = job

    def _cancel(self, names: Sequence[JobId]) -> None:
        from psij import SubmitException

        for name in names:
            job = self._jobs[name]
            try:
                job.cancel()
            except SubmitException as error:
                if not job.status.final:
                    raise QueryFailed(f"psij:{self._name} cancel {name}", error.message) from error


def import_psij() -> None:
    """Import PSI/J without its handler of SIGCHLD, which it installs only in the main thread.

    Raises
    ------
    SubmissionRefused
        It is not installed.
    """
    problems: list[ImportError] = []

    def load() -> None:
        logger = logging.getLogger("psij.executors.local")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns that it could not install the handler
        try:
            import psij.executors.local  # noqa: F401
        except ImportError as error:
            problems.append(error)
        finally:
            logger.setLevel(level)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    if problems:
        advice = "Install it: pip install 'exadask[psij]'."
        raise SubmissionRefused("import psij", str(problems[0]), True, advice) from problems[0]


def connect(name: str, poll_s: int = _POLL_S, folder: Path | None = None) -> Any:
    """Make one of PSI/J's executors, which keeps its files in a folder.

    Raises
    ------
    ValueError
        There is none of this name.
    """
    from psij import JobExecutor
    from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutorConfig

    config = None
    if name not in (_LOCAL, "flux", "rp"):
        config = BatchSchedulerExecutorConfig(
            work_directory=folder, queue_polling_interval=poll_s, initial_queue_polling_delay=1
        )
    return JobExecutor.get_instance(name, config=config)


def _psij_job(request: AllocationRequest) -> Any:
    """Describe an allocation in PSI/J's words: one process, which starts the launcher."""
    from psij import Job, JobAttributes, JobSpec, ResourceSpecV1

    spec = psij_spec(request)
    command = [spec.executable, *spec.arguments]
    if spec.executor == _LOCAL:
        limit = f"{spec.walltime_s:.0f}"
        command = ["timeout", f"--kill-after={_KILL_AFTER_S}", limit, *command]
    attributes = JobAttributes(
        duration=timedelta(seconds=ceil(spec.walltime_s)),
        queue_name=spec.queue,
        account=spec.account,
        custom_attributes=dict(spec.attributes),
    )
    resources = ResourceSpecV1(
        node_count=spec.node_count,
        processes_per_node=spec.processes_per_node,
        exclusive_node_use=spec.is_exclusive,
        cpu_cores_per_process=spec.cores_per_process,
        gpu_cores_per_process=spec.gpus_per_process,
        memory=spec.memory_bytes,
    )
    return Job(
        JobSpec(
            name=spec.name,
            executable="/bin/bash",  # the single launcher would open the log twice
            arguments=["-c", 'exec "$@" >>"$0" 2>&1', spec.stdout_path, *command],
            directory=Path(spec.directory),
            resources=resources,
            attributes=attributes,
            launcher="single",
        )
    )


def _refusal(executor: str, answer: str) -> SubmissionRefused:
    """Say what a refusal means; the words are those of the batch system behind PSI/J."""
    family = executor.partition("_")[0]
    command = f"psij:{executor}"
    if family in BATCH_SYSTEMS and family not in (_LOCAL, "psij"):
        reply = Reply(argv=(command,), exit_code=1, stdout="", stderr=answer)
        try:
            batch_system(family).parse_submit(reply)
        except SubmissionRefused as refusal:
            return refusal
    return SubmissionRefused(command, answer, True)


def main(executor: str, ids: Sequence[str]) -> int:
    """Attach to jobs and end them; for `PsijBackend.cancel_argv`."""
    import_psij()
    import psutil
    from psij import Job

    connected = connect(executor)
    jobs = [(name, Job()) for name in ids]
    for name, job in jobs:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            connected.attach(job, name)
            job.cancel()
            if executor == _LOCAL:  # a thread does it, soon
                psutil.Process(int(name)).wait(_CANCEL_TIMEOUT_S)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except ExadaskError as error:
        sys.exit(str(error))
