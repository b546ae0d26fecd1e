"""Hold, then place: the adapter between Dask's scheduler and exadask's own placement.

Every task is pinned to an address that does not exist, so Dask resolves its dependencies and then
parks it in the state ``no-worker``. That is the sign to give it to `exadask.core.placement`; when
the core answers with a node and a share, the task is pinned there and processed. Dask keeps its
dependencies, data, results, retries and clients.

Dask internals used (all in this file): ``TaskState.worker_restrictions`` and ``annotations``,
``Scheduler.transitions``, ``stream_handlers``, and one short-cut (`_skip_held`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from distributed.scheduler import TaskState

from exadask.core.events import Demand
from exadask.core.ledger import NodeId, Share, ShareId, TaskId
from exadask.core.placement import Place, Placement, Resume, WaitingTask, Yield
from exadask.errors import ImpossibleRequest, NodeLost
from exadask.runtime.backlog import Backlog
from exadask.runtime.gangs import Gangs
from exadask.runtime.last_resort import LastResort
from exadask.runtime.questions import Questions
from exadask.runtime.refusals import checked_index, checked_left_s, checked_shape, guarded
from exadask.runtime.relay import Relay
from exadask.runtime.roster import Roster
from exadask.runtime.task_record import (
    SHARE,
    TaskRecord,
    allowed_nodes,
    local_bytes,
    rank_of,
    share_on_wire,
)

logger = logging.getLogger(__name__)

HOLD = "tcp://0.0.0.0:1"
_MAX_NODES_LOST = 3


class HoldThenPlace(SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Places every task of a scheduler by exact books of what its nodes have.

    Parameters
    ----------
    reserve_after_s : float
        How long a task may be overtaken before a node is reserved for it [s].
    """

    name = "exadask"

    def __init__(self, reserve_after_s: float) -> None:
        self.placement = Placement(reserve_after_s=reserve_after_s)
        self._records: dict[str, TaskRecord] = {}
        self._draining: set[int] = set()
        self.backlog = Backlog(self.placement)
        self.relay = Relay(self.placement, self, lambda: self._loop.time())
        self.gangs = Gangs(self)
        self.roster = Roster()
        self.last_resort = LastResort(self)
        self.on_waiting: Callable[[], None] = _do_nothing
        self.why_no_node: Callable[[Demand], str | None] = lambda demand: None
        self._held: set[str] = set()
        self._cancelled_early: set[str] = set()
        self._placing: set[str] = set()
        self._is_dispatch_due = False
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Take over a scheduler's placement."""
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        handlers: dict[str, Callable[..., None]] = {
            "exadask-node": self._on_node,
            "exadask-leaving": self._on_leaving,
            "exadask-cancel": self._on_cancel,
            "exadask-report": self._on_report,
            "exadask-progress": self._on_progress,
            "exadask-nearing": self.relay.on_nearing,
            "exadask-broken": self.gangs.on_broken,
            "exadask-drop": self._on_drop,
            "exadask-backlog": self._on_backlog,
            "exadask-ended": self._on_ended,
            "exadask-lend": self._on_lend,
            "exadask-reclaim": self._on_reclaim,
        }
        scheduler.stream_handlers |= guarded(handlers)
        scheduler.handlers |= Questions(scheduler, self).handlers()
        self._skip_held()

    def _skip_held(self) -> None:
        """Spare the scheduler a look at every held task whenever a worker joins."""
        scheduler = self._scheduler
        original: Callable[..., Any] = scheduler.bulk_schedule_unrunnable_after_adding_worker

        def only_others(worker: Any) -> Any:
            return {} if len(self._held) == len(scheduler.unrunnable) else original(worker)

        scheduler.bulk_schedule_unrunnable_after_adding_worker = only_others

    # -- tasks ------------------------------------------------------------------------------

    def _on_cancel(self, key: str, client: str | None) -> None:
        """Cancel a task; its graph may still be on the way, since Dask unpacks it elsewhere."""
        if key not in self._scheduler.tasks:
            if self._scheduler._active_graph_updates:  # otherwise it is done and forgotten
                self._cancelled_early.add(key)
            return
        keys = self._with_dependents(key)
        wanting = {
            cs.client_key for one in keys for cs in self._scheduler.tasks[one].who_wants or ()
        }
        self._scheduler.report({"op": "cancelled-keys", "keys": list(keys)})
        for name in wanting:
            self._scheduler.client_releases_keys(
                keys=list(keys), client=name, stimulus_id=f"exadask-cancel-{time.time()}"
            )

    def _with_dependents(self, key: str) -> dict[str, None]:
        """Name a task and all that need its result: they cannot run without it."""
        found, stack = dict[str, None](), [key]
        while stack:
            one = stack.pop()
            if one not in found:
                found[one] = None
                stack.extend(ts.key for ts in self._scheduler.tasks[one].dependents)
        return found

    def update_graph(
        self, scheduler: Scheduler, *, tasks: list[str], client: str, **_: object
    ) -> None:
        """Hold every new task, ours and plain Dask ones alike."""
        for key in self._cancelled_early.intersection(tasks):
            self._cancelled_early.discard(key)
            self._loop.call_soon(self._on_cancel, key, client)
        for key in tasks:
            ts = scheduler.tasks.get(key)
            if ts is None or key in self._records or ts.run_spec is None or ts.actor:
                continue
            if ts.state == "released" and not ts.resource_restrictions:
                self._records[key] = TaskRecord.of(
                    ts, allowed_nodes(ts, self._scheduler, self.roster.by_address)
                )
                self._hold(ts)

    @staticmethod
    def _hold(ts: TaskState) -> None:
        ts.worker_restrictions = {HOLD}
        ts.host_restrictions = None
        ts.loose_restrictions = False

    def transition(self, key: str, start: str, finish: str, *_: object, **__: object) -> None:
        """Follow a task through Dask's states."""
        record = self._records.get(key)
        if record is None:
            return
        if start == "processing":
            self._give_back(key, record, finish)
        elif start == "no-worker":
            self._held.discard(key)
            if key not in self._placing:
                self.placement.withdraw(TaskId(key))
        if finish == "no-worker":
            self._held.add(key)
            self._enqueue(key, record)
        elif finish == "processing" and key not in self._placing:
            self._charge(key, record)
        elif finish in ("released", "waiting") and key in self._scheduler.tasks:
            self._hold(self._scheduler.tasks[key])
        elif finish == "forgotten":
            del self._records[key]

    def _enqueue(self, key: str, record: TaskRecord) -> None:
        ts = self._scheduler.tasks[key]
        record.lost_on = [node for node in record.lost_on if node not in self.roster.excused]
        if record.is_bundle and record.attempts and record.kept in (None, -1):
            self._dissolve(key, record)
            return
        if len(record.lost_on) >= _MAX_NODES_LOST:
            self.last_resort.stop(record, key, NodeLost(record.name, tuple(record.lost_on)))
            return
        task = WaitingTask(
            task=TaskId(key),
            request=record.request,
            priority=rank_of(ts, record),
            locality=local_bytes(ts, self.roster.by_address),
            warm_key=record.warm_key,
            allowed=record.allowed,
            pool=record.pool,
            alone=len(record.lost_on) == _MAX_NODES_LOST - 1,
            is_bundle=record.is_bundle,
        )
        try:
            self.placement.submit(task, self._loop.time())
        except ImpossibleRequest:
            self.last_resort.stop(record, key, self.last_resort.why(record))
        else:
            self._dispatch_soon()

    def _dissolve(self, key: str, record: TaskRecord) -> None:
        """Leave a bundle whose node is gone to its client, which knows what of it is not done."""
        is_suspect = bool(record.lost_on)
        self._tell(record, {"op": "exadask-dissolved", "key": key, "is_suspect": is_suspect})
        self._loop.call_soon(self._on_cancel, key, record.client)

    # -- shares -----------------------------------------------------------------------------

    def _give_back(self, key: str, record: TaskRecord, finish: str) -> None:
        """Return a share; after a cancel only when the node says that the task really ended."""
        self.relay.forget(TaskId(key))
        if record.charge is not None:
            self.placement.release(record.charge)
            record.charge = None
        self.gangs.end(key, record)
        share, record.share = record.share, None
        if share is None:
            return
        is_node_lost = self.roster.address_of(share.node) not in self._scheduler.workers
        if is_node_lost:
            if finish == "released":
                record.lost_on.append(share.node)
            return
        if record.lost_mate is None:
            record.lost_on.clear()
        else:
            record.lost_on.append(record.lost_mate)
        if record.has_ended or finish in ("memory", "erred", "waiting"):
            self.relay.release(share.share_id)
            if record.warm_key is not None:
                self.placement.note_warm(share.node, record.warm_key)
        else:
            self._draining.add(share.share_id)
        self._dispatch_soon()

    def drain(self, share: Share) -> None:
        """Let a node end what a gang has there; its word gives the share back."""
        address = self.roster.address_of(share.node)
        if address in self._scheduler.workers:
            self._draining.add(share.share_id)
            self._tell_node(address, {"op": "exadask-part-end", "share": int(share.share_id)})

    def _charge(self, key: str, record: TaskRecord) -> None:
        """Book a task that Dask sent to a node by itself (for example a shuffle's)."""
        ts = self._scheduler.tasks[key]
        worker = ts.processing_on
        node = self.roster.by_address.get(worker.address) if worker else None
        if node is not None:
            record.charge = self.placement.charge(TaskId(key), node, record.request)

    def _on_ended(self, share: int, **_: object) -> None:
        if share in self._draining:
            self._draining.discard(share)
            self.relay.release(ShareId(share))
            self._dispatch_soon()

    def _on_report(
        self,
        share: int,
        key: str,
        report: bytes,
        kept: int | None,
        may_retry: bool,
        **_: object,
    ) -> None:
        record = self._records.get(key)
        if record is not None and record.share is not None and record.share.share_id == share:
            record.note_kept(kept)
            record.has_ended = True
            if not may_retry:
                self._scheduler.tasks[key].retries = 0
            self._tell(record, {"op": "exadask-report", "key": key, "report": report})
            if record.is_bundle:  # the next may begin: Dask learns later that this one is done
                self._give_back(key, record, "memory")
                self._dispatch()
        self._on_ended(share)

    def _on_progress(self, key: str, worker: str, kept: int | None, **news: Any) -> None:
        """Pass on how calls of a bundle ended."""
        record = self._records.get(key)
        if record is not None:
            message = {name: news[name] for name in ("items", "returned")}
            record.note_kept(kept)
            self._tell(record, {"op": "exadask-progress", "key": key, **message})

    def _on_drop(self, key: str, index: int, **_: object) -> None:
        """Take a call out of a bundle, wherever that is."""
        record = self._records.get(key)
        if record is not None:
            record.dropped.append(checked_index(index))
            if record.share is not None:
                self._send_drops(record, key, [index])

    def _send_drops(self, record: TaskRecord, key: str, indices: list[int]) -> None:
        self._tell_node(record.node, {"op": "exadask-drop", "key": key, "indices": indices})

    def _on_backlog(self, lanes: list[list[Any]], client: str, **_: object) -> None:
        """Take note of what a client has not sent yet; say how many of each could run at once."""
        comm = self._scheduler.client_comms.get(client)
        if comm is None or comm.closed():  # nobody would say that it waits no more
            return
        comm.send({"op": "exadask-slots", "slots": self.backlog.note(client, lanes)})
        if lanes:
            self.on_waiting()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Forget what a client that has gone had not sent."""
        self.backlog.forget(client)

    def _tell(self, record: TaskRecord, message: dict[str, Any]) -> None:
        comm = self._scheduler.client_comms.get(record.client)
        if comm is not None and not comm.closed():
            comm.interval = 0.0005
            comm.send(message)

    def _on_lend(self, share: int, **_: object) -> None:
        self.relay.dismiss(ShareId(share))
        self.placement.lend(ShareId(share))
        self._dispatch_soon()

    def _on_reclaim(self, share: int, **_: object) -> None:
        self.placement.reclaim(ShareId(share), self._loop.time())
        self._dispatch_soon()

    # -- nodes ------------------------------------------------------------------------------

    def _on_node(
        self,
        shape: bytes,
        worker: str,
        pool: str | None,
        allocation: str | None,
        left_s: float | None,
        **_: object,
    ) -> None:
        ws = self._scheduler.workers.get(worker)
        if ws is None:
            return
        node, declared = NodeId(str(ws.name)), checked_shape(shape)
        self._scheduler.stream_comms[worker].interval = 0.0005
        ends_at = self._loop.time() + checked_left_s(left_s)
        self.placement.add_node(node, declared, ends_at=ends_at, pool=pool, allocation=allocation)
        self.roster.join(node, worker, pool, allocation, declared)
        self._follow_status(worker)

    def _on_leaving(self, worker: str, **_: object) -> None:
        node = self.roster.by_address.get(worker)
        if node is not None:
            self.placement.pause_node(node)
            self.roster.announce_leaving(node)

    def close_node(self, node: NodeId) -> None:
        """Place nothing more on a node; it is about to go, and nobody is to blame."""
        self.roster.leaving.add(node)
        self.roster.excuse([node])
        self.placement.pause_node(node)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: object) -> None:
        """Strike a node from the books, with all that was on it."""
        node = self.roster.leave(worker)
        if node is not None:
            self.placement.remove_node(node)
            self.gangs.lose(node)
            self._dispatch_soon()

    def log_event(self, topic: str, msg: Any) -> None:
        """Notice workers that begin or stop to take work: no other hook tells."""
        if isinstance(msg, dict) and msg.get("action") == "worker-status-change":
            self._loop.call_soon(self._follow_status, topic)  # Dask tells before it acts

    def _follow_status(self, worker: str | None) -> None:
        node = self.roster.by_address.get(worker or "")
        ws = self._scheduler.workers.get(worker)
        if node is None or ws is None:
            return
        if ws in self._scheduler.running and node not in self.roster.leaving:
            self.placement.resume_node(node)
            self._dispatch_soon()
        else:
            self.placement.pause_node(node)

    def restart(self, scheduler: Scheduler) -> None:
        """Forget all tasks, as the scheduler has."""
        for key, record in self._records.items():
            self.placement.withdraw(TaskId(key))
            if record.share is not None:
                self._draining.add(record.share.share_id)
        self.gangs.clear()
        self._records.clear()
        self._held.clear()
        self.relay.clear()

    # -- dispatch ---------------------------------------------------------------------------

    def _dispatch_soon(self) -> None:
        if not self._is_dispatch_due:
            self._is_dispatch_due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        if not self._is_dispatch_due:  # it has been done meanwhile
            return
        self._is_dispatch_due = False
        places: list[Place] = []
        for command in self.placement.dispatch(self._loop.time()):
            if isinstance(command, Resume):
                self._resume(command.share)
            elif isinstance(command, Yield):
                self.relay.dismiss(command.share.share_id)
                message = {"op": "exadask-yield", "key": command.share.task}
                self._tell_node(self.roster.address_of(command.share.node), message)
            else:
                places.append(command)
        self._placing = {
            place.task for place in places if self._pin(place.task, place.share, place.mates)
        }
        recommendations = dict.fromkeys(self._placing, "processing")
        self._scheduler.transitions(recommendations, f"exadask-place-{time.time()}")
        pinned, self._placing = self._placing, set()
        for place in places:
            self._verify(place, was_pinned=place.task in pinned)
        if self.placement.n_waiting:
            self.on_waiting()
        self._set_timer()

    def _pin(
        self, key: str, share: Share, mates: Sequence[Share] = (), *, after: str | None = None
    ) -> bool:
        """Let a task run with a share, or after the bundle that still has it."""
        record, ts = self._records.get(key), self._scheduler.tasks.get(key)
        address = self.roster.address_of(share.node)
        if record is None or ts is None or ts.state != "no-worker" or address is None:
            return False
        record.attempts += 1
        record.share = share if after is None else None
        record.node, record.has_ended = address, False
        attempt = {
            "attempt": record.attempts,
            "kept": record.kept,
            "after": after,
            "mates": self.gangs.begin(key, record, mates),
        }
        ts.worker_restrictions = {address}
        ts.suspicious = 0  # Dask blames the innocent too; we keep our own count
        ts.annotations = {
            **(ts.annotations or {}),
            SHARE: {**share_on_wire(share), **attempt},
        }
        return True

    def _verify(self, place: Place, *, was_pinned: bool) -> None:
        """Take back a share that Dask refused; tell the client about one that it took."""
        record, ts = self._records.get(place.task), self._scheduler.tasks.get(place.task)
        if was_pinned and (record is None or record.share is not place.share):
            return  # it has been through processing already, and its share was given back
        if was_pinned and record is not None and ts is not None and ts.state == "processing":
            self._tell_placed(place.task, record, place.share)
            return
        for share in (place.share, *place.mates):
            self.placement.release(share.share_id)
        self._follow_status(self.roster.address_of(place.share.node))
        if record is not None:
            record.share = None
            self.gangs.forget(place.task, record)
            self._wait_again(place.task)

    def _wait_again(self, key: str) -> None:
        """Queue a task that Dask has not let go."""
        ts = self._scheduler.tasks.get(key)
        if ts is not None and ts.state == "no-worker":
            self._hold(ts)
            self._enqueue(key, self._records[key])

    def begin_ahead(self, key: str, share: Share, *, after: str) -> bool:
        """Send a task to the node of a bundle that is about to end; whether Dask lets it go."""
        self._placing = {key} if self._pin(key, share, after=after) else set()
        stimulus = f"exadask-ahead-{time.time()}"
        self._scheduler.transitions(dict.fromkeys(self._placing, "processing"), stimulus)
        self._placing = set()
        ts = self._scheduler.tasks.get(key)
        is_let_go = ts is not None and ts.state == "processing"
        if not is_let_go:
            self._wait_again(key)
        return is_let_go

    def take_over(self, key: str, share: Share | None) -> None:
        """Note that a task which was sent ahead has its share; None: it never will."""
        record = self._records[key]
        record.share = share
        if share is None:
            self._tell_node(record.node, {"op": "exadask-yield", "key": key})
        else:
            self._tell_placed(key, record, share)

    def _tell_placed(self, key: str, record: TaskRecord, share: Share) -> None:
        gpus = [gpu for gpu, _ in share.gpus]
        seat = {"node": str(share.node), "cores": list(share.cores), "gpus": gpus}
        if record.mates:
            seat["mates"] = [str(one.node) for one in record.mates]
        self._tell(record, {"op": "exadask-placed", "key": key, **seat})
        if record.dropped:
            self._send_drops(record, key, record.dropped)

    def _resume(self, share: Share) -> None:
        message = {"op": "exadask-resume", "share": share_on_wire(share)}
        self._tell_node(self.roster.address_of(share.node), message)

    def _tell_node(self, address: str | None, message: dict[str, Any]) -> None:
        if address in self._scheduler.stream_comms:
            self._scheduler.stream_comms[address].send(message)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_s = self.placement.next_deadline()
        self._timer = None if due_s is None else self._loop.call_at(due_s, self._dispatch_soon)

    # -- questions --------------------------------------------------------------------------

    def why_no_node_for(self, record: TaskRecord) -> str | None:
        """Say why no node comes that could run a task; None if it is not known, or one comes."""
        is_bound = record.allowed is not None
        return self.why_no_node(Demand(request=record.request, pool=record.pool, is_bound=is_bound))

    def hand_over(self, giver: str, taker: str) -> None:
        """Let the news of a client's tasks go to another from now on."""
        for record in self._records.values():
            if record.client == giver:
                record.client = taker

    @property
    def scheduler(self) -> Scheduler:
        """Dask's scheduler."""
        return self._scheduler

    def record_of(self, key: str) -> TaskRecord | None:
        """Give what is known of a task."""
        return self._records.get(key)


def _do_nothing() -> None:
    """Nobody wants to know."""
