"""A progress bar for futures, in a terminal and in a notebook."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from exadask.monitor.html import progress_html

_REFRESH_S = 0.1


class _Display(Protocol):
    def show(self, done: int, failed: int) -> None: ...

    def close(self) -> None: ...


def follow(futures: Sequence[Future[Any]], description: str) -> None:
    """Show a progress bar until all futures are done; returns at once.

    It goes to the notebook if there is one, otherwise to standard error; where that is not a
    terminal, nothing but a last line is written.

    Parameters
    ----------
    futures : sequence of concurrent.futures.Future
        What to follow.
    description : str
        What it says before the bar.
    """
    if futures:
        _Follower(futures, description)


class _Follower:
    def __init__(self, futures: Sequence[Future[Any]], description: str) -> None:
        self._total = len(futures)
        self._done = self._failed = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._display = _display_for(description, self._total)
        self._thread = threading.Thread(target=self._refresh, name="exadask-progress", daemon=True)
        self._thread.start()
        for future in futures:
            future.add_done_callback(self._count)

    def _count(self, future: Future[Any]) -> None:
        has_failed = future.cancelled() or future.exception() is not None
        with self._lock:
            self._done += 1
            self._failed += has_failed
            if self._done == self._total:
                self._ended.set()

    def _refresh(self) -> None:
        has_ended = False
        while not has_ended:
            has_ended = self._ended.wait(_REFRESH_S)
            with self._lock:
                done, failed = self._done, self._failed
            self._display.show(done, failed)
        self._display.close()


class _TerminalDisplay:
    def __init__(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[failed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(description, total=total, failed="")
        self._progress.start()

    def show(self, done: int, failed: int) -> None:
        text = f"{failed} failed" if failed else ""
        self._progress.update(self._task, completed=done, failed=text)

    def close(self) -> None:
        self._progress.stop()


class _NotebookDisplay:
    def __init__(self, description: str, total: int) -> None:
        from IPython.display import HTML, display

        self._description, self._total, self._html = description, total, HTML
        self._handle = display(HTML(progress_html(description, 0, 0, total)), display_id=True)

    def show(self, done: int, failed: int) -> None:
        self._handle.update(self._html(progress_html(self._description, done, failed, self._total)))

    def close(self) -> None:
        """Leave the bar where it is."""


def _display_for(description: str, total: int) -> _Display:
    if _is_notebook():
        return _NotebookDisplay(description, total)
    return _TerminalDisplay(description, total)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
