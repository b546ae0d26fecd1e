"""Measure what a task costs the scheduler, from 10 to 9,408 nodes that are simulated.

    python tests/bench/simulated.py [--quick]

The scheduler is a real one, in a process of its own, with a client in another over TCP. The workers
are not: in the scheduler's process, something takes the place of the connection to each and
answers for every task at once that it is done. What is measured is the processor time of the
scheduler's process from the first submission until the last task is forgotten, divided by tasks.

The peer is Dask's own scheduler with tasks that ask for nothing. Both are sent the same graphs, in
turns; exadask's plugin places each task on exact books, and tells the client of its start and end.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import pickle
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import dask
from dask._task_spec import Task
from distributed import Client, Scheduler, versions, wait
from distributed.comm.core import CommClosedError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from exadask.resources import NodeShape
from exadask.runtime.dask_parts import SETTINGS, PortlessScheduler, threads_for
from exadask.runtime.scheduler_plugin import HoldThenPlace
from exadask.runtime.task_record import SHARE
from tests.bench import measure

LIMIT = 1.3
PEER = "dask"
AT_NODES = 2_000
CORES, GPUS = 56, 8
_GRAPH = 100
_QUIET: dict[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.worker-ttl": None,
    "distributed.admin.tick.limit": "60s",
}
_INT = pickle.dumps(int)
_METRICS: dict[str, Any] = {
    "cpu": 0,
    "memory": 0,
    "time": 0,
    "task_counts": {},
    "managed_bytes": 0,
    "spilled_bytes": {"memory": 0, "disk": 0},
    "transfer": {},
    "event_loop_interval": 0.02,
    "bandwidth": {"total": 1e8, "workers": {}, "types": {}},
    "digests_total_since_heartbeat": {},
    "host_net_io": {},
}
_SHAPES = [(1, 0), (1, 0), (2, 0), (4, 0), (1, 250), (7, 1000)]
"""Cores and thousandths of GPUs that exadask's tasks ask for, in turns."""


