"""How much memory tasks need, learnt from the journals of earlier runs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from exadask.core.events import Offer
from exadask.errors import RunFolderError
from exadask.journal.reading import RunRecord
from exadask.journal.stories import peaks_of, percentile
from exadask.runtime.run_folder import RunFolder
from exadask.tasks import Task

_N_RUNS = 20
_PART, _MARGIN = 0.95, 1.2
_STEP_BYTES = 2**26
_FIRST_BYTES = 2**30
_FACTOR = 2
_N_RUNGS = 12
_UNKNOWN_NODE_BYTES = 2**40


class Learned:
    """Turns ``memory="auto"`` into a ladder.

    Parameters
    ----------
    runs : Path, optional
        Where earlier runs are. None: nothing is known of any.
    """

    def __init__(self, runs: Path | None) -> None:
        self._runs = runs
        self._known: dict[int, tuple[Any, Task[Any, Any]]] = {}

    def resolved(self, function: Any, offers: Sequence[Offer]) -> Any:
        """Give a task with a ladder for one that says "auto"; anything else as it is."""
        if not (isinstance(function, Task) and function.options.learns_memory):
            return function
        known = self._known.get(id(function))
        if known is None:  # it keeps the task alive: the id is no other's
            rungs = list(self._rungs(function, offers))
            known = self._known[id(function)] = function, function.with_options(memory=rungs)
        return known[1]

    def _rungs(self, task: Task[Any, Any], offers: Sequence[Offer]) -> Iterator[int]:
        """Begin where most have been content, and climb to the largest node."""
        used = self._used_bytes(task)
        first = _FIRST_BYTES if used is None else max(_STEP_BYTES, int(_MARGIN * used))
        first = -(-first // _STEP_BYTES) * _STEP_BYTES
        sizes = [one.shape.memory_bytes for one in offers if one.shape is not None]
        most = max(sizes, default=_UNKNOWN_NODE_BYTES)
        rungs = [first * _FACTOR**n for n in range(_N_RUNGS)]
        fitting = list(itertools.takewhile(lambda one: one < most, rungs))
        yield from fitting
        if not fitting or fitting[-1] < most:
            yield most

    def _used_bytes(self, task: Task[Any, Any]) -> float | None:
        """Find what 95 % of such tasks have used at most [bytes]; None if there were none."""
        if self._runs is None:
            return None
        whose = f"{task.origin} "
        peaks: list[tuple[float, int]] = []
        for run in itertools.islice(RunFolder.all_below(self._runs), _N_RUNS):
            with contextlib.suppress(RunFolderError), RunRecord.opened(run.path) as record:
                for function in record.functions():
                    if function.name == task.name and function.source.startswith(whose):
                        peaks += peaks_of(record.used(function.id))
        return percentile(peaks, _PART) if peaks else None
