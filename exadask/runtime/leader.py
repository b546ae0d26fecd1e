"""The first node of a gang: how processes of one task are started on the others from here.

`mpiexec` starts on the first node, and takes `reach.sh` for its remote shell; that asks the agent
of this node, its *leader*, which passes it on to the agent of the other node
(`exadask.runtime.parts`), over the connections that Dask has anyway. So no ``ssh`` and no batch
system is involved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm import get_address_host

from exadask.errors import ExadaskError
from exadask.inside import Gang
from exadask.resources import NodeShape
from exadask.runtime.admission import Grant
from exadask.runtime.background import Background
from exadask.runtime.parts import End, Order, environment_of, write_environment
from exadask.runtime.slot import Slot

logger = logging.getLogger(__name__)

_ASKED = "asked"
_REACH = b"reach.sh"
_LOOPBACK = "127.0.0.1"
_RETRY_S = 0.01


class Leader:
    """Passes on what `mpiexec` wants to start on the other nodes of one gang.

    Parameters
    ----------
    worker : distributed.Worker
        The way to the other nodes.
    name : str
        The task.
    share : int
        Its share of this node.
    mates : sequence of dict
        The shares on the other nodes, and their addresses.
    limit_of : callable
        Says how much memory it may use with a share [bytes].
    condemn : callable
        Ends the task, because it has gone beyond its limits on another node.
    tell_lost : callable
        Tells the scheduler that the node with this address is lost.

    Attributes
    ----------
    lost : str or None
        The address of a node that is lost.
    """

    def __init__(
        self,
        worker: Worker,
        name: str,
        share: int,
        mates: Sequence[Mapping[str, Any]],
        *,
        limit_of: Callable[[Mapping[str, Any]], int | None],
        condemn: Callable[[ExadaskError], None],
        tell_lost: Callable[[str], None],
    ) -> None:
        self.lost: str | None = None
        self.share = share
        self._worker, self._name, self._mates = worker, name, mates
        self._limit_of, self._condemn, self._tell_lost = limit_of, condemn, tell_lost
        self._launches = Background()
        self._asking: set[int] = set()
        hosts = [_host_of(one) for one in (worker.address, *(mate["address"] for mate in mates))]
        self._has_neighbours = len(set(hosts)) < len(hosts)
        self._loop = asyncio.get_running_loop()

    @contextlib.contextmanager
    def leading(self, folder: Path, grant: Grant, shape: NodeShape, slot: Slot) -> Iterator[Gang]:
        """Take orders from processes of this node.

        Parameters
        ----------
        folder : Path
            A new folder, for this gang alone.
        grant : Grant
            What it holds here.
        shape : NodeShape
            What this node has.
        slot : Slot
            Where it runs.
        """
        segments = folder if self._has_neighbours else None
        visible = dict(slot.kind.gpu_env)
        with contextlib.ExitStack() as undo:
            folder.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            different = environment_of(grant, shape, visible, slot.mark, segments)
            write_environment(folder, different)
            os.mkfifo(folder / _ASKED)
            self._folder, self._fd = folder, os.open(folder / _ASKED, os.O_RDWR | os.O_NONBLOCK)
            undo.callback(os.close, self._fd)
            self._loop.add_reader(self._fd, self._on_asked)
            undo.callback(self._loop.remove_reader, self._fd)
            undo.callback(self._end_asking)
            counts = (len(grant.cores), *(len(mate["cores"]) for mate in self._mates))
            yield Gang(str(folder), _host_of(self._worker.address), counts)

    def _end_asking(self) -> None:
        """End those that still wait for an answer: whoever asked them to wait may be gone."""
        self._launches.cancel()
        for pid in self._asking:
            with contextlib.suppress(OSError):
                if _REACH in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    async def settle(self, at_most_s: float) -> None:
        """Wait until all that was started elsewhere has ended, or so long [s]."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._launches.finish(), at_most_s)

    def _on_asked(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._fd, 65536).decode().splitlines():
                pid, _, place = line.partition(" ")
                self._asking.add(int(pid))
                self._launches.start(self._launch(int(pid), place))

    async def _launch(self, pid: int, place: str) -> None:
        """Start what a process wants to start elsewhere, and tell it how that ended."""
        mates = {f"exadask-{number}": mate for number, mate in enumerate(self._mates, 1)}
        if place not in mates:
            known = ", ".join(["exadask-0", *mates])
            text = f"{place} is no place of task {self._name}, whose places are {known}\n"
            await self._tell(pid, End(code=1, text=text.encode()))
            return
        mate = mates[place]
        try:
            order = self._order(pid, place, mate)
        except (OSError, ValueError):  # it has been killed meanwhile
            return
        share = {name: mate[name] for name in ("share", "cores", "gpus")}
        try:
            answer = await self._worker.rpc(mate["address"]).exadask_part(
                share=share, order=pickle.dumps(order)
            )
        except OSError as error:  # its agent cannot be reached, or has gone: it answers otherwise
            logger.info("the node at %s is lost to task %s: %s", mate["address"], self._name, error)
            self.lost = str(mate["address"])
            self._tell_lost(self.lost)
            return
        end: End = pickle.loads(answer)
        if end.verdict is not None:
            self._condemn(end.verdict)
        for name, content in end.problems.items():
            (self._folder / name).write_bytes(content)
        (self._folder / f"over.{pid}").touch()
        await self._tell(pid, end)

    def _order(self, pid: int, place: str, mate: Mapping[str, Any]) -> Order:
        process = Path(f"/proc/{pid}")
        words = (process / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        pairs = (process / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
        return Order(
            name=self._name,
            command=" ".join(words[words.index(place) + 1 : -1]),
            environment=dict(pair.partition("=")[::2] for pair in pairs if "=" in pair),
            directory=str((process / "cwd").readlink()),
            limit_bytes=self._limit_of(mate),
            has_neighbours=self._has_neighbours,
            leader=self._worker.address,
            leader_share=self.share,
        )

    async def _tell(self, pid: int, end: End) -> None:
        """Answer a process that waits; it may not yet have begun to, or be gone."""
        while Path(f"/proc/{pid}").exists():
            try:
                fd = os.open(self._folder / f"end.{pid}", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
                pipe.write(b"%d\n%b" % (end.code, end.text))
            self._asking.discard(pid)
            return


def _host_of(address: str) -> str:
    return _LOOPBACK if address.startswith("inproc:") else str(get_address_host(address))
