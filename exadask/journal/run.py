"""What is written about one run, and what is found again of it and of others."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import exadask
from exadask.config import Config
from exadask.errors import RunFolderError
from exadask.journal.journal import Journal
from exadask.journal.lock import RunLock
from exadask.journal.reading import JOURNAL, Lookup
from exadask.journal.recorder import Recorder
from exadask.journal.remembered import Remembered
from exadask.journal.rows import Row, SessionRow
from exadask.runtime.bundling import Bundler
from exadask.runtime.call import Call
from exadask.runtime.job import Kind
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.stored import StoredResults

if TYPE_CHECKING:
    from collections.abc import Callable

    from exadask.tasks import Task

logger = logging.getLogger(__name__)

LOCK = "journal.lock"
_SAVE_TIMEOUT_S = 60.0


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
    is_resumed : bool
        Whether results that are there already are given to the calls that ask for the same.

    Raises
    ------
    RunFolderError
        Another process writes there.
    """

    def __init__(
        self, folder: RunFolder, config: Config, bundler: Bundler, *, is_resumed: bool = False
    ) -> None:
        self.folder, self._bundler = folder, bundler
        self._lock = RunLock(folder.path / LOCK)
        self._lock.acquire()
        path = folder.path / JOURNAL
        try:
            self._journal = Journal(path)
        except BaseException:
            self._lock.release()
            raise
        numbers = self._journal.numbers
        keeps = config.keep_results or is_resumed
        self._lookup = Lookup(path, is_shared=self._journal.is_shared) if is_resumed else None
        self.remembered = Remembered(
            memo=StoredResults(Path(config.memo_folder or folder.path.parent / "memo")),
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
        self._saved = threading.Condition()
        self._journal.put(self._session)
        self._journal.on_drain = self._rows
        bundler.record = self._recorder

    @property
    def checkpoints(self) -> Path:
        """Where tasks keep their checkpoints."""
        return self.folder.path / "checkpoints"

    def wants(self, kind: Kind) -> bool:
        """Whether results of these calls are kept."""
        return self.remembered.wants(kind)

    def identify(
        self, call: Call, task: Task[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Name what a call computes; see `Remembered.identify`."""
        self.remembered.identify(call, task, args, kwargs)

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

    def close(self) -> None:
        """End the journal; nothing is written afterwards."""
        self._bundler.record = None
        self._journal.put(self._session._replace(ended=time.time()))
        self._journal.close()
        if self._lookup is not None:
            self._lookup.close()
        self._lock.release()

    def _rows(self) -> Iterator[Row]:
        yield from self._recorder.rows()
        yield from self.remembered.late_rows()

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


def open_journal(
    folder: RunFolder | None,
    config: Config,
    bundler: Bundler,
    *,
    is_resumed: bool,
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
        return RunJournal(run, config, bundler, is_resumed=is_resumed)
    except RunFolderError as error:
        if is_resumed or config.keep_results or folder is not None:
            raise
        logger.warning("nothing is written about this run: %s", error)
        return None
