"""A small program that outlives its agent only to end what the agent left behind.

An agent (or the user's own program, when the cluster is embedded) may be killed without a chance
to clean up. The guardian holds a pipe to it; when the pipe closes without a farewell it kills
every process that bears the agent's mark and removes its scratch directories. It is run by its
path, with nothing but the standard library, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

FAREWELL = b"."
_MARK = b"EXADASK_SLOT="
_POLL_S = 0.05
_QUIET_SCANS = 3


def main(prefix: str, scratch: list[str]) -> None:
    """Wait for the end of standard input; clean up unless it said farewell."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(0, 1) == FAREWELL:
        return
    quiet = 0
    while quiet < _QUIET_SCANS:
        survivors = _marked(_MARK + prefix.encode())
        quiet = 0 if survivors else quiet + 1
        for pid in survivors:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    for directory in scratch:
        shutil.rmtree(directory, ignore_errors=True)


def _marked(wanted: bytes) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  # no pathlib: fast start
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                environment = file.read()
        except OSError:  # it has ended, or belongs to someone else
            continue
        if environment.startswith(wanted) or b"\0" + wanted in environment:
            found.append(int(name))
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
