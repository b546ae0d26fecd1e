"""A scheduler that outlives sessions: how it is started, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from exadask.config import Config
from exadask.errors import ClusterUnreachable
from exadask.pool import Pool
from exadask.runtime.backends import tail_of
from exadask.runtime.run_folder import RunFolder

_MODULE = "exadask.standing"
_ORDERS = "standing.pickle"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.05


def start_standing(pools: Sequence[Pool], config: Config) -> RunFolder:
    """Start a scheduler in a process of its own, and return when it listens.

    Raises
    ------
    RunFolderError
        Its folder cannot be made.
    ClusterUnreachable
        It ended at once, or does not come up.
    """
    run = RunFolder.create(Path(config.run_folder))
    orders = run.path / _ORDERS
    orders.touch(mode=0o600)
    orders.write_bytes(pickle.dumps((tuple(pools), config)))
    with run.scheduler_log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not run.is_published:
        if process.poll() is not None or time.monotonic() > deadline_s:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise ClusterUnreachable(
                str(run.path),
                "it ended at once" if process.poll() is not None else "it does not come up",
                f"Its log says:\n{tail_of(run.scheduler_log)}",
            )
        time.sleep(_POLL_S)
    return run


def read_orders(run: RunFolder) -> tuple[Sequence[Pool], Config]:
    """Read what a scheduler that stands was started with."""
    pools, config = pickle.loads((run.path / _ORDERS).read_bytes())
    return pools, config


def stop_standing(run: RunFolder) -> None:
    """End a standing scheduler, and wait until it has given everything back.

    Raises
    ------
    RunFolderError
        It does not stand.
    ClusterUnreachable
        It runs on another machine, or does not end.
    """
    facts = run.published()
    if facts["host"] != socket.gethostname():
        raise ClusterUnreachable(
            facts["address"],
            f"it runs on {facts['host']}, and this is {socket.gethostname()}",
            f"Log in there: ssh {facts['host']} exadask down {run.path}",
        )
    pid = int(facts["pid"])
    if not _is_standing(pid):
        run.close()  # it was killed; its reaper has given the jobs back
        return
    os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + _STOP_TIMEOUT_S
    while _is_standing(pid):
        if time.monotonic() > deadline_s:
            raise ClusterUnreachable(
                facts["address"],
                f"its process {pid} does not end",
                f"See {run.scheduler_log}; then: kill -9 {pid}",
            )
        time.sleep(_POLL_S)


def _is_standing(pid: int) -> bool:
    """Whether a process lives and is a standing scheduler: numbers of processes are used again."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and _MODULE in process.cmdline()
    except psutil.Error:
        return False
