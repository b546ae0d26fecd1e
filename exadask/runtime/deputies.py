"""What sessions of a standing scheduler leave behind, and the processes that go on with it.

Who *holds* a set of calls is their client: the session that submitted them, then a *deputy* (a
process that this scheduler starts and that does nothing else), then the session that takes them
back. Every step is the same handover: the new client asks for the set; the holder sends nothing
more to the cluster; from then on the scheduler's news of its tasks go to the new client; the holder
writes what it knows into a file; the new client reads it and wants the same keys; the holder goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Scheduler, SchedulerPlugin

from exadask.errors import InvalidRequest, RunFolderError
from exadask.runtime.backends import tail_of
from exadask.runtime.background import Background
from exadask.runtime.questions import answered
from exadask.runtime.refusals import guarded
from exadask.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from exadask.runtime.scheduler_plugin import HoldThenPlace

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_END_S = 5.0
_GONE = "the process on the other side has ended"


@dataclass(slots=True)
class _Set:
    """A set of calls that a session leaves, or has left.

    Parameters
    ----------
    holder : str
        The client that has it.
    is_with_deputy : bool
        Whether that is a deputy: then it can be taken.
    taker : str or None
        The client that is taking it.
    since : float
        When it was left [s since the epoch].
    """

    holder: str
    is_with_deputy: bool = False
    taker: str | None = None
    since: float = field(default_factory=time.time)


class Deputies(SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Passes sets of calls from client to client.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Knows who wants which task.
    plugin : HoldThenPlace
        Knows whom to tell of which.
    run : RunFolder
        Where sets are written.
    """

    name = "exadask-deputies"

    def __init__(self, scheduler: Scheduler, plugin: HoldThenPlace, run: RunFolder) -> None:
        self._scheduler, self._plugin, self._run = scheduler, plugin, run
        self._sets: dict[str, _Set] = {}
        self._processes: set[asyncio.subprocess.Process] = set()
        self._background = Background()
        scheduler.handlers |= {
            "exadask_leave": answered(self.leave),
            "exadask_left": answered(self.left),
            "exadask_take": answered(self.take),
            "exadask_taken": answered(self.taken),
            "exadask_want": self.want,
        }
        handlers: dict[str, Callable[..., None]] = {
            "exadask-adopt": self._on_adopt,
            "exadask-written": self._on_written,
        }
        scheduler.stream_handlers |= guarded(handlers)
        scheduler.add_plugin(self)

    async def close(self) -> None:
        """End the deputies; what they held is in its files as it was when they got it."""
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in list(self._processes):
            try:
                await asyncio.wait_for(process.wait(), _END_S)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()

    # -- asked ------------------------------------------------------------------------------

    def left(self) -> list[tuple[str, float]]:
        """Name the sets that can be taken, the last one last, and say since when they are here."""
        found = {path.stem: path.stat().st_mtime for path in self._run.left.glob("*.pickle")}
        held = {name: one.since for name, one in self._sets.items()}
        busy = [name for name, one in self._sets.items() if not one.is_with_deputy or one.taker]
        names = [one for one in (found | held).items() if one[0] not in busy]
        return sorted(names, key=lambda one: one[1])

    async def leave(self, name: str, client: str) -> None:
        """Start a deputy that takes what a session has.

        Raises
        ------
        InvalidRequest
            The name is no name, or is used.
        RunFolderError
            Nothing can be written there.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"name={name!r} is no name for what is left.",
                "Use letters, digits, '.', '_' and '-', at most 100 of them.",
            )
        if name in self._sets or self._run.left_as(name).exists():
            raise InvalidRequest(
                f"something is left as {name!r} already.",
                "Choose another name, or take that back first.",
            )
        with contextlib.ExitStack() as files:
            try:
                self._run.left.mkdir(mode=0o700, exist_ok=True)
                log = files.enter_context(self._log_of(name).open("ab"))
            except OSError as error:
                why = error.strerror or str(error)
                raise RunFolderError(
                    str(self._run.left), why, "Nothing has changed: go on, and try again."
                ) from error
            self._sets[name] = _Set(client)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "exadask.deputy", str(self._run.path), name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.add(process)
        self._background.start(self._see_off(process, name, client))

    async def take(self, name: str, client: str, is_deputy: bool) -> bool:
        """Ask the holder of a set to hand it over; whether there is one.

        Raises
        ------
        InvalidRequest
            There is no such set, or another client is taking it.
        """
        known = self._sets.get(name)
        if known is None and self._run.left_as(name).exists():
            return False  # its deputy has died
        if known is None or known.taker is not None or known.is_with_deputy is is_deputy:
            names = ", ".join(one for one, _ in self.left()) or "nothing"
            state = "is on its way to somebody else" if known else "is not here"
            raise InvalidRequest(f"what was left as {name!r} {state}.", f"Left here: {names}.")
        known.taker = client
        self._tell(known.holder, "exadask-handover", name=name)
        return True

    def taken(self, name: str, client: str, is_deputy: bool) -> None:
        """Note that a set has been taken, and let its holder go."""
        known = self._sets.pop(name, None)
        if known is not None:
            self._tell(known.holder, "exadask-taken", name=name, error=None)
        if is_deputy:
            self._sets[name] = _Set(client, is_with_deputy=True)
        else:
            self._run.left_as(name).unlink(missing_ok=True)
            self._log_of(name).unlink(missing_ok=True)

    async def want(self, client: str, keys: list[str]) -> list[str]:
        """Keep results and tasks for a client; gives the keys of those that are there."""
        found = []
        for key in keys:
            ts, record = self._scheduler.tasks.get(key), self._plugin.record_of(key)
            is_its_own = record is not None and record.client == client
            if ts is not None and (ts.state == "memory" or is_its_own):
                found.append(key)
        self._scheduler.client_desires_keys(keys=found, client=client)
        return found

    # -- told -------------------------------------------------------------------------------

    def _on_adopt(self, name: str, client: str, **_: object) -> None:
        """Let the news of a holder's tasks go to the taker from now on."""
        known = self._sets.get(name)
        if known is not None and known.holder == client and known.taker is not None:
            self._plugin.hand_over(client, known.taker)
            self._tell(client, "exadask-adopted", name=name)

    def _on_written(self, name: str, error: str | None, client: str, **_: object) -> None:
        known = self._sets.get(name)
        if known is None or known.holder != client:
            return
        self._tell(known.taker, "exadask-written", name=name, error=error)
        if error is not None:
            known.taker = None

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Tell the one side of a handover that the other has gone."""
        for name, known in list(self._sets.items()):
            if client == known.holder:
                del self._sets[name]
                error = None if self._run.left_as(name).exists() else _GONE
                self._tell(known.taker, "exadask-written", name=name, error=error)
            elif client == known.taker:
                del self._sets[name]
                self._tell(known.holder, "exadask-taken", name=name, error=_GONE)

    async def _see_off(self, process: asyncio.subprocess.Process, name: str, client: str) -> None:
        """Wait for the end of a deputy; tell the session that waits for it if it came too soon."""
        code = await process.wait()
        self._processes.discard(process)
        known = self._sets.get(name)
        if known is not None and known.holder == client and not known.is_with_deputy:
            del self._sets[name]
            why = f"its process ended with code {code}\n{tail_of(self._log_of(name))}"
            self._tell(client, "exadask-taken", name=name, error=why)

    def _tell(self, client: str | None, op: str, **message: Any) -> None:
        comm = self._scheduler.client_comms.get(client)
        if comm is not None and not comm.closed():
            comm.send({"op": op, **message})

    def _log_of(self, name: str) -> Path:
        return self._run.left / f"{name}.log"
