"""What a task's processes use, and how they are ended: all of them, whatever they do."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

MARK = "EXADASK_SLOT"
"""Environment variable that every process of a slot inherits, so that none can hide."""

INTERPRETER_BYTES = 32 * 2**20
"""Memory that the interpreter itself needs: it is not counted as the task's."""

_PROC = Path("/proc")
_RESIDENT = re.compile(rb"Rss(?:Anon|Shmem):\s*(\d+) kB")
_CHILDREN_ARE_TOLD = Path(f"/proc/self/task/{threading.get_native_id()}/children").exists()
_POLL_S = 0.01
_KILL_ATTEMPTS = 500
_QUIET_LOOKS = 2  # a process that becomes another program has no mark for an instant


def family_of(pid: int | None, mark: str) -> set[int]:
    """Find the processes of a slot: its descendants, and those that left but bear its mark.

    Parameters
    ----------
    pid : int, optional
        The child process of the slot; it may have ended already. None: only those with the mark.
    mark : str
        The value of `MARK` in its environment.

    Returns
    -------
    set of int
        Living processes, zombies left out.
    """
    found = _bearing(f"{MARK}={mark}".encode(), b"\0")
    if pid is not None:
        found |= {pid, *descendants_of([pid]).get(pid, ())}
    return {member for member in found if is_alive(member)}


def marked(prefix: str) -> set[int]:
    """Find the processes whose mark begins with a prefix; needs ``/proc``."""
    return _bearing(f"{MARK}={prefix}".encode(), b"")


def bears(pid: int, mark: str) -> bool:
    """Whether a process lives and has a mark; needs ``/proc``."""
    return f"\0{MARK}={mark}\0".encode() in _environment_of(_PROC / str(pid))


def _bearing(entry: bytes, end: bytes) -> set[int]:
    """Find the processes in whose environment an entry stands, and goes on like this."""
    wanted = b"\0" + entry + end
    return {int(one.name) for one in _PROC.glob("[0-9]*") if wanted in _environment_of(one)}


def _environment_of(process: Path) -> bytes:
    """Read its environment, each entry between zeros."""
    try:
        return b"\0" + (process / "environ").read_bytes() + b"\0"
    except OSError:  # it has ended, or belongs to someone else
        return b""


def descendants_of(pids: Iterable[int]) -> dict[int, list[int]]:
    """Find all descendants of several processes in one pass over the process table."""
    children: dict[int, list[int]] = {}
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process.pid)
    result = {}
    for pid in pids:
        found: list[int] = []
        stack = [pid]
        while stack:
            offspring = children.get(stack.pop(), ())
            found.extend(offspring)
            stack.extend(offspring)
        result[pid] = found
    return result


def sampled_descendants_of(pid: int) -> list[int] | None:
    """Find the descendants of one process without a look at all others.

    A child that ends meanwhile may hide others, so this is good for samples only. None where the
    kernel does not tell (``CONFIG_PROC_CHILDREN``).
    Source: Linux, Documentation/filesystems/proc.rst, ``children``.
    """
    found: list[int] = []
    stack = [pid]
    while stack:
        one = stack.pop()
        try:
            threads = os.listdir(f"/proc/{one}/task")  # noqa: PTH208  # ten times a second
            for thread in threads:
                with open(f"/proc/{one}/task/{thread}/children", "rb") as children:  # noqa: PTH123
                    stack += (offspring := list(map(int, children.read().split())))
                    found += offspring
        except OSError:
            if one == pid and not _CHILDREN_ARE_TOLD:
                return None
    return found


def memory_of(pids: Iterable[int]) -> int:
    """Estimate the memory of processes; what they share is counted for each of them [bytes]."""
    return sum(_resident_bytes(pid) for pid in pids)


def exact_memory_of(pids: Iterable[int]) -> int:
    """Measure the memory of processes; what they share is divided among its users [bytes].

    Slower than `memory_of` (the kernel walks the page tables), so it only confirms a verdict.
    Source: Linux, Documentation/filesystems/proc.rst, ``smaps_rollup``.
    """
    return sum(_proportional_bytes(pid) for pid in pids)


def end_family(pid: int | None, mark: str, *, grace_s: float) -> None:
    """End all processes of a slot: SIGTERM, and after the grace SIGKILL until none is left.

    Blocks until they are gone; a zombie counts as gone.

    Parameters
    ----------
    pid : int, optional
        The child process of the slot. None: only those with the mark.
    mark : str
        The value of `MARK` in its environment.
    grace_s : float
        Time between the signals [s]; 0 sends SIGKILL at once.
    """
    members = family_of(pid, mark)
    if grace_s > 0:
        _signal(members, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(map(is_alive, members)):
            time.sleep(_POLL_S)
    n_quiet = 0
    for _ in range(_KILL_ATTEMPTS):  # they may start others while we look
        # a large process that is ending has lost its mark and its parent before its memory
        members = {one for one in members if is_alive(one)} | family_of(pid, mark)
        n_quiet = 0 if members else n_quiet + 1
        if n_quiet == _QUIET_LOOKS:
            return
        _signal(members, signal.SIGKILL)
        time.sleep(_POLL_S)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123  # per task: keep it cheap
            found = _RESIDENT.findall(status.read())
        return 1024 * sum(map(int, found))
    except OSError:
        pass  # it has ended, or there is no /proc
    try:
        return int(psutil.Process(pid).memory_info().rss)  # systems without /proc
    except psutil.Error:
        return 0


def _proportional_bytes(pid: int) -> int:
    fields = _memory_fields(_PROC / str(pid) / "smaps_rollup")
    if "Pss_Anon" not in fields:
        return _resident_bytes(pid)
    return fields["Pss_Anon"] + fields.get("Pss_Shmem", 0)


def _memory_fields(path: Path) -> Mapping[str, int]:
    """Read the lines ``Name: 123 kB`` of a file of ``/proc`` [bytes]."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            fields[name] = int(rest[:-3]) * 1024
    return fields


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, and would not end by it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
