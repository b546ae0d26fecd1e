"""The parts of gangs on the nodes that do not lead them: what starts there, and its certain end.

Whatever is started is within what the gang holds on the node: bound to its cores and GPUs, watched
for memory, marked. The agent ends all of it as soon as the scheduler says that the gang is over.
`exadask.runtime.leader` is the other side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Worker

from exadask.errors import ExadaskError, MemoryExceeded
from exadask.resources import NodeShape
from exadask.runtime import binding
from exadask.runtime.admission import Admission, Grant
from exadask.runtime.background import Background
from exadask.runtime.limits import MARK, end_family
from exadask.runtime.memory_watch import MemoryWatch
from exadask.runtime.ranks import PROBLEMS

logger = logging.getLogger(__name__)

_ENVIRONMENT, _OUTPUT = "environment", "output"
_OF_SEGMENTS = (
    "OMPI_MCA_btl_vader_backing_directory",
    "OMPI_MCA_btl_sm_backing_directory",
)
_OF_THE_NODE = ("TMPDIR", "HOSTNAME", "SLURMD_NODENAME", "SLURM_NODEID")
_TAIL_BYTES = 4000
_PATIENCE_S = 1.0
_N_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A process to be started on another node.

    Parameters
    ----------
    name : str
        The task.
    command : str
        For the shell.
    environment : mapping
        What it had on the first node.
    directory : str
        Where it was there.
    limit_bytes : int, optional
        Memory that the task may use on the other node [bytes].
    has_neighbours : bool
        Whether nodes of the task are on the same machine, for a rehearsal.
    leader : str
        The address of the agent that leads the task.
    leader_share : int
        The task's share there.
    """

    name: str
    command: str
    environment: Mapping[str, str]
    directory: str
    limit_bytes: int | None
    has_neighbours: bool
    leader: str
    leader_share: int


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How it ended there.

    Parameters
    ----------
    code : int
        Its exit code.
    text : bytes
        The end of what it has written.
    problems : dict of str to bytes
        What ranks say went wrong, by the names of their files.
    verdict : ExadaskError, optional
        Why the agent ended it.
    """

    code: int
    text: bytes = b""
    problems: Mapping[str, bytes] = field(default_factory=dict)
    verdict: ExadaskError | None = None


def environment_of(
    grant: Grant, shape: NodeShape, visible: Mapping[str, str], mark: str, segments: Path | None
) -> dict[str, str | None]:
    """Say what is different in the environment of a gang from node to node.

    Parameters
    ----------
    grant : Grant
        What it holds on this node.
    shape : NodeShape
        What the node has.
    visible : mapping
        What makes its GPUs visible.
    mark : str
        What its processes are known by.
    segments : Path, optional
        Where Open MPI shall keep its shared memory. Its names for that are the same on all nodes,
        so that nodes on one machine need a folder each. None: where it is fastest.
    """
    cores = near_gpus(grant, shape) if shape.is_real else ()
    kept = {} if segments is None else dict.fromkeys(_OF_SEGMENTS, str(segments))
    return {
        **{name: os.environ.get(name) for name in _OF_THE_NODE},
        **kept,
        MARK: mark,
        "EXADASK_PART_CORES": ",".join(map(str, cores)),
        binding.GPU_VARIABLE: None,
        **visible,
    }


def near_gpus(grant: Grant, shape: NodeShape) -> tuple[int, ...]:
    """Return the cores of a share in the order of the GPUs that they are near."""
    near = dict(zip(shape.gpu_ids, shape.gpu_cores, strict=False))
    ordered = [core for gpu in grant.gpus for core in near.get(gpu, ()) if core in grant.cores]
    return tuple(dict.fromkeys((*ordered, *sorted(grant.cores))))


def write_environment(folder: Path, environment: Mapping[str, str | None]) -> None:
    """Write environment variables so that a shell can read them; None: it is not set."""
    lines = (
        f"unset {name}\n" if value is None else f"export {name}={shlex.quote(value)}\n"
        for name, value in environment.items()
    )
    (folder / _ENVIRONMENT).write_text("".join(lines))


class _Part:
    """What a gang has on this node.

    Parameters
    ----------
    grant : Grant
        Its share.
    folder : Path
        Its folder, for it alone.
    mark : str
        What its processes are known by.
    order : Order
        The first process that is to start here.
    worker : distributed.Worker
        The way to its leader.
    """

    def __init__(self, grant: Grant, folder: Path, mark: str, order: Order, worker: Worker) -> None:
        self.grant, self.folder, self.mark = grant, folder, mark
        self.limit_bytes = order.limit_bytes
        self.pids: set[int] = set()
        self.has_entered: asyncio.Future[None] | None = None
        self.verdict: ExadaskError | None = None
        self._order, self._worker = order, worker
        self._ending = Background()

    def exceeded(self, peak_bytes: int, limit_bytes: int) -> None:
        """End it: it used more than it may."""
        if self.verdict is None:
            node = str(self._worker.name)
            self.verdict = MemoryExceeded(self._order.name, limit_bytes, peak_bytes, node)
            self._ending.start(self._condemn(self.verdict))

    def kill_all(self) -> None:
        """End all that was started here."""
        for pid in (None, *self.pids):
            self.kill(pid)

    def kill(self, pid: int | None) -> None:
        """End a process, and all that bear the mark."""
        self._ending.start(asyncio.to_thread(end_family, pid, self.mark, grace_s=0))

    async def end(self) -> None:
        """End all of it; returns when nothing is left."""
        self.kill_all()
        await self._ending.finish()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _condemn(self, verdict: ExadaskError) -> None:
        """Let the leader know why, before it sees its processes end; then end them."""
        order = self._order
        try:
            await asyncio.wait_for(
                self._worker.rpc(order.leader).exadask_condemn(
                    share=order.leader_share, verdict=pickle.dumps(verdict)
                ),
                _PATIENCE_S,
            )
        except (OSError, asyncio.TimeoutError):  # it hears of it with the end of the process
            logger.info("the leader of task %s at %s cannot be reached", order.name, order.leader)
        self.kill_all()


class Parts:
    """The parts of gangs that lie on this node, and are led from others.

    Parameters
    ----------
    worker : distributed.Worker
        The worker of this node.
    shape : NodeShape
        What the node has.
    admission : Admission
        Who else is here.
    watch : MemoryWatch
        Watches their memory.
    mark : str
        Begins what their processes are known by.
    scratch : str
        A folder of this node.
    tell_ended : callable
        Tells the scheduler that nothing is left of a share.
    told : mapping of str to str, optional
        Environment variables that tell tasks about this node.
    """

    def __init__(
        self,
        worker: Worker,
        shape: NodeShape,
        admission: Admission,
        watch: MemoryWatch,
        *,
        mark: str,
        scratch: str,
        tell_ended: Callable[[int], None],
        told: Mapping[str, str] | None = None,
    ) -> None:
        self._worker, self._shape, self._admission, self._watch = worker, shape, admission, watch
        self._mark, self._scratch, self._tell_ended = mark, scratch, tell_ended
        self._told = told or {}
        self._parts: dict[int, _Part] = {}
        self._over: deque[int] = deque(maxlen=_N_REMEMBERED)
        self._ending = Background()

    async def launch(self, share: dict[str, Any], order: bytes) -> bytes:
        """Start a process in a share of this node; returns how it ended."""
        try:
            end = await self._launch(share, pickle.loads(order))
        except Exception as error:  # whoever waits must hear of it, and not take it for another
            logger.debug("a process of a gang could not be started", exc_info=True)
            text = f"node {self._worker.name} cannot start it: {type(error).__name__}: {error}\n"
            end = End(code=1, text=text.encode())
        return pickle.dumps(end)

    def on_end(self, share: int) -> None:
        """End what is left of a gang here, and say when that is done."""
        self._over.append(share)
        part = self._parts.pop(share, None)
        if part is None:
            self._tell_ended(share)
        else:
            self._ending.start(self._end(share, part))

    async def close(self) -> None:
        """End all parts."""
        for share in list(self._parts):
            self.on_end(share)
        await self._ending.finish()

    async def _end(self, share: int, part: _Part) -> None:
        if part.has_entered is not None:
            part.has_entered.cancel()
        await part.end()
        self._watch.discard(part)
        self._watch.forget_ranks(part.mark)
        self._admission.leave(share)
        self._tell_ended(share)

    async def _launch(self, share: Mapping[str, Any], order: Order) -> End:
        number = int(share["share"])
        if number in self._over:
            return End(code=1, text=b"the task is over\n")
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = self._open(share, order)
        assert part.has_entered is not None, "it was opened"
        try:
            await asyncio.shield(part.has_entered)
        except asyncio.CancelledError:
            return End(code=1, text=b"the task is over\n")
        if self._parts.get(number) is not part:
            return End(code=1, text=b"the task is over\n")
        return await self._run(part, order)

    def _open(self, share: Mapping[str, Any], order: Order) -> _Part:
        number = int(share["share"])
        grant = Grant(number, tuple(share["cores"]), dict(share["gpus"]))
        folder = Path(self._scratch) / f"part-{self._worker.name}-{number}"
        folder.mkdir(mode=0o700)
        part = _Part(grant, folder, f"{self._mark}.part-{number}", order, self._worker)
        visible = binding.gpu_environment(
            tuple(grant.gpus), self._shape.gpu_vendor, bool(self._shape.gpu_ids)
        )
        segments = folder if order.has_neighbours else None
        told = {**self._told, **visible}
        different = environment_of(grant, self._shape, told, part.mark, segments)
        write_environment(folder, different)
        part.has_entered = asyncio.ensure_future(self._admission.enter(grant))
        self._watch.add(part)
        return part

    async def _run(self, part: _Part, order: Order) -> End:
        environment = {**order.environment, MARK: part.mark, "EXADASK_PART": str(part.folder)}
        words = [
            "/bin/sh",
            "-c",
            f". {shlex.quote(str(part.folder / _ENVIRONMENT))}\n{order.command}",
        ]
        if self._shape.is_real:
            words = ["taskset", "-c", ",".join(map(str, part.grant.cores)), *words]
        with (part.folder / _OUTPUT).open("ab+") as output:
            started = await asyncio.create_subprocess_exec(
                *words,
                env=environment,
                cwd=order.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            if self._parts.get(part.grant.share) is not part:  # it was over while this began
                part.kill(started.pid)
            part.pids.add(started.pid)
            try:
                code = await started.wait()
            finally:
                part.pids.discard(started.pid)
            if self._parts.get(part.grant.share) is not part:
                return End(code=code or 1)
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail: bytes = output.read() if code else b""
        problems = {path.name: path.read_bytes() for path in part.folder.glob(PROBLEMS)}
        return End(code=abs(code), text=tail, problems=problems, verdict=part.verdict)
