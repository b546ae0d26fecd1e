"""What the conformance suite must know about a batch system, and the hands with which it works."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from exadask.batch.model import AllocationRequest, JobId
from exadask.errors import QueryFailed
from exadask.job_status import JobState, JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape
from exadask.runtime.backends import Backend, backend_of
from exadask.testing.waiting import eventually

_STALE_S = 3.0  # an agent on another machine that has shown no sign of life so long has ended
_AGENT = Path(__file__).with_name("standin_agent.sh")
_NODE_VARIABLES = ("SLURMD_NODENAME", "PBS_NODENUM", "FLUX_URI", "FAKE_BATCH_NODE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a batch system can do, and how it must be asked.

    Parameters
    ----------
    nodes : int
        Nodes of an allocation of several nodes; 1 where there is no such thing.
    most_jobs : int
        How many jobs are tried until one must wait; 0 where none ever waits.
    has_queues : bool
        Whether it knows queues by name.
    walltime_s : float, optional
        The shortest walltime that it keeps [s]. None: that is not tested.
    overtime_s : float
        How much later it may end a job [s].
    patience_s : float
        How long anything else may take [s].
    settled_s : float
        How long a job may take to begin on an idle node [s].
    poll_s : float
        How often it is asked [s].
    unknown_id : str
        An id that looks like one of its own, and is nobody's.
    impossible : mapping
        Facts of a pool that no machine can fulfil; empty where there is no such thing.
    held : tuple of str
        Directives with which a job must be released by somebody; empty where there are none.
    """

    nodes: int = 2
    most_jobs: int = 16
    has_queues: bool = True
    walltime_s: float | None = 60.0
    overtime_s: float = 120.0
    patience_s: float = 60.0
    settled_s: float = 10.0
    poll_s: float = 0.25
    unknown_id: str = "999999"
    impossible: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"nodes": 1000}))
    held: tuple[str, ...] = ()


_ONE_NODE = Capabilities(nodes=1, impossible=MappingProxyType({}))
_NO_QUEUE = replace(_ONE_NODE, most_jobs=0, has_queues=False, walltime_s=2.0, overtime_s=15.0)

