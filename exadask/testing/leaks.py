"""Find what a cluster left behind: processes, ports, temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil

from exadask.runtime.leftovers import shared_memory_of_mpi
from exadask.runtime.limits import marked


def leftover_processes() -> set[int]:
    """Find the processes of slots that this process started, and all their descendants.

    Returns
    -------
    set of int
        Process ids.
    """
    return {pid for pid in marked(f"{os.getpid()}-") if psutil.pid_exists(pid)}


def listening_ports() -> set[tuple[str, int]]:
    """List the network ports on which this process or a child of it listens.

    Returns
    -------
    set of (str, int)
        Address and port, from the kernel's socket table.
    """
    found: set[tuple[str, int]] = set()
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:  # it has just ended
            continue
        listening = [one.laddr for one in connections if one.status == psutil.CONN_LISTEN]
        found |= {(str(address[0]), int(address[1])) for address in listening}
    return found


def leftover_files() -> set[Path]:
    """List what exadask has made and not removed, and the shared memory of MPI programs."""
    of_exadask = Path(tempfile.gettempdir()).glob(f"exadask-{os.getpid()}-*")
    return {*of_exadask, *shared_memory_of_mpi()}
