"""The agent's side of the guardian."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from exadask.runtime import guardian


class Guardian:
    """A process that ends what an agent has started if that ends without a farewell.

    Parameters
    ----------
    mark : str
        How the marks of all that the agent starts begin.
    scratch : str
        A folder that is removed then.
    """

    def __init__(self, mark: str, scratch: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if Path("/proc/self/environ").exists():  # it finds processes there
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guardian.__file__), mark, scratch],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def dismiss(self) -> None:
        """Let it go: everything is ended."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.communicate(guardian.FAREWELL)
