"""A place for one program to run in: what it leaves behind is ended and deleted, and told."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
MARK = "BENCH_SANDBOX"
PATIENCE_S = 5.0


class Sandbox:
    """A temporary folder, and a mark in the environment of all processes that belong to it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        name = self._folder.name
        before = os.environ.get("PYTHONPATH")
        self.environ = {
            MARK: name,
            "TMPDIR": name,
            "IPYTHONDIR": f"{name}/ipython",
            "JOBLIB_TEMP_FOLDER": name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])]),
        }

    def processes(self) -> list[psutil.Process]:
        """Find the processes that belong to it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it has ended, or is not ours
                if process.environ().get(MARK) == self._folder.name:
                    found.append(process)
        return found

    def end_processes(self, patience_s: float) -> list[str]:
        """End what does not end by itself in time [s]; returns the names of those processes."""
        _, left = psutil.wait_procs(self.processes(), timeout=patience_s)
        names = []
        for process in left:
            with contextlib.suppress(psutil.Error):  # it has ended now
                names.append(process.name())
                process.kill()
        psutil.wait_procs(left, timeout=PATIENCE_S)
        return names

    def close(self) -> list[str]:
        """End what is left, and delete the folder; returns complaints about what was left."""
        left = self.end_processes(PATIENCE_S)
        self._folder.cleanup()
        return [f"left processes behind: {', '.join(left)}"] if left else []


@contextlib.contextmanager
def environment(extra: Mapping[str, str]) -> Iterator[None]:
    """Have more in the environment for a while."""
    before = dict(os.environ)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
