"""Shared memory that MPI libraries leave on a node when a program does not end as it should.

After a kill, or ``MPI_Abort``, it stays, and is memory of the node that no task gets until the
machine is started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

from exadask.runtime.background import Background

__all__ = ["Leftovers", "remove_leftovers", "shared_memory_of_mpi"]

_FOLDER = Path("/dev/shm")
_PROC = Path("/proc")
# Seen of MPICH 4 and 5, of Open MPI 4, and of UCX, which the MPICH of Debian uses.
_NAMES = ("mpich_shm_", "vader_segment.", "ucx_shm_posix_")
_YOUNG_S = 0.5
_INTERVAL_S = 5.0


def remove_leftovers(folder: Path = _FOLDER) -> set[Path]:
    """Remove what MPI libraries have left of this user's processes, and nobody uses any more.

    Parameters
    ----------
    folder : Path
        Where they keep their shared memory.

    Returns
    -------
    set of Path
        The files that are gone now. None that is mapped by a process is among them,
        nor one that is younger than half a second: a process may be about to map it.
    """
    unused = set(filter(_is_ours_and_old, shared_memory_of_mpi(folder)))
    for process in _PROC.glob("[0-9]*") if unused else ():
        with contextlib.suppress(OSError):  # it has ended, or belongs to someone else
            maps = (process / "maps").read_text(errors="replace")
            unused -= {one for one in unused if str(one) in maps}
    for one in unused:
        one.unlink(missing_ok=True)
    return unused


def shared_memory_of_mpi(folder: Path = _FOLDER) -> set[Path]:
    """List what MPI libraries have there, in use or not, of any user."""
    with contextlib.suppress(OSError):  # there is no such folder
        return {one for one in folder.iterdir() if one.name.startswith(_NAMES)}
    return set()


def _is_ours_and_old(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # its owner has just removed it
        return False
    return found.st_uid == os.getuid() and time.time() - found.st_mtime >= _YOUNG_S


class Leftovers:
    """Looks for them some seconds after ranks have ended; a loop owns it."""

    def __init__(self) -> None:
        self._is_due = False
        self._closing = asyncio.Event()
        self._looks = Background()

    def look_now(self) -> None:
        """Look for what is from times before."""
        self._looks.start(self._remove())

    def look_soon(self) -> None:
        """Look once, for all that end until then."""
        if not self._is_due:
            self._is_due = True
            self._looks.start(self._look())

    async def close(self) -> None:
        """Look a last time, if that is due."""
        self._closing.set()
        await self._looks.finish()

    async def _look(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), _INTERVAL_S)
            if shared_memory_of_mpi():
                await asyncio.sleep(_YOUNG_S)
        self._is_due = False
        await self._remove()

    async def _remove(self) -> None:
        await asyncio.to_thread(remove_leftovers)
