"""The agent of a node: a plugin of its Dask worker that runs tasks in slots and guards them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from exadask.config import Config
from exadask.resources import NodeShape
from exadask.runtime import binding, guardian
from exadask.runtime.admission import Admission, Grant
from exadask.runtime.attempt import Attempt, Cancelled
from exadask.runtime.child import failure_of
from exadask.runtime.job import Failure, Job, Report, Run, Stream, TaskFailed
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.nested import NestedService
from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.posting import Berth
from exadask.runtime.slot import Captured, SlotKind, SlotPool
from exadask.runtime.task_record import SHARE
from exadask.runtime.thread_slot import run_in_thread

logger = logging.getLogger(__name__)

AGENT = "exadask-agent"
_INLINE_OUTPUT_BYTES = 4096
_WARM_FROM_START = 4
_SAME_SIGNAL_S = 1.0
_NOT_BEGUN = ("waiting", "ready", "constrained", "fetch", "flight", "missing", "cancelled")
_serial = itertools.count()


async def run_task(job: Job, *inputs: object) -> object:
    """Run a job on this node: the one function that Dask ever runs for exadask."""
    agent = get_worker().plugins[AGENT]
    assert isinstance(agent, NodeAgent)
    return await agent.run(job, inputs)


class NodeAgent(WorkerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Runs the tasks that the scheduler places here, each within its share of the node.

    Parameters
    ----------
    shape : NodeShape
        What the node offers.
    config : Config
        Limits and intervals.
    scratch : str
        A directory that is removed if the agent is killed.
    berth : Berth, optional
        The allocation where it sits. None: nobody will end the node.
    """

    name = AGENT

    def __init__(
        self, shape: NodeShape, config: Config, scratch: str, berth: Berth | None = None
    ) -> None:
        self.shape, self._config, self._scratch, self._berth = shape, config, scratch, berth
        self._is_leaving = False
        self.mark = f"{os.getpid()}-{os.urandom(4).hex()}-{next(_serial)}"
        self._attempts: dict[str, Attempt] = {}
        self._outputs: dict[str, dict[str, Captured]] = {}

    async def setup(self, worker: Worker) -> None:
        """Take up work on a Dask worker."""
        self._worker = worker
        self._admission = Admission()
        self._slots = SlotPool(self.mark, max_idle=self.shape.cores)
        self._threads = ThreadPoolExecutor(1024, thread_name_prefix="exadask-task")
        self._watch = MemoryWatch(self._config.poll_interval_s, self.shape.memory_bytes)
        self._watching = asyncio.ensure_future(self._watch.run())
        self.nested = NestedService(worker, self._lend, self._reclaim)
        self._guardian = _start_guardian(self.mark, self._scratch)
        worker.handlers["exadask_output"] = self.output
        worker.stream_handlers["exadask-resume"] = self._on_resume
        for _ in range(min(_WARM_FROM_START, self.shape.cores)):
            self._slots.start(self._kind((), ()))
        self._report_for_duty(worker)

    def _report_for_duty(self, worker: Worker) -> None:
        berth = self._berth
        worker.batched_stream.send(
            {
                "op": "exadask-node",
                "shape": pickle.dumps(self.shape),
                "pool": berth.pool if berth else None,
                "allocation": berth.allocation if berth else None,
                "left_s": berth.left_s if berth else None,
            }
        )

    def leave(self) -> None:
        """Say that the batch system ends this node: what runs here goes back to the queue."""
        self._is_leaving = True
        self._send("exadask-leaving")

    async def teardown(self, worker: Worker) -> None:
        """End everything that runs here."""
        self._watching.cancel()
        await self.nested.close()
        await self._slots.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        _dismiss(self._guardian)

    def transition(self, key: str, start: str, finish: str, **_: object) -> None:
        """Take note of what Dask decides about a task: it never stops a running one itself."""
        attempt = self._attempts.get(key)
        if finish == "forgotten":
            self._outputs.pop(key, None)
        if attempt is not None:
            if start in ("executing", "long-running") and finish == "released":
                attempt.cancel(self._config.kill_grace_s)
        elif start in _NOT_BEGUN and finish in ("released", "forgotten"):
            share = self._share_of(key)
            if share is not None:  # it never began, or has left the thread of Dask's it ran in
                self._send("exadask-ended", share=share["share"])

    async def run(self, job: Job, inputs: tuple[object, ...]) -> object:
        """Run a job; returns its result, or raises `TaskFailed`."""
        last = None
        while True:
            share = self._share_of(job.key)
            if share is None or share["share"] == last:
                raise Cancelled  # Dask has dropped the task, and ignores how it ends
            last = share["share"]
            try:
                outcome = await self._attempt(job, inputs, share)
            except Cancelled:
                if self._is_leaving:  # Dask takes it back when this node is gone, not before
                    await asyncio.get_running_loop().create_future()
                continue  # unless it was placed here again meanwhile
            if isinstance(outcome, Failure):
                raise TaskFailed(job.key, job.name, outcome)
            return outcome

    async def _attempt(self, job: Job, inputs: tuple[object, ...], share: dict[str, Any]) -> object:
        attempt = Attempt(job, str(self._worker.name), self._watch, self._config.kill_grace_s)
        grant = Grant(share["share"], tuple(share["cores"]), dict(share["gpus"]))
        self._attempts[job.key] = attempt
        outcome: object = None
        try:
            await self._admission.enter(grant)
            if attempt.is_cancelled:
                raise Cancelled
            outcome = await self._outcome(attempt, inputs, grant)
            if attempt.is_cancelled or await self._is_cut_off(attempt):
                raise Cancelled
            return outcome
        finally:
            attempt.is_over = True
            self._admission.leave(grant.share)
            if self._attempts.get(job.key) is attempt:
                del self._attempts[job.key]
            self._report(attempt, share, outcome)

    async def _is_cut_off(self, attempt: Attempt) -> bool:
        """Whether a task was killed because its whole node is being ended.

        Batch systems signal all processes of a job, so that the task's end may be seen first.
        """
        if self._berth is None or not attempt.was_killed:
            return False
        deadline_s = asyncio.get_running_loop().time() + _SAME_SIGNAL_S
        while not self._is_leaving and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(_SAME_SIGNAL_S / 20)
        return self._is_leaving

    async def _outcome(self, attempt: Attempt, inputs: tuple[object, ...], grant: Grant) -> object:
        try:
            if attempt.job.isolation == "thread":
                return await run_in_thread(self._threads, attempt.job, inputs, attempt)
            return await self._in_slot(attempt, inputs, grant)
        except Exception as error:  # what goes wrong in the agent is this task's failure alone
            logger.debug("task %s could not be run", attempt.job.name, exc_info=True)
            return failure_of(error, attempt.job)

    async def _in_slot(
        self, attempt: Attempt, inputs: tuple[object, ...], grant: Grant
    ) -> Parcel | Failure:
        job = attempt.job
        parcels = tuple([await self._parcel(value) for value in inputs])
        slot = self._slots.acquire(
            self._kind(job.env, tuple(grant.gpus)), job.setup.key if job.setup else None
        )
        self._outputs[job.key] = attempt.captured = slot.capture_from_here()
        slot.on_ask = lambda ask: self.nested.answer(ask, slot, attempt, grant)
        cores = grant.cores if self.shape.is_real else ()
        order = Run(
            job=job, inputs=parcels, cores=cores, n_cores=len(grant.cores), node=attempt.node
        )
        try:
            return await attempt.run_in(slot, order)
        finally:
            self._outputs[job.key] = attempt.captured
            self.nested.forget_tasks_of(attempt)
            self._slots.release(slot, is_worn=attempt.has_worn_slot)

    def _kind(self, env: tuple[tuple[str, str], ...], gpus: tuple[str, ...]) -> SlotKind:
        visible = binding.gpu_environment(gpus, self.shape.gpu_vendor, bool(self.shape.gpu_ids))
        return SlotKind(env=env, gpu_env=tuple(sorted(visible.items())))

    @staticmethod
    async def _parcel(value: object) -> Parcel:
        """Pack an input that Dask made; what a slot made is packed already."""
        if isinstance(value, Parcel):
            return value
        return await asyncio.to_thread(Packer().pack, value)

    def _share_of(self, key: str) -> dict[str, Any] | None:
        task = self._worker.state.tasks.get(key)
        return (task.annotations or {}).get(SHARE) if task is not None else None

    def _report(self, attempt: Attempt, share: dict[str, Any], outcome: object) -> None:
        """Tell scheduler and client how an attempt ended; also gives the share back."""
        value = None
        if isinstance(outcome, Parcel) and outcome.is_small:
            assert isinstance(outcome.head, bytes)
            value = outcome.head if len(outcome.head) <= self._config.inline_bytes else None
        output = {
            name: piece.read() if piece.size() <= _INLINE_OUTPUT_BYTES else None
            for name, piece in attempt.captured.items()
        }
        report = Report(
            key=attempt.job.key,
            node=str(self._worker.name),
            attempt=share["attempt"],
            usage=attempt.usage,
            value=value,
            **output,
        )
        may_retry = not isinstance(outcome, Failure) or outcome.may_retry
        self._send(
            "exadask-report",
            share=share["share"],
            key=attempt.job.key,
            report=pickle.dumps(report),
            may_retry=may_retry,
        )

    def _send(self, op: str, **message: object) -> None:
        if not self._worker.batched_stream.closed():
            self._worker.batched_stream.send({"op": op, **message})

    async def output(self, key: str, stream: Stream) -> bytes:
        """Give what a task has written so far."""
        captured = self._outputs.get(key)
        return captured[stream].read() if captured else b""

    def _lend(self, attempt: Attempt, grant: Grant) -> None:
        self._admission.leave(grant.share)
        self._send("exadask-lend", share=grant.share)

    async def _reclaim(self, attempt: Attempt, grant: Grant) -> None:
        """Get the cores and GPUs of a waiting task back, and bind its processes again."""
        returned = self._admission.expect(grant.share)
        self._send("exadask-reclaim", share=grant.share)
        share = await returned
        renewed = Grant(grant.share, tuple(share["cores"]), dict(share["gpus"]))
        await self._admission.enter(renewed)
        if attempt.is_over:  # it did not wait for its share, and ended meanwhile
            self._admission.leave(grant.share)
            return
        if self.shape.is_real and renewed.cores != grant.cores and attempt.slot is not None:
            binding.bind_threads(attempt.slot.pid, renewed.cores)

    def _on_resume(self, share: dict[str, Any]) -> None:
        self._admission.announce(share["share"], share)


def _start_guardian(mark: str, scratch: str) -> subprocess.Popen[bytes] | None:
    if not Path("/proc/self/environ").exists():
        return None
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(guardian.__file__), mark, scratch],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _dismiss(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        assert process.stdin is not None
        process.communicate(guardian.FAREWELL)