CAPABILITIES: Mapping[str, Capabilities] = MappingProxyType(
    {
        "slurm": Capabilities(held=("--hold",)),
        "pbs": Capabilities(walltime_s=5.0, held=("-h",)),
        "lsf": Capabilities(held=("-H",)),
        "sge": replace(
            _ONE_NODE,
            walltime_s=5.0,
            held=("-h",),
            impossible=MappingProxyType({"cores": 100_000}),
        ),
        "oar": Capabilities(),
        "htcondor": replace(_ONE_NODE, unknown_id="999999.0"),
        "flux": Capabilities(walltime_s=5.0, held=("--urgency=0",), unknown_id="f123"),
        "psij": replace(_NO_QUEUE, unknown_id="4194305"),
        "local": replace(_NO_QUEUE, unknown_id="4194305"),
    }
)
"""What the batch systems can do, by `Pool.batch`; larger than the largest process id: 2**22 + 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """An agent's stand-in, as it described itself when it began.

    Parameters
    ----------
    rank : int
        The rank that it was given.
    began_s : float
        The time of the allocation's beginning that it was given [s since the epoch].
    node : str
        Where it ran, as well as it can tell.
    host : str
        The host's name.
    pid : int
        Its process.
    folder : Path
        Where it shows signs of life.
    facts : mapping
        All that it wrote, with its environment's variables that begin with ``CONFORMANCE_``.
    """

    rank: int
    began_s: float
    node: str
    host: str
    pid: int
    folder: Path
    facts: Mapping[str, str]

    def is_gone(self) -> bool:
        """Whether no process of it is left."""
        if self.host == socket.gethostname():
            return not _processes_with(f"STANDIN_AGENT={self.folder / str(self.rank)}")
        sign = self.folder / f"{self.rank}.alive"
        return time.time() - sign.stat().st_mtime > _STALE_S


class Harness:
    """Submits, watches and ends jobs of one batch system for the conformance suite.

    Parameters
    ----------
    pool : Pool
        What is asked for.
    folder : Path
        A folder that this machine and the nodes see.
    capabilities : Capabilities, optional
        What the batch system can do. None: what is known of it.
    kill_node : callable, optional
        Makes the batch system lose the node where a stand-in runs, for as long as the context that
        it returns lasts.
    backend : Backend, optional
        What is tested. None: what the pool's jobs are run by.
    early : mapping, optional
        Where the job that is to reach its walltime can run beside all others, as facts of a pool.
        It is then submitted at once, and its end is waited for last.
    """

    def __init__(
        self,
        pool: Pool,
        folder: Path,
        *,
        capabilities: Capabilities | None = None,
        kill_node: Callable[[StandIn], AbstractContextManager[None]] | None = None,
        backend: Backend | None = None,
        early: Mapping[str, Any] | None = None,
    ) -> None:
        self.pool = pool
        self.folder = folder
        self.can = CAPABILITIES[pool.batch] if capabilities is None else capabilities
        self.kill_node = kill_node
        self.backend: Backend = backend or backend_of(pool)
        self._jobs: dict[JobId, AllocationRequest] = {}
        self._numbers = itertools.count()
        self._early: JobId | None = None
        if early is not None:
            assert self.can.walltime_s is not None
            self._early = self.submit(self.request(walltime_s=self.can.walltime_s, **early))

    def request(
        self,
        *,
        nodes: int = 1,
        walltime_s: float = 600.0,
        lasts_s: float = 600.0,
        exit_code: int = 0,
        **facts: Any,
    ) -> AllocationRequest:
        """Describe an allocation whose stand-ins last so long and end with that exit code."""
        pool = self.pool.updated(walltime=walltime_s, **{"nodes": nodes, **facts})
        name = f"conformance-{next(self._numbers)}"
        folder = self.folder / name
        agents = folder / "agents"
        agents.mkdir(parents=True)
        agent = ("/bin/bash", str(_AGENT), str(agents), f"{lasts_s:.0f}", str(exit_code))
        return AllocationRequest(
            pool=pool,
            name=name,
            nodes=pool.max_nodes,
            walltime_s=walltime_s,
            folder=folder,
            agent_argv=agent,
        )

    def submit(self, request: AllocationRequest) -> JobId:
        """Submit it; `clean_up` ends it if nobody else does."""
        job = asyncio.run(self.backend.submit(request))
        self._jobs[job] = request
        return job

    def start(self, request: AllocationRequest) -> JobId:
        """Submit it, and wait until its stand-ins run."""
        job = self.submit(request)
        self.until(job, lambda one: one.state is JobState.RUNNING)
        self.agents(job)
        return job

    def with_walltime(self, walltime_s: float) -> JobId:
        """Give a job that has begun, and will reach its walltime."""
        job, self._early = self._early, None
        return self.start(self.request(walltime_s=walltime_s)) if job is None else job

    def must_wait(self, job: JobId) -> bool:
        """Wait until a new job has begun, or it is clear that it does not for now."""
        with contextlib.suppress(TimeoutError):
            eventually(
                lambda: self.status(job).state is not JobState.PENDING,
                timeout_s=self.can.settled_s,
                poll_s=self.can.poll_s,
            )
        return self.status(job).state is JobState.PENDING

    def status(self, job: JobId) -> JobStatus:
        """Ask for one job."""
        return self.statuses([job])[job]

    def statuses(self, jobs: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Ask for several jobs in one query."""
        return asyncio.run(self.backend.status(jobs))

    def until(
        self, job: JobId, is_so: Callable[[JobStatus], bool], timeout_s: float | None = None
    ) -> JobStatus:
        """Ask until the answer is as wanted, or the job has ended otherwise."""
        seen: list[JobStatus] = []

        def look() -> bool:
            try:
                seen.append(self.status(job))
            except QueryFailed:  # says nothing about the job
                return False
            return is_so(seen[-1]) or seen[-1].state is JobState.ENDED

        try:
            eventually(look, timeout_s=timeout_s or self.can.patience_s, poll_s=self.can.poll_s)
        except TimeoutError as error:
            raise AssertionError(f"{self._described(job)}: last seen {seen[-1:]}") from error
        assert is_so(seen[-1]), f"{self._described(job)}: {seen[-1]}"
        return seen[-1]

    def end(self, job: JobId, timeout_s: float | None = None) -> JobStatus:
        """Wait until it has ended."""
        return self.until(job, lambda one: one.state is JobState.ENDED, timeout_s)

    def cancel(self, *jobs: JobId) -> None:
        """Cancel jobs."""
        asyncio.run(self.backend.cancel(jobs))

    def node_shape(self) -> NodeShape | None:
        """Ask what a node of the pool has."""
        return asyncio.run(self.backend.node_shape(self.pool))

    def agents(self, job: JobId) -> list[StandIn]:
        """Wait until all stand-ins of a job have begun; return them by rank."""
        request = self._jobs[job]
        try:
            eventually(
                lambda: len(self.begun(request)) >= request.nodes, timeout_s=self.can.patience_s
            )
        except TimeoutError as error:
            message = f"{self._described(job)}: began on {self.begun(request)}"
            raise AssertionError(message) from error
        return self.begun(request)

    def begun(self, request: AllocationRequest) -> list[StandIn]:
        """List the stand-ins that have begun, by rank."""
        found = [_stand_in(path) for path in (request.folder / "agents").glob("*.begun")]
        return sorted(found, key=lambda one: one.rank)

    def said(self, job: JobId, text: str) -> None:
        """Wait until the log of a job says something; some systems deliver it late."""
        request = self._jobs[job]
        try:
            eventually(lambda: text in _read(request.log), timeout_s=self.can.patience_s)
        except TimeoutError as error:
            raise AssertionError(f"{self._described(job)} does not say {text!r}") from error

    def clean_up(self) -> None:
        """End all jobs that were submitted, and wait until their processes are gone."""
        jobs = [job for job in self._jobs if job != self._early]
        if jobs:
            self.cancel(*jobs)
        ended = {job: self._jobs.pop(job) for job in jobs}
        agents = [agent for request in ended.values() for agent in self.begun(request)]
        eventually(lambda: all(one.is_gone() for one in agents), timeout_s=self.can.patience_s)

    def close(self) -> None:
        """End everything."""
        self._early = None
        self.clean_up()

    def _described(self, job: JobId) -> str:
        request = self._jobs[job]
        script = _read(request.job_script)
        return f"job {job} of:\n{script}\nwith the log:\n{_read(request.log)}\n"


def _stand_in(path: Path) -> StandIn:
    facts = dict(line.partition("=")[::2] for line in path.read_text().splitlines())
    variables = [facts.get(name, "") for name in _NODE_VARIABLES]
    return StandIn(
        rank=int(facts["rank"]),
        began_s=float(facts["began"]),
        node="/".join([facts["host"], *variables]),
        host=facts["host"],
        pid=int(facts["pid"]),
        folder=path.parent,
        facts=MappingProxyType(facts),
    )


def _processes_with(mark: str) -> list[int]:
    """Find the processes that have this in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark.encode() in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):  # it has ended, or belongs to somebody else
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
