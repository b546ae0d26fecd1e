"""The executors to compare with, each behind the same three calls, each in its own process.

They are set up as their manuals say for one machine with two workers, without a dashboard.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.bench.measure import Options

T = TypeVar("T")
WORKERS = 2
ROOT = Path(__file__).resolve().parents[2]


class Pending(Protocol):
    """A result to come."""

    def result(self) -> Any:
        """Wait for it."""


class Peer(Protocol):
    """An executor under test; made without arguments."""

    name: str
    package: str

    def start(self) -> None:
        """Get ready to run tasks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        """Run a call as a task."""

    def close(self) -> None:
        """End all processes."""


class Exadask:
    """`exadask.Executor` on a declared node with two cores."""

    name, package = "exadask", "exadask"

    def start(self) -> None:
        import exadask as xd

        self._executor = xd.Executor(nodes=[xd.NodeShape.declare(cores=WORKERS)])

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        return self._executor.submit(fn, *args)

    def close(self) -> None:
        self._executor.shutdown()


class Dask:
    """`distributed.LocalCluster` with two processes of one thread."""

    name, package = "dask", "distributed"

    def start(self) -> None:
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({"distributed.scheduler.http.routes": []})
        self._cluster = LocalCluster(
            processes=True, n_workers=WORKERS, threads_per_worker=1, dashboard_address=None
        )
        self._client = Client(self._cluster)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self._client.submit(fn, *args, pure=False)
        return pending

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


class Processes:
    """`concurrent.futures.ProcessPoolExecutor`: no scheduler at all, the least that can be."""

    name, package = "processes", "concurrent"

    def start(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._executor = ProcessPoolExecutor(WORKERS)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        return self._executor.submit(fn, *args)

    def close(self) -> None:
        self._executor.shutdown()


class Parsl:
    """Parsl's `HighThroughputExecutor` with one block on this machine."""

    name, package = "parsl", "parsl"

    def start(self) -> None:
        import parsl
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.environ["PYTHONPATH"] = str(ROOT)  # its workers import `call`
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-parsl-")
        executor = HighThroughputExecutor(
            label="bench",
            address="127.0.0.1",
            max_workers_per_node=WORKERS,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(parsl.Config(executors=[executor], run_dir=self._scratch.name, strategy="none"))
        self._app = parsl.python_app(call)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self._app(fn, *args)
        return pending

    def close(self) -> None:
        import parsl

        parsl.dfk().cleanup()
        self._scratch.cleanup()


class Ray:
    """Ray on this machine with two CPUs."""

    name, package = "ray", "ray"

    def start(self) -> None:
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else it warns
        import ray

        ray.init(
            num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        self._call = ray.remote(call)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        return _RayPending(self._call.remote(fn, *args))

    def close(self) -> None:
        import ray

        ray.shutdown()


class _RayPending:
    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> Any:
        import ray

        return ray.get(self._reference)


class Executorlib:
    """`executorlib.SingleNodeExecutor` with workers that stay (else each call starts Python)."""

    name, package = "executorlib", "executorlib"

    def start(self) -> None:
        from executorlib import SingleNodeExecutor

        self._executor = SingleNodeExecutor(
            max_workers=WORKERS, block_allocation=True, hostname_localhost=True
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self._executor.submit(call, fn, *args)
        return pending

    def close(self) -> None:
        self._executor.shutdown()


PEERS: tuple[type[Peer], ...] = (Dask, Processes, Parsl, Ray, Executorlib)


def call(fn: Callable[..., Any], /, *args: Any) -> Any:
    """Call; for executors that take functions written in Python only."""
    return fn(*args)


def chosen(options: Options) -> tuple[list[type[Peer]], list[str]]:
    """Give the peers to compare with, and say which are absent."""
    wanted = [one for one in PEERS if not options.peers or one.name in options.peers]
    found = [one for one in wanted if importlib.util.find_spec(one.package) is not None]
    absent = [one.name for one in wanted if one not in found]
    notes = [f"{name}: absent (not installed), so not compared" for name in absent]
    return found, notes


def title_of(peer: type[Peer]) -> str:
    """Name a peer with its version."""
    try:
        return f"{peer.name} {importlib.metadata.version(peer.package)}"
    except importlib.metadata.PackageNotFoundError:
        return peer.name


class Session:
    """Something under test in a process of its own, so that no two share an interpreter."""

    def __init__(self, subject: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(subject, theirs))
        self._process.start()
        theirs.close()
        self._answer()

    def run(self, block: Callable[..., T], *args: object) -> T:
        """Call ``block(subject, *args)`` there; the function goes by its name."""
        self._ours.send((block, args))
        answer: T = self._answer()
        return answer

    def close(self) -> None:
        """End the process and what it has started."""
        with contextlib.suppress(OSError):  # it has ended already
            self._ours.send(None)
        self._process.join()

    def _answer(self) -> Any:
        try:
            is_fine, answer = self._ours.recv()
        except EOFError:
            is_fine, answer = False, "it ended"
        if not is_fine:
            raise SubjectFailed(answer)
        return answer


class SubjectFailed(Exception):
    """What was under test raised; the text is its traceback."""


@contextlib.contextmanager
def session(subject: Callable[[], Any]) -> Iterator[Session]:
    """Start a `Session` and close it at the end."""
    opened = Session(subject)
    try:
        yield opened
    finally:
        opened.close()


def _serve(subject: Callable[[], Any], orders: Connection) -> None:
    try:
        peer = subject()
        peer.start()
        with contextlib.closing(peer):
            orders.send((True, None))
            while (order := orders.recv()) is not None:
                block, args = order
                orders.send((True, block(peer, *args)))
    except Exception:  # the process boundary: the other side raises it
        orders.send((False, traceback.format_exc()))
