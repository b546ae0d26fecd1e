"""The owner's side of the reaper: keeps it told what to end if this process is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from exadask.runtime import reaper
from exadask.runtime.outliving import Outliving
from exadask.runtime.run_folder import RunFolder

_ORDERS = "cancel.json"


class Reaper:
    """A process that ends the jobs of a run if this one ends without a farewell.

    Parameters
    ----------
    run : RunFolder
        The run; its keys are removed as well.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._wanted: Sequence[Sequence[str]] | None = None  # what could not be written
        orders = self._write([])
        secrets = [run.tls, run.depot, run.path / "cluster.json", orders]
        self._process = Outliving(reaper, str(orders), *map(str, secrets))

    def expect(self, commands: Sequence[Sequence[str]]) -> None:
        """Have these commands run if this process is killed."""
        self._wanted = commands
        self.catch_up()

    def catch_up(self) -> None:
        """Write what is to be run, unless that is done; a full disk is no reason to stop."""
        if self._wanted is not None:
            with contextlib.suppress(OSError):
                self._write(self._wanted)
                self._wanted = None

    def dismiss(self) -> None:
        """Let it go: everything is ended, or has been told to."""
        self._process.dismiss()
        (self._run.path / _ORDERS).unlink(missing_ok=True)

    def _write(self, commands: Sequence[Sequence[str]]) -> Path:
        return self._run.write_private(_ORDERS, [list(argv) for argv in commands])