class FakeComm:
    """Stands for the connection to a worker, and for the worker."""

    name = None

    def __init__(self, address: str, *, is_agent: bool) -> None:
        self.peer_address = self.local_address = address
        self._is_agent = is_agent
        self._inbox: asyncio.Queue[list[dict[str, Any]] | None] = asyncio.Queue()
        self._is_closed = False
        if is_agent:
            shape = pickle.dumps(NodeShape.declare(cores=CORES, gpus=GPUS))
            facts = {"pool": None, "allocation": None, "left_s": None}
            self._inbox.put_nowait([{"op": "exadask-node", "shape": shape, **facts}])

    async def read(self) -> list[dict[str, Any]]:
        """Wait for what the worker says."""
        messages = await self._inbox.get()
        if messages is None:
            raise CommClosedError
        return messages

    async def write(self, messages: Any, *_: object, **__: object) -> int:
        """Take what the scheduler says, and answer."""
        if isinstance(messages, list):
            answers = [
                answer
                for message in messages
                if message["op"] == "compute-task"
                for answer in self._answers(message)
            ]
            if answers:
                self._inbox.put_nowait(answers)
        return 1

    def _answers(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._is_agent:
            yield {
                "op": "exadask-report",
                "share": message["annotations"][SHARE]["share"],
                "key": message["key"],
                "report": _INT,
                "kept": None,
                "may_retry": True,
            }
        now = time.time()
        yield {
            "op": "task-finished",
            "status": "OK",
            "key": message["key"],
            "run_id": message["run_id"],
            "nbytes": 28,
            "type": _INT,
            "typename": "int",
            "metadata": {},
            "thread": 1,
            "startstops": [{"action": "compute", "start": now, "stop": now + 0.001}],
            "stimulus_id": "simulated",
        }

    def closed(self) -> bool:
        """Whether it is closed."""
        return self._is_closed

    def abort(self) -> None:
        """Close it."""
        self._is_closed = True
        self._inbox.put_nowait(None)

    async def close(self) -> None:
        """Close it."""
        self.abort()


async def _serve(n_nodes: int, end: Connection, *, is_exadask: bool) -> None:
    scheduler = await PortlessScheduler(host="127.0.0.1", port=0, dashboard=False)
    if is_exadask:
        plugin = HoldThenPlace(10.0)
        scheduler.add_plugin(plugin)
        await plugin.start(scheduler)
    # To compare the versions of all workers whenever one joins takes Dask a minute in all.
    with mock.patch.object(versions, "error_message", return_value={"warning": ""}):
        joining = [
            asyncio.ensure_future(_join(scheduler, index, is_exadask=is_exadask))
            for index in range(n_nodes)
        ]
        while len(scheduler.running) < n_nodes:
            await asyncio.sleep(0.01)
    while is_exadask and len(plugin.placement.nodes) < n_nodes:
        await asyncio.sleep(0.01)
    end.send(scheduler.address)
    await asyncio.to_thread(end.recv)
    await scheduler.close()
    for one in joining:
        one.cancel()


async def _join(scheduler: Scheduler, index: int, *, is_exadask: bool) -> None:
    address = f"tcp://10.{index // 65000}.{index // 250 % 250}.{index % 250 + 1}:40000"
    await scheduler.add_worker(
        FakeComm(address, is_agent=is_exadask),
        address=address,
        status="running",
        server_id=f"worker-{index}",
        nthreads=threads_for(CORES) if is_exadask else CORES,
        name=f"node-{index}",
        resolve_address=False,
        now=time.time(),
        resources={},
        memory_limit=0,
        metrics=_METRICS,
        services={},
        local_directory="/tmp",
        versions=versions.get_versions(),
        nanny="",
        extra={},
        stimulus_id="simulated",
    )


def _host(n_nodes: int, end: Connection, is_exadask: bool) -> None:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with dask.config.set(SETTINGS | _QUIET if is_exadask else _QUIET):
        asyncio.run(_serve(n_nodes, end, is_exadask=is_exadask))


@dataclass(frozen=True, slots=True)
class _PerKey:
    """An annotation whose value differs from key to key, as in exadask's gateway."""

    values: dict[str, Any]

    def __call__(self, key: str) -> Any:
        return self.values[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A client of one scheduler."""

    client: Client
    is_exadask: bool

    def cost(self, tasks: int) -> float:
        """Run so many tasks; returns the scheduler's processor time for each [s]."""
        before_s = self.client.run_on_scheduler(time.process_time)
        futures = []
        for start in range(0, tasks, _GRAPH):
            keys = [f"f-{uuid.uuid4().hex}" for _ in range(start, min(tasks, start + _GRAPH))]
            graph = {key: Task(key, abs, -1) for key in keys}
            with dask.annotate(**self._annotations(keys)):
                futures += self.client.get(graph, keys, sync=False)
        with self.client.as_current():
            wait(futures, timeout=100)
        assert all(future.status == "finished" for future in futures)
        del futures
        while self.client.run_on_scheduler(_n_tasks):
            time.sleep(0.05)
        after_s = self.client.run_on_scheduler(time.process_time)
        return float(after_s - before_s) / tasks

    def _annotations(self, keys: list[str]) -> dict[str, _PerKey]:
        if not self.is_exadask:
            return {}
        wishes = {}
        for index, key in enumerate(keys):
            cores, gpu_units = _SHAPES[index % len(_SHAPES)]
            wishes[key] = {
                "name": "f",
                "order": 0,
                "client": self.client.id,
                "cores": cores,
                "gpu_units": gpu_units,
                "memory_bytes": None,
                "time_s": None,
                "warm_key": None,
                "pool": None,
                "is_bundle": False,
            }
        return {
            "exadask": _PerKey(wishes),
            "priority": _PerKey(dict.fromkeys(keys, 0)),
            "retries": _PerKey(dict.fromkeys(keys, 0)),
        }


def _n_tasks(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


@contextmanager
def session(n_nodes: int, *, is_exadask: bool) -> Iterator[Session]:
    """Start a scheduler with simulated nodes, and connect to it."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    host = context.Process(target=_host, args=(n_nodes, there, is_exadask), daemon=True)
    host.start()
    there.close()  # so that the end of the process is noticed here
    try:
        with Client(here.recv(), set_as_default=False) as client:
            for op in ("exadask-placed", "exadask-report"):
                client._stream_handlers[op] = _ignore
            yield Session(client=client, is_exadask=is_exadask)
    finally:
        with suppress(OSError):
            here.send("end")
        host.join(30)
        host.kill()


def _ignore(**_: object) -> None:
    """Exadask's own client would tell the user's futures."""


def bench(options: measure.Options) -> measure.Report:
    """Compare on all numbers of nodes."""
    sizes = [10, 100] if options.quick else [10, 100, 1_000, 2_000, 5_000, 9_408]
    rounds, tasks = (2, 300) if options.quick else (5, 5_000)
    report = measure.Report(name="simulated", title="scheduler's processor time per task")
    for n_nodes in sizes:
        measure.progress(f"simulated: {n_nodes:,} nodes")
        case = f"{n_nodes:,} nodes [us]"
        with ExitStack() as both:
            ours = both.enter_context(session(n_nodes, is_exadask=True))
            stock = both.enter_context(session(n_nodes, is_exadask=False))
            for warming in (ours, stock):
                warming.cost(tasks)
            pairs = measure.interleaved(
                functools.partial(_cost_us, ours, tasks),
                functools.partial(_cost_us, stock, tasks),
                rounds,
            )
        report.lines.append(
            measure.Line(
                case=case,
                peer=PEER,
                ours=tuple(first for first, _ in pairs),
                theirs=tuple(second for _, second in pairs),
                ratios=tuple(first / second for first, second in pairs),
            )
        )
        if n_nodes == AT_NODES:
            report.require_ratio(case, PEER, LIMIT, "at most")
    return report


def _cost_us(session: Session, tasks: int, turn: int) -> float:
    return 1e6 * session.cost(tasks)


if __name__ == "__main__":
    print(measure.rendered_text(bench(measure.Options(quick="--quick" in sys.argv[1:]))))
