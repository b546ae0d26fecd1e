"""The end of what a program writes, while all of it is passed on."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque

_LINES = 40


class Tail:
    """Passes on what a program writes to standard error, and keeps its last lines.

    Parameters
    ----------
    process : subprocess.Popen
        The program, with a pipe there. It is read on a thread of its own, which alone closes it:
        the program's own children may hold its other end for longer than the program lives.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None, "it was started with a pipe"
        self._pipe = process.stderr
        self._lines: deque[bytes] = deque(maxlen=_LINES)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def text(self) -> str:
        """Give the last lines, once the pipe has ended or says nothing for a moment."""
        self._reading.join(0.5)
        return b"".join(self._lines).decode(errors="replace")

    def _read(self) -> None:
        with self._pipe as pipe:
            for line in pipe:
                self._lines.append(line)
                os.write(2, line)
