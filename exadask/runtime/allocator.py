"""Asks for allocations, watches them and gives them back, as `exadask.core.scaling` decides.

All decisions are the core's. This is its shell: it runs the commands of the batch system, asks how
the jobs are (one query for all, rarely, more often while something is expected to happen), tells
the core, and moves results away from nodes that go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from distributed import Scheduler

from exadask.batch.model import AllocationRequest, JobId
from exadask.config import Config
from exadask.core.events import (
    Cancel,
    ClosePool,
    Command,
    Demand,
    GiveBack,
    Offer,
    Step,
    Submit,
)
from exadask.core.fleet_report import FleetSummary
from exadask.core.ledger import NodeId
from exadask.core.pool_book import FleetLimits
from exadask.core.scaling import Fleet
from exadask.errors import AllocationFailed, ExadaskError, QueryFailed, SubmissionRefused
from exadask.job_status import JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape
from exadask.runtime.backends import Backend, backend_of, tail_of
from exadask.runtime.background import Background
from exadask.runtime.depot import Depot
from exadask.runtime.reaper_process import Reaper
from exadask.runtime.requests import request_for, write_posting
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.scheduler_plugin import HoldThenPlace

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_LEAST_PAUSE_S = 0.1
_FIRST_POLL_S = 1.0
_FAREWELL_S = 20.0
_FAREWELL_POLL_S = 0.5
_CANCEL_AGAIN_S = 5.0
_AGENTS_END_S = 5.0
_LATE_MARGIN_S = 30.0
_LATE_FRACTION = 0.1
_RESCUE_EVERY_S = 3.0


@dataclass(slots=True, kw_only=True)
class _Job:
    """An allocation that was asked for."""

    request: AllocationRequest
    job: JobId | None = None
    is_over: bool = False
    is_unwanted: bool = False
    is_held: bool = False


class Allocator:
    """The pools of a scheduler; its event loop owns them.

    Parameters
    ----------
    pools : sequence of Pool
        What may be asked for.
    config : Config
        Limits and intervals.
    run : RunFolder
        Where scripts and logs go.
    scheduler : distributed.Scheduler
        The scheduler that agents report to.
    plugin : HoldThenPlace
        Its placement.
    depot : Depot
        Where results go whose nodes are given back.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        config: Config,
        run: RunFolder,
        scheduler: Scheduler,
        plugin: HoldThenPlace,
        depot: Depot,
        spent_node_s: float = 0.0,
    ) -> None:
        self._config, self._run, self._scheduler = config, run, scheduler
        self._spent_node_s = spent_node_s
        self._plugin, self._depot = plugin, depot
        self._pools = {pool.name: pool for pool in pools}
        self._backends: dict[str, Backend] = {}
        self._told_by_batch_system: set[str] = set()  # pools whose shape is not just a profile's
        self._jobs: dict[str, _Job] = {}
        self._idle_since: dict[NodeId, float] = {}
        self._background, self._submitting = Background(), Background()
        self._news = asyncio.Event()
        self._poll_interval_s = _FIRST_POLL_S
        self._next_poll_s = self._next_rescue_s = 0.0
        self._is_polling = self._is_closing = False

    async def start(self) -> None:
        """Find out what the nodes have, and begin to decide."""
        self._loop = asyncio.get_running_loop()
        for pool in self._pools.values():
            self._backends.setdefault(pool.name, self._known_backend(pool) or backend_of(pool))
        for pool in list(self._pools.values()):
            if pool.shape is None:
                shape = await self._backends[pool.name].node_shape(pool)
                self._pools[pool.name] = replace(pool, shape=shape)
                if pool.is_batch:
                    self._told_by_batch_system.add(pool.name)
        self._fleet = Fleet(
            list(self._pools.values()),
            mode=self._config.scale,
            budget_node_s=self._config.budget,
            limits=FleetLimits(grow_after_s=self._config.grow_after_s, lead_s=self._config.lead_s),
            n_earlier={name: self._run.n_allocations(name) for name in self._pools},
            spent_node_s=self._spent_node_s,
        )
        with self._run.being_written():
            self._reaper = Reaper(self._run)
        self._plugin.roster.observer = self
        self._plugin.on_waiting = self.poke
        self._plugin.why_no_node = self._why_no_node
        self._plugin.placement.offers = self.offers()
        self._ticking = asyncio.ensure_future(self._tick_forever())

    async def close(self) -> None:
        """End every job; returns when they are gone, or have been told to go."""
        self._is_closing = True
        if not hasattr(self, "_ticking"):
            return
        self._ticking.cancel()
        self._plugin.roster.observer = None
        self._background.cancel()
        await self._submitting.finish()  # of a job whose id is not known nobody could be rid
        ending = {
            name for name in self._jobs if self._plugin.roster.of_allocation(name)
        }  # they end by themselves, and tidy up, when their agents are told to
        await self._dismiss(list(self._plugin.roster.by_address))
        began_s = self._now()
        again_s = 0.0
        while self._living() and self._now() < began_s + _FAREWELL_S:
            is_patient = self._now() < began_s + _AGENTS_END_S
            if self._now() >= again_s or not is_patient:  # an order, or its answer, may be lost
                again_s = self._now() + _CANCEL_AGAIN_S
                await self._cancel_all(besides=ending if is_patient else set())
            await asyncio.sleep(_FAREWELL_POLL_S)
            await self._poll()
        for one in self._living():
            logger.warning("job %s of pool %s may still run", one.job, one.request.pool.name)
        self._reaper.dismiss()

    # -- questions --------------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        """Say which nodes may still join."""
        return self._fleet.offers(self._now())

    def plan(self) -> list[Step]:
        """Say what would be done next, and why."""
        now = self._now()
        return self._fleet.plan(now, *self._situation(now))

    def summary(self) -> FleetSummary:
        """Say how the pools are."""
        return self._fleet.summary(self._now())

    def scale(self, pool: str, nodes: int) -> None:
        """Have so many nodes of a pool from now on."""
        self._fleet.scale(pool, nodes)
        self.poke()

    def _why_no_node(self, demand: Demand) -> str:
        return self._fleet.explain(demand, self._now())

    # -- news of nodes ----------------------------------------------------------------------

    def node_joined(self, node: NodeId, pool: str, allocation: str, shape: NodeShape) -> None:
        """Take the news that a node takes tasks from now on."""
        self._fleet.node_joined(allocation, node, self._now(), shape)
        told_at = self._plugin.placement.nodes[node].ends_at
        self._plugin.placement.set_end(node, self._fleet.believable_end(allocation, told_at))
        logger.info("node %s of pool %s joined: %s", node, pool, shape)
        self.poke()

    def node_left(self, node: NodeId, allocation: str) -> None:
        """Take the news that a node has gone; the batch system will know more."""
        self._fleet.node_left(allocation, node, self._now())
        self._idle_since.pop(node, None)
        self._expect_news()

    def node_is_leaving(self, node: NodeId, allocation: str) -> None:
        """Save what only that node has, and let it go."""
        self._background.start(self._let_go([node]))

    def poke(self) -> None:
        """Decide soon: something has changed."""
        self._news.set()

    # -- the loop ---------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            try:
                self._tick()
            except Exception:  # a bug here must not leave the tasks without anybody who cares
                logger.exception("deciding about allocations failed")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), _TICK_S)
            self._news.clear()
            await asyncio.sleep(_LEAST_PAUSE_S)

    def _tick(self) -> None:
        now = self._now()
        self._note_idle(now)
        self._reaper.catch_up()
        if now >= self._next_poll_s and not self._is_polling and self._living():
            self._background.start(self._poll())
        self._rescue_late_results(now)
        for command in self._fleet.decide(now, *self._situation(now)):
            self._perform(command)
        self._plugin.placement.offers = self.offers()
        self._plugin.last_resort.fail_hopeless()

    def _situation(
        self, now: float
    ) -> tuple[list[Demand], Mapping[NodeId, float], Collection[NodeId]]:
        """Gather what waits, what idles, and what goes on past the end of its node."""
        placement = self._plugin.placement
        outlasting = placement.outlasting(self._fleet.ending_nodes(now))
        return self._plugin.backlog.demand(), self._idle_since, outlasting

    def _perform(self, command: Command) -> None:
        match command:
            case Submit():
                self._submitting.start(self._submit(command))
            case Cancel():
                self._background.start(self._cancel(command.allocation, command.reason))
            case GiveBack():
                logger.info("giving %s back: %s", command.allocation, command.reason)
                self._background.start(self._give_back(command.allocation))
            case ClosePool():
                pool, tail = self._pools[command.pool], self._log_of(command.log_of)
                offer = Offer(
                    pool=pool.name,
                    shape=pool.shape,
                    walltime_s=pool.walltime_s,
                    nodes=pool.max_nodes,
                )
                failure = AllocationFailed(pool.name, command.reason, tail)
                self._plugin.last_resort.failures.append((offer, failure))
                logger.warning("%s", failure)

    # -- asking for allocations and giving them back ----------------------------------------

    async def _submit(self, command: Submit) -> None:
        pool, name = self._pools[command.pool], str(command.allocation)
        request = request_for(
            pool,
            self._run.path,
            name=name,
            nodes=command.nodes,
            walltime_s=command.walltime_s,
        )
        entry = self._jobs[name] = _Job(request=request)
        try:
            is_told = pool.name in self._told_by_batch_system
            address = self._scheduler.address
            write_posting(request, self._run, address, self._config, is_told=is_told)
            entry.job = await self._backends[pool.name].submit(request)
        except SubmissionRefused as error:
            entry.is_over = True
            reason = f"{error.answer} {error.advice}".strip()
            self._refused(name, reason, is_permanent=error.is_permanent)
        except ExadaskError as error:  # a bad pool
            entry.is_over = True
            self._refused(name, f"{error}", is_permanent=True)
        except OSError as error:  # a disk that is full, or cannot be written: for now
            entry.is_over = True
            self._refused(name, f"{error}", is_permanent=False)
        else:
            self._fleet.submitted(name, str(entry.job), self._now())
            logger.info(
                "pool %s: asked for %d nodes as job %s", pool.name, command.nodes, entry.job
            )
            self._update_reaper()
            if entry.is_unwanted or self._is_closing:
                await self._cancel(name, "nobody wants it any more")
        self._expect_news()
        self.poke()

    def _refused(self, name: str, reason: str, *, is_permanent: bool | None) -> None:
        self._fleet.refused(name, reason, self._now(), is_permanent=is_permanent)

    async def _cancel(self, allocation: str, reason: str) -> None:
        entry = self._jobs[allocation]
        entry.is_unwanted = True
        if entry.job is None or entry.is_over:
            return
        logger.info("cancelling job %s: %s", entry.job, reason)
        self._plugin.roster.excuse(self._plugin.roster.of_allocation(allocation))
        try:
            await self._backends[entry.request.pool.name].cancel([entry.job])
        except QueryFailed as error:
            logger.warning("%s", error)
        self._expect_news()

    async def _give_back(self, allocation: str) -> None:
        """Let idle nodes go: first what only they have, then the agents, then the job."""
        nodes = self._plugin.roster.of_allocation(allocation)
        await self._let_go(nodes)
        self._expect_news()
        deadline_s = self._now() + _AGENTS_END_S
        while not self._jobs[allocation].is_over and self._now() < deadline_s:
            await asyncio.sleep(_FAREWELL_POLL_S)
            await self._poll()
        await self._cancel(allocation, "its nodes are no longer needed")

    async def _let_go(self, nodes: Iterable[NodeId]) -> None:
        """Move what only these nodes have, and end their agents; what stays is computed again."""
        nodes = list(nodes)
        for node in nodes:
            self._plugin.close_node(node)
        addresses = self._addresses(nodes)
        await self._depot.evacuate(addresses, self._staying(nodes))
        await self._dismiss(addresses)

    def _send_away(self, nodes: Iterable[NodeId]) -> None:
        """End the agents that a job has left behind: nobody else will, not even at its walltime."""
        roster = self._plugin.roster
        left = [node for node in nodes if node not in roster.leaving]
        roster.excuse(nodes)
        if left and not self._is_closing:
            self._background.start(self._let_go(left))

    async def _dismiss(self, addresses: Iterable[str]) -> None:
        """Tell agents to end."""
        for one in addresses:
            await self._scheduler.remove_worker(one, stimulus_id="exadask-dismiss", expected=True)

    def _rescue_late_results(self, now: float) -> None:
        """Move results away from nodes whose end is near: Dask would compute them again."""
        if now < self._next_rescue_s:
            return
        late = self._near_their_end(now)
        if late:
            self._next_rescue_s = now + _RESCUE_EVERY_S
            leaving = self._addresses(late)
            self._background.start(self._depot.evacuate(leaving, self._staying(late)))

    def _near_their_end(self, now: float) -> list[NodeId]:
        nodes = self._plugin.placement.nodes.values()
        return [one.name for one in nodes if one.ends_at - now < self._late_margin_s(one.name)]

    def _late_margin_s(self, node: NodeId) -> float:
        pool = self._plugin.roster.pool_of(node)
        walltime_s = self._pools[pool].walltime_s if pool in self._pools else _LATE_MARGIN_S
        return min(_LATE_MARGIN_S, _LATE_FRACTION * walltime_s)

    def _addresses(self, nodes: Iterable[NodeId]) -> list[str]:
        found = (self._plugin.roster.address_of(node) for node in nodes)
        return [address for address in found if address is not None]

    def _staying(self, leaving: Iterable[NodeId]) -> list[str]:
        """Name the nodes that take no part in leaving, now or soon."""
        roster = self._plugin.roster
        gone = {*leaving, *roster.leaving, *self._near_their_end(self._now())}
        return [address for address, node in roster.by_address.items() if node not in gone]

    # -- watching ---------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Ask every batch system once for all its jobs."""
        self._is_polling = True
        try:
            for backend in dict.fromkeys(self._backends.values()):
                await self._poll_one(backend)
        finally:
            self._is_polling = False
            self._next_poll_s = self._now() + self._poll_interval_s
            self._poll_interval_s = min(2 * self._poll_interval_s, self._config.poll_jobs_s)

    async def _poll_one(self, backend: Backend) -> None:
        names = {
            one.job: name
            for name, one in self._jobs.items()
            if one.job is not None
            and not one.is_over
            and self._backends[one.request.pool.name] is backend
        }
        if not names:
            return
        try:
            found = await backend.status(list(names))
        except QueryFailed as error:
            logger.warning("%s", error)
            self._fleet.query_failed()
            return
        for job, status in found.items():
            self._take_status(names[job], status)

    def _take_status(self, name: str, status: JobStatus) -> None:
        entry, now = self._jobs[name], self._now()
        if status.state is JobState.ENDED and not entry.is_over:
            entry.is_over = True
            self._send_away(self._plugin.roster.of_allocation(name))
            self._update_reaper()
            cause = status.cause.value if status.cause else "ended"
            logger.info("job %s %s (%s)", entry.job, cause, status.reason)
        if status.left_s is not None:
            for node in self._plugin.roster.of_allocation(name):
                self._plugin.placement.set_end(node, now + status.left_s)
        if status.is_held and not entry.is_held:
            logger.warning(
                "job %s is held (%s): somebody must release it", entry.job, status.reason
            )
        entry.is_held = status.is_held
        self._fleet.reported(name, status, now)
        self.poke()

    def _expect_news(self) -> None:
        """Ask again soon, and then less and less often."""
        self._poll_interval_s = _FIRST_POLL_S
        self._next_poll_s = min(self._next_poll_s, self._now() + _FIRST_POLL_S)

    def _note_idle(self, now: float) -> None:
        idle = self._plugin.placement.idle_nodes()
        self._idle_since = {node: self._idle_since.get(node, now) for node in idle}

    # -- the end ----------------------------------------------------------------------------

    def _living(self) -> list[_Job]:
        return [one for one in self._jobs.values() if one.job is not None and not one.is_over]

    async def _cancel_all(self, besides: Collection[str]) -> None:
        for backend in dict.fromkeys(self._backends.values()):
            jobs = self._jobs_of(backend, besides)
            try:
                await backend.cancel(jobs)
            except QueryFailed as error:
                logger.warning("%s", error)

    def _jobs_of(self, backend: Backend, besides: Collection[str] = ()) -> list[JobId]:
        return [
            one.job
            for one in self._living()
            if one.job is not None
            and one.request.name not in besides
            and self._backends[one.request.pool.name] is backend
        ]

    def _update_reaper(self) -> None:
        backends = dict.fromkeys(self._backends.values())
        jobs = {backend: self._jobs_of(backend) for backend in backends}
        self._reaper.expect([one.cancel_argv(ids) for one, ids in jobs.items() if ids])

    def _known_backend(self, pool: Pool) -> Backend | None:
        """Share one backend among the pools of one batch system: one query serves them all."""
        for name, backend in self._backends.items():
            other = self._pools[name]
            if (other.batch, other.psij_executor) == (pool.batch, pool.psij_executor):
                return backend
        return None

    def _log_of(self, allocation: str | None) -> str:
        entry = self._jobs.get(allocation or "")
        return "" if entry is None else tail_of(entry.request.log)

    def _now(self) -> float:
        return self._loop.time()  # also when it has stopped, for the record
