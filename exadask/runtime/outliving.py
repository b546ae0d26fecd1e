"""Small programs that go on when this process is killed, to clean up after it."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

__all__ = ["Outliving"]


class Outliving:
    """Such a program, run by its path with nothing but the standard library.

    It notices the end of this process when its standard input closes without a farewell.

    Parameters
    ----------
    program : module
        What it runs; its ``FAREWELL`` is what it waits for (`exadask.runtime.guardian`,
        `exadask.runtime.reaper`).
    *arguments : str
        What it is given.
    """

    def __init__(self, program: ModuleType, *arguments: str) -> None:
        self._farewell: bytes = program.FAREWELL
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program.__file__), *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Let it go; returns when it has ended."""
        assert self._process.stdin is not None
        self._process.communicate(self._farewell)
