"""What is written about one run, and what is found again of it and of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import exadask
from exadask.config import Config
from exadask.core.fleet_report import FleetSummary
from exadask.errors import InvalidRequest, RunFolderError
from exadask.journal.fleet import FleetWatch
from exadask.journal.journal import open_under
from exadask.journal.lock import RunLock
from exadask.journal.reading import JOURNAL, Lookup, RunRecord
from exadask.journal.recorder import Recorder
from exadask.journal.remembered import Remembered
from exadask.journal.rows import Row, SessionRow
from exadask.opening import Cluster, find_run
from exadask.runtime.bundling import Bundler
from exadask.runtime.call import Call
from exadask.runtime.run_folder import EarlierRun, RunFolder
from exadask.runtime.stored import StoredResults

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_SAVE_TIMEOUT_S = 60.0


class ResumedRun(NamedTuple):
    """A run that goes on; nobody else may drive it meanwhile.

    Parameters
    ----------
    earlier : EarlierRun
        Its folder, and what it has spent.
    lock : RunLock
        Keeps others away.
    """

    earlier: EarlierRun
    lock: RunLock


def resume_run(given: str | Path, config: Config) -> ResumedRun:
    """Take hold of an earlier run, and remove what its killed processes have left.

    Raises
    ------
    RunFolderError
        There is none, or another process drives it.
    InvalidRequest
        Nothing is to be written, so that nothing could go on.
    """
    if not config.journal:
        raise InvalidRequest(
            "resume= goes on with a run by its journal, and journal=False leaves that out.",
            "Leave one of them out.",
        )
    folder = find_run(given, config)
    lock = RunLock.of(folder.path)
    folder.close()
    return ResumedRun(EarlierRun(folder, _spent(folder.path)), lock)


def _spent(folder: Path) -> float:
    """Read what a run did cost; allocations of a killed driver ended soon after it."""
    with contextlib.suppress(RunFolderError, OSError), RunRecord.opened(folder) as record:
        return record.spent(until=(folder / JOURNAL).stat().st_mtime)
    return 0.0  # it has no journal that could be read, and the user is told elsewhere


class RunJournal:
    """The journal of an open run, and its memory of results.

    Parameters
    ----------
    folder : RunFolder
        Where it is written.
    config : Config
        Whether results are kept, and where those of memoised tasks lie.
    bundler : Bundler
        Whose calls are written down.
    resumed : ResumedRun, optional
        The run that goes on: its results are given to the calls that ask for the same.
    summary : callable, optional
        Says how the allocations are. None: there are none, or another process writes of them.

    Raises
    ------
    RunFolderError
        Another process writes there.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        bundler: Bundler,
        *,
        resumed: ResumedRun | None = None,
        summary: Callable[[], FleetSummary] | None = None,
    ) -> None:
        self.folder, self._bundler = folder, bundler
        self._fleet = FleetWatch(summary, bundler.gateway.loop) if summary is not None else None
        self._lock = RunLock.of(folder.path) if resumed is None else resumed.lock
        path = folder.path / JOURNAL
        self._journal = open_under(self._lock, path)
        numbers = self._journal.numbers
        keeps = config.keep_results or resumed is not None
        self._lookup = Lookup(path, is_shared=self._journal.is_shared) if resumed else None
        self.remembered = Remembered(
            memo=StoredResults(config.memo_path),
            own=StoredResults(folder.path / "results") if keeps else None,
            lookup=self._lookup,
            save_there=self._save_there,
        )
        self._session = SessionRow(
            *(numbers.session, time.time(), None, socket.gethostname(), os.getpid()),
            *(json.dumps(sys.argv), exadask.__version__),
        )
        self._recorder = Recorder(
            numbers.session,
            next_task=numbers.task,
            next_function=numbers.function,
            save=self.remembered.save,
        )
        self._n_saving = 0
        self._finished: list[str] = []
        self._saved = threading.Condition()
        self._journal.put(self._session)
        self._journal.on_drain = self._rows
        bundler.record = self._recorder

    @property
    def checkpoints(self) -> Path:
        """Where tasks keep their checkpoints."""
        return self.folder.path / "checkpoints"

    def find(self, call: Call) -> bool:
        """Give a call its result, if that is there."""
        if not self.remembered.find(call):
            return False
        self._recorder.reused(call)
        return True

    def settle(self) -> None:
        """Write what has happened, and wait for large results that nodes write."""
        self._journal.flush(timeout_s=_SAVE_TIMEOUT_S)
        with self._saved:
            self._saved.wait_for(lambda: self._n_saving == 0, timeout=_SAVE_TIMEOUT_S)
        if self._fleet is not None:
            self._fleet.stop()

    def close(self) -> None:
        """End the journal; nothing is written afterwards."""
        self._bundler.record = None
        for row in self._fleet.last_rows() if self._fleet is not None else ():
            self._journal.put(row)
        self._journal.put(self._session._replace(ended=time.time()))
        self._journal.close()
        if self._lookup is not None:
            self._lookup.close()
        self._lock.release()

    def _rows(self) -> Iterator[Row]:
        for path in self._finished:  # their results were written the last time
            shutil.rmtree(path, ignore_errors=True)
        yield from self._recorder.rows()
        self._finished = self._recorder.finished_checkpoints()
        yield from self.remembered.late_rows()
        if self._fleet is not None:
            yield from self._fleet.rows()

    def _save_there(
        self, call: Call, folder: Path, name: str, told: Callable[[BaseException | None], None]
    ) -> None:
        """Let the node that has a result write it; returns at once."""
        remote, gateway = call.remote, self._bundler.gateway
        if remote is None:
            told(None)
            return

        async def save() -> None:
            try:
                facts = {"name": call.kind.name, "made": time.time()}
                await gateway.call(
                    "exadask_save", key=remote.key, folder=str(folder), name=name, facts=facts
                )
            except Exception as error:  # whatever Dask raises: the result is only not kept
                told(error)
            else:
                told(None)
            finally:
                with self._saved:
                    self._n_saving -= 1
                    self._saved.notify_all()

        with self._saved:
            self._n_saving += 1
        asyncio.run_coroutine_threadsafe(save(), gateway.loop)


def checkpoint_of(call: Call, journal: RunJournal | None) -> str:
    """Name the folder of a call's checkpoints: the same one in a resumed run.

    Raises
    ------
    InvalidRequest
        There is no run to keep it.
    """
    if journal is None:
        raise InvalidRequest(
            f"task {call.kind.name!r} wants checkpoints, and there is no folder of a run for them.",
            "Submit it from your program, not from a task, and leave journal=False out.",
        )
    name = call.key if call.digest is None else call.digest.hex()
    return str(journal.checkpoints / name)


def open_journal(
    folder: RunFolder | None, config: Config, cluster: Cluster, resumed: ResumedRun | None
) -> RunJournal | None:
    """Begin to write about a run; without a folder of its own it gets one.

    Returns
    -------
    RunJournal or None
        None where nothing is to be written, or cannot be: then the user is told, and tasks go on.

    Raises
    ------
    RunFolderError
        Another process writes there; or it cannot be written, and results were to be kept.
    """
    if not config.journal:
        return None
    try:
        run = folder or RunFolder.create(Path(config.run_folder))
        return RunJournal(run, config, cluster.bundler, resumed=resumed, summary=cluster.summary)
    except RunFolderError as error:
        if config.keep_results or folder is not None:
            raise
        logger.warning("nothing is written about this run: %s", error)
        return None
