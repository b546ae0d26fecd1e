"""The agent of a node: a plugin of its Dask worker that runs tasks in slots and guards them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from exadask.config import Config
from exadask.resources import NodeShape
from exadask.runtime import binding, guardian
from exadask.runtime.admission import Admission, Grant
from exadask.runtime.attempt import Attempt, Cancelled
from exadask.runtime.bundle_attempt import BundleAttempt
from exadask.runtime.job import (
    INLINE_OUTPUT_BYTES,
    Bundle,
    Data,
    Failure,
    Job,
    Report,
    Run,
    RunBundle,
    Stream,
    TaskFailed,
    filled,
)
from exadask.runtime.leader import Leader
from exadask.runtime.leftovers import Leftovers
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.nested import NestedService
from exadask.runtime.outcomes import failure_of
from exadask.runtime.outliving import Outliving
from exadask.runtime.parcel import Packer, Parcel
from exadask.runtime.parts import Parts, near_gpus
from exadask.runtime.posting import Berth
from exadask.runtime.refusals import checked_index, guarded
from exadask.runtime.slot import Captured, Slot, SlotKind, SlotPool
from exadask.runtime.stored import StoredResults
from exadask.runtime.task_record import SHARE
from exadask.runtime.thread_slot import run_in_thread
from exadask.runtime.turns import Turns

logger = logging.getLogger(__name__)

AGENT = "exadask-agent"
_WARM_FROM_START = 4
_SAME_SIGNAL_S = 1.0
_LAST_WORD_S = 10.0
_HEIR_PATIENCE_S = 0.15
_NOT_BEGUN = ("waiting", "ready", "constrained", "fetch", "flight", "missing", "cancelled")
_RUNNING = ("executing", "long-running")
_serial = itertools.count()


async def run_task(job: Job, *inputs: object) -> object:
    """Run a job on this node: this and its two neighbours are all that Dask runs for exadask."""
    agent = get_worker().plugins[AGENT]
    assert isinstance(agent, NodeAgent)
    return await agent.run(job, inputs)


async def keep_data(data: Data) -> Parcel:
    """Keep a value for others; Dask brings it to the nodes that need it."""
    return data.value


async def run_bundle(bundle: Bundle, *inputs: object) -> object:
    """Run a bundle on this node; see `run_task`."""
    agent = get_worker().plugins[AGENT]
    assert isinstance(agent, NodeAgent)
    return await agent.run(bundle, inputs)


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
    told : mapping of str to str, optional
        Environment variables that tell the processes of tasks about the node.
    """

    name = AGENT

    def __init__(
        self,
        shape: NodeShape,
        config: Config,
        scratch: str,
        berth: Berth | None = None,
        *,
        told: Mapping[str, str] | None = None,
    ) -> None:
        self.shape, self._config, self._scratch, self._berth = shape, config, scratch, berth
        self._is_leaving = False
        self.mark = f"{os.getpid()}-{os.urandom(4).hex()}-{next(_serial)}"
        self._ranks = Path(scratch) / f"ranks-{self.mark}"
        self._told = {**(told or {}), "EXADASK_RANKS_FOLDER": str(self._ranks)}
        self._attempts: dict[str, Attempt | BundleAttempt] = {}
        self._outputs: dict[str, dict[str, Captured]] = {}
        self._bundle_outputs: dict[str, dict[int, dict[str, Captured]]] = {}
        self._drops: dict[str, set[int]] = {}
        self._yields: set[str] = set()  # asked for before they had begun

    async def setup(self, worker: Worker) -> None:
        """Take up work on a Dask worker."""
        self._worker = worker
        self._admission, self._turns = Admission(), Turns()
        self._slots = SlotPool(self.mark, max_idle=self.shape.cores, told=self._told)
        self._threads = ThreadPoolExecutor(1024, thread_name_prefix="exadask-task")
        self._ranks.mkdir(mode=0o700)
        self._leftovers = Leftovers()
        self._leftovers.look_now()  # an agent that was killed here may have left some
        self._watch = MemoryWatch(
            self._config.poll_interval_s, self.shape.memory_bytes, self._ranks
        )
        self._watching = asyncio.ensure_future(self._watch.run())
        self._parts = Parts(
            worker,
            self.shape,
            self._admission,
            self._watch,
            mark=self.mark,
            scratch=self._scratch,
            tell_ended=self._on_part_ended,
            told=self._told,
        )
        self.nested = NestedService(worker, self._lend, self._reclaim)
        has_proc = Path("/proc/self/environ").exists()  # the guardian finds processes there
        self._guardian = Outliving(guardian, self.mark, self._scratch) if has_proc else None
        worker.handlers["exadask_output"] = self.output
        worker.handlers["exadask_save"] = self.save
        worker.handlers["exadask_part"] = self._parts.launch
        worker.handlers["exadask_condemn"] = self.condemn
        worker.stream_handlers |= guarded(
            {
                "exadask-resume": self._on_resume,
                "exadask-drop": self._on_drop,
                "exadask-yield": self._on_yield,
                "exadask-part-end": self._parts.on_end,
            }
        )
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
        await self._parts.close()
        await self._leftovers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._guardian is not None:
            self._guardian.dismiss()

    def transition(self, key: str, start: str, finish: str, **_: object) -> None:
        """Take note of what Dask decides about a task: it never stops a running one itself."""
        attempt = self._attempts.get(key)
        if finish == "forgotten":
            for kept in (self._outputs, self._bundle_outputs, self._drops):
                kept.pop(key, None)
            self._yields.discard(key)
        if attempt is not None:
            if start in _RUNNING and finish == "released":
                attempt.cancel(self._config.kill_grace_s)
                self._turns.wake(key)
        elif start in _NOT_BEGUN and finish in ("released", "forgotten"):
            share = self._share_of(key)
            # It never began, or has left the thread of Dask's that it ran in.
            if share is not None and not self._is_ahead(share):
                self._send("exadask-ended", share=share["share"])

    async def run(self, work: Job | Bundle, inputs: tuple[object, ...]) -> object:
        """Run a job or a bundle; returns the job's result, or raises `TaskFailed`."""
        work, inputs = filled(work, inputs)
        last = None
        while True:
            share = self._share_of(work.key)
            if share is None or share["share"] == last:
                raise Cancelled  # Dask has dropped the task, and ignores how it ends
            last = share["share"]
            if self._was_dropped(work.key):  # before it began, so no attempt gives its share back
                if not self._is_ahead(share):
                    self._send("exadask-ended", share=last)
                raise Cancelled
            if isinstance(work, Bundle) and share["kept"] is not None:
                work, inputs = work.one(share["kept"], inputs)
            try:
                outcome = await self._attempt(work, inputs, share)
            except Cancelled:
                if self._is_leaving:  # Dask takes it back when this node is gone, not before
                    await asyncio.get_running_loop().create_future()
                continue  # unless it was placed here again meanwhile
            if isinstance(outcome, Failure):
                raise TaskFailed(work.key, work.kind.name, outcome)
            return outcome

    async def _attempt(
        self, work: Job | Bundle, inputs: tuple[object, ...], share: dict[str, Any]
    ) -> object:
        attempt = self._new_attempt(work, share)
        grant = Grant(share["share"], tuple(share["cores"]), dict(share["gpus"]))
        self._attempts[work.key] = attempt
        outcome: object = None
        kept: int | None = None
        try:
            if isinstance(attempt, BundleAttempt) and self._is_ahead(share):
                await self._turns.wait(work.key, share["after"], _HEIR_PATIENCE_S)
                if not attempt.is_cancelled and (attempt.must_yield or self._is_ahead(share)):
                    attempt.return_all()
                    return None
            if not self._is_ahead(share):
                await self._admission.enter(grant)
            if attempt.is_cancelled:
                raise Cancelled
            outcome = await self._outcome(attempt, inputs, grant)
            if attempt.is_cancelled or await self._is_cut_off(attempt):
                raise Cancelled
            if isinstance(attempt, BundleAttempt):
                kept = attempt.kept_index
            return outcome
        finally:
            attempt.is_over = True
            is_its_own = not self._is_ahead(share)
            if is_its_own:
                self._admission.leave(grant.share)
            if self._attempts.get(work.key) is attempt:
                del self._attempts[work.key]
            self._turns.wake(self._turns.heir_of(work.key))
            if is_its_own:  # the heir goes first; Dask's own news of the end come later still
                loop = asyncio.get_running_loop()
                loop.call_soon(self._report, attempt, work.key, share, outcome, kept)

    def _is_ahead(self, share: dict[str, Any]) -> bool:
        """Whether a share is still that of the bundle before."""
        return share["after"] in self._attempts

    def _new_attempt(self, work: Job | Bundle, share: dict[str, Any]) -> Attempt | BundleAttempt:
        node, config = str(self._worker.name), self._config
        if isinstance(work, Job):
            single = Attempt(work, node, self._watch, config.kill_grace_s)
            if work.kind.request.parts > 1:
                self._lead(single, share)
            return single

        def tell(items: Sequence[bytes], returned: Sequence[int], kept: int | None) -> None:
            # As one piece: Dask looks through messages for what it should serialise.
            packed = pickle.dumps(items, 5)
            news = {"key": work.key, "items": packed, "returned": returned, "kept": kept}
            self._send("exadask-progress", **news)

        attempt = BundleAttempt(
            work,
            node,
            self._watch,
            kill_grace_s=config.kill_grace_s,
            inline_bytes=config.inline_bytes,
            tell=tell,
            announce=lambda: self._send("exadask-nearing", share=share["share"], key=work.key),
            is_cut_off=lambda: self._is_cut_off(attempt),
        )
        for index in self._drops.get(work.key, ()):
            attempt.drop(index)
        if work.key in self._yields:
            attempt.give_way()
        return attempt

    def _lead(self, attempt: Attempt, share: dict[str, Any]) -> None:
        """Let an attempt use all that its gang has, on this node and on others."""
        is_limited = attempt.limit_bytes is not None
        attempt.limit_bytes = share["memory"] if is_limited else None
        if not share["mates"]:
            return
        attempt.leader = Leader(
            self._worker,
            attempt.kind.name,
            share["share"],
            share["mates"],
            limit_of=lambda mate: mate["memory"] if is_limited else None,
            condemn=attempt.condemn,
            tell_lost=lambda address: self._send(
                "exadask-broken", key=attempt.job.key, share=share["share"], address=address
            ),
        )

    async def _is_cut_off(self, attempt: Attempt | BundleAttempt) -> bool:
        """Whether a task was killed because its whole node is being ended.

        Batch systems signal all processes of a job, so that the task's end may be seen first.
        """
        if self._berth is None or not attempt.was_killed:
            return False
        deadline_s = asyncio.get_running_loop().time() + _SAME_SIGNAL_S
        while not self._is_leaving and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(_SAME_SIGNAL_S / 20)
        return self._is_leaving

    async def _outcome(
        self, attempt: Attempt | BundleAttempt, inputs: tuple[object, ...], grant: Grant
    ) -> object:
        kind = attempt.kind
        try:
            if isinstance(attempt, BundleAttempt):
                return await self._in_slots(attempt, inputs, grant)
            if kind.isolation == "thread":
                return await run_in_thread(self._threads, attempt.job, inputs, attempt)
            return await self._in_slot(attempt, inputs, grant)
        except Cancelled:
            raise
        except Exception as error:  # what goes wrong in the agent is this task's failure alone
            logger.debug("task %s could not be run", kind.name, exc_info=True)
            return failure_of(error, kind)

    async def _in_slot(
        self, attempt: Attempt, inputs: tuple[object, ...], grant: Grant
    ) -> Parcel | Failure:
        job = attempt.job
        parcels = tuple([await self._parcel(value) for value in inputs])
        slot = self._acquire(attempt, grant)
        self._outputs[job.key] = attempt.captured = slot.capture_from_here()
        order = Run(
            job=job,
            inputs=parcels,
            cores=near_gpus(grant, self.shape) if self.shape.is_real else (),
            n_cores=len(grant.cores),
            node=attempt.node,
            left_s=self._berth.left_s if self._berth else None,
        )
        try:
            if attempt.leader is None:
                return await attempt.run_in(slot, order)
            return await self._run_gang(attempt, slot, order, grant)
        finally:
            self._outputs[job.key] = attempt.captured
            self._release(attempt, slot)

    async def _run_gang(
        self, attempt: Attempt, slot: Slot, order: Run, grant: Grant
    ) -> Parcel | Failure:
        """Run a job whose processes are on several nodes."""
        leader = attempt.leader
        assert leader is not None, "it is no gang"
        folder = Path(self._scratch) / f"gang-{self._worker.name}-{grant.share}"
        with leader.leading(folder, grant, self.shape, slot) as gang:
            outcome = await attempt.run_in(slot, replace(order, gang=gang))
            if isinstance(outcome, Failure):
                await leader.settle(_LAST_WORD_S)  # another node may know better why
                outcome = attempt.judged(outcome)
                attempt.was_killed = True  # or its processes on other nodes, by the same signal
            if leader.lost is not None:
                await attempt.dropped.wait()
        return outcome

    async def _in_slots(
        self, attempt: BundleAttempt, inputs: tuple[object, ...], grant: Grant
    ) -> Parcel | None:
        """Run a bundle in a slot, and go on in another where a call has spoilt it."""
        bundle, start = attempt.bundle, 0
        parcels = tuple([await self._parcel(value) for value in inputs])
        self._bundle_outputs[bundle.key] = attempt.outputs
        while start < bundle.count:
            slot = self._acquire(attempt, grant)
            order = RunBundle(
                bundle=bundle,
                inputs=parcels,
                start=start,
                board=None,
                cores=grant.cores if self.shape.is_real else (),
                n_cores=len(grant.cores),
                node=attempt.node,
                inline_bytes=self._config.inline_bytes,
                left_s=self._berth.left_s if self._berth else None,
            )
            try:
                start = await attempt.run_in(slot, order)
            finally:
                self._release(attempt, slot)
            if start < bundle.count and not self._admission.is_inside(grant.share):
                grant = await self._regain(grant)  # a call ended while its share was lent out
        return attempt.kept

    def _acquire(self, attempt: Attempt | BundleAttempt, grant: Grant) -> Slot:
        kind = attempt.kind
        setup_key = kind.setup.key if kind.setup else None
        slot = self._slots.acquire(self._kind(kind.env, tuple(grant.gpus)), setup_key)
        slot.on_ask = lambda ask: self.nested.answer(ask, slot, attempt, grant)
        return slot

    def _release(self, attempt: Attempt | BundleAttempt, slot: Slot) -> None:
        self.nested.forget_tasks_of(attempt)
        if self._watch.forget_ranks(slot.mark):
            self._leftovers.look_soon()
        self._slots.release(slot, is_worn=attempt.has_worn_slot)

    def _on_part_ended(self, share: int) -> None:
        self._leftovers.look_soon()
        self._send("exadask-ended", share=share)

    def _kind(self, env: tuple[tuple[str, str], ...], gpus: tuple[str, ...]) -> SlotKind:
        visible = binding.gpu_environment(gpus, self.shape.gpu_vendor, bool(self.shape.gpu_ids))
        return SlotKind(env=env, gpu_env=tuple(sorted(visible.items())))

    @staticmethod
    async def _parcel(value: object) -> Parcel:
        """Pack an input that Dask made; what a slot made is packed already."""
        if isinstance(value, Parcel):
            return value
        return await asyncio.to_thread(Packer().pack, value)

    def _was_dropped(self, key: str) -> bool:
        """Whether Dask has dropped a task that it runs: it never stops one itself."""
        task = self._worker.state.tasks.get(key)
        return task is None or task.state not in _RUNNING

    def _share_of(self, key: str) -> dict[str, Any] | None:
        task = self._worker.state.tasks.get(key)
        return (task.annotations or {}).get(SHARE) if task is not None else None

    def _report(
        self,
        attempt: Attempt | BundleAttempt,
        key: str,
        share: dict[str, Any],
        outcome: object,
        kept: int | None,
    ) -> None:
        """Tell scheduler and client how an attempt ended; also gives the share back."""
        value = None
        if isinstance(outcome, Parcel) and outcome.is_small:
            assert isinstance(outcome.head, bytes)
            value = outcome.head if len(outcome.head) <= self._config.inline_bytes else None
        output = {}
        if isinstance(attempt, Attempt):
            output = {
                name: piece.read() if piece.size() <= INLINE_OUTPUT_BYTES else None
                for name, piece in attempt.captured.items()
            }
        problem = outcome.problem if isinstance(outcome, Failure) else None
        node = str(self._worker.name)
        report = Report(node, attempt.usage, value=value, problem=problem, **output)
        self._send(
            "exadask-report",
            share=share["share"],
            key=key,
            report=pickle.dumps(report),
            kept=kept,
            may_retry=not isinstance(outcome, Failure) or outcome.may_retry,
        )

    def _send(self, op: str, **message: object) -> None:
        if not self._worker.batched_stream.closed():
            self._worker.batched_stream.send({"op": op, **message})

    async def output(self, key: str, stream: Stream, index: int | None = None) -> bytes:
        """Give what a task, or a call of a bundle, has written so far."""
        captured = self._outputs.get(key)
        if index is not None:
            attempt = self._attempts.get(key)
            captured = self._bundle_outputs.get(key, {}).get(index)
            if captured is None and isinstance(attempt, BundleAttempt):
                captured = attempt.written(index)
        return captured[stream].read() if captured else b""

    async def condemn(self, share: int, verdict: bytes) -> None:
        """End a gang that is led from here, because it went beyond its limits elsewhere."""
        for one in self._attempts.values():
            if isinstance(one, Attempt) and one.leader is not None and one.leader.share == share:
                one.condemn(pickle.loads(verdict))

    async def save(self, key: str, folder: str, name: str, facts: dict[str, Any]) -> None:
        """Write a result that is here into a file."""
        parcel = await self._parcel(self._worker.data[key])
        files = StoredResults(Path(folder))
        await asyncio.to_thread(files.write, bytes.fromhex(name), parcel, facts)

    def _on_drop(self, key: str, indices: list[int]) -> None:
        indices = list(map(checked_index, indices))
        if key in self._worker.state.tasks:
            self._drops.setdefault(key, set()).update(indices)
        attempt = self._attempts.get(key)
        if isinstance(attempt, BundleAttempt):
            for index in indices:
                attempt.drop(index)

    def _on_yield(self, key: str) -> None:
        attempt = self._attempts.get(key)
        if isinstance(attempt, BundleAttempt):
            attempt.give_way()
            self._turns.wake(key)
        elif key in self._worker.state.tasks:
            self._yields.add(key)

    def _lend(self, attempt: Attempt | BundleAttempt, grant: Grant) -> None:
        if isinstance(attempt, BundleAttempt):
            heir = self._turns.heir_of(attempt.bundle.key)
            if heir is not None:
                self._on_yield(heir)  # it may have to wait for long
        self._admission.leave(grant.share)
        self._send("exadask-lend", share=grant.share)

    async def _reclaim(self, attempt: Attempt | BundleAttempt, grant: Grant) -> None:
        """Get the cores and GPUs of a waiting task back, and bind its processes again."""
        renewed = await self._regain(grant)
        if attempt.is_over:  # it did not wait for its share, and ended meanwhile
            self._admission.leave(grant.share)
            return
        if self.shape.is_real and renewed.cores != grant.cores and attempt.slot is not None:
            binding.bind_threads(attempt.slot.pid, renewed.cores)

    async def _regain(self, grant: Grant) -> Grant:
        """Get a share back that was lent out."""
        returned = self._admission.expect(grant.share)
        self._send("exadask-reclaim", share=grant.share)
        share = await returned
        renewed = Grant(grant.share, tuple(share["cores"]), dict(share["gpus"]))
        await self._admission.enter(renewed)
        return renewed

    def _on_resume(self, share: dict[str, Any]) -> None:
        self._admission.announce(share["share"], share)
