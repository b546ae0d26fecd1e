"""The executors to compare with, each behind the same calls.

They are set up as their manuals say for one machine with two workers, without a dashboard. What
a peer has no way to do, it has no method for: `Submits` and `Maps` are the two ways to work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.bench.measure import Options, Report

WORKERS = 2


class Pending(Protocol):
    """A result to come."""

    def result(self) -> Any:
        """Wait for it."""


class Subject(Protocol):
    """Something under test; made without arguments."""

    name: str

    def start(self) -> None:
        """Get ready to run tasks."""

    def close(self) -> None:
        """End all processes."""


class Peer(Subject, Protocol):
    """An executor under test.

    Parameters
    ----------
    package : str
        The package that has it; its version is the peer's.
    how : str
        What of it is used, for people.
    is_slow : bool
        Whether it gets fewer calls, because each takes about a millisecond; rates are compared.
    takes_futures : bool
        Whether a pending result may be an argument.
    """

    package: str
    how: str
    is_slow: bool
    takes_futures: bool


class Submits(Peer, Protocol):
    """A peer that runs single calls."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        """Run a call as a task."""

    def gather(self, pending: Sequence[Any]) -> list[Any]:
        """Wait for many results."""


class Maps(Peer, Protocol):
    """A peer that maps a function."""

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        """Call a function with each element; with `chunk` calls per task where one can choose."""


class OfFutures:
    """What executors in the manner of `concurrent.futures` share."""

    is_slow, takes_futures = False, False
    executor: Any

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self.executor.submit(fn, *args)
        return pending

    def gather(self, pending: Sequence[Any]) -> list[Any]:
        return [one.result() for one in pending]

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        results: Iterable[Any] = self.executor.map(fn, xs)
        return results

    def close(self) -> None:
        self.executor.shutdown()


class Exadask(OfFutures):
    """`exadask.Executor` on a declared node with two cores."""

    name, package, how = "exadask", "exadask", "Executor.submit, Executor.map"
    takes_futures = True

    def start(self) -> None:
        import exadask as xd

        self.executor = xd.Executor(nodes=[xd.NodeShape.declare(cores=WORKERS)])


class Dask:
    """`distributed.LocalCluster` with two processes of one thread."""

    name, package, how = "dask", "distributed", "client.submit, client.map, client.gather"
    is_slow, takes_futures = True, True

    def start(self) -> None:
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({"distributed.scheduler.http.routes": []})
        self._cluster = LocalCluster(
            processes=True, n_workers=WORKERS, threads_per_worker=1, dashboard_address=None
        )
        self.client = Client(self._cluster)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self.client.submit(fn, *args, pure=False)
        return pending

    def gather(self, pending: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.client.gather(list(pending))
        return results

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        return self.gather(self.client.map(fn, list(xs), pure=False))

    def close(self) -> None:
        self.client.close()
        self._cluster.close()


class DaskExecutor(OfFutures):
    """The same cluster through Dask's own executor."""

    name, package, how = "dask-executor", "distributed", "client.get_executor()"
    is_slow = True

    def start(self) -> None:
        self._dask = Dask()
        self._dask.start()
        self.executor = self._dask.client.get_executor(pure=False)

    def close(self) -> None:
        self.executor.shutdown()
        self._dask.close()


class Processes(OfFutures):
    """`concurrent.futures.ProcessPoolExecutor`: no scheduler at all, the least that can be."""

    name, package, how = "processes", "concurrent", "ProcessPoolExecutor"

    def start(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.executor = ProcessPoolExecutor(WORKERS)

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        results: Iterable[Any] = self.executor.map(fn, xs, chunksize=chunk)
        return results


class Loky(Processes):
    """The reusable executor of `loky`; its workers stay as long as the benchmark."""

    name, package, how = "loky", "loky", "get_reusable_executor()"

    def start(self) -> None:
        loky = importlib.import_module("loky")
        self.executor = loky.get_reusable_executor(max_workers=WORKERS, timeout=3600)


class Joblib:
    """`joblib.Parallel` with its default backend, kept open; it has no single calls."""

    name, package, how = "joblib", "joblib", "Parallel(n_jobs=2)"
    is_slow, takes_futures = False, False

    def start(self) -> None:
        self._joblib = importlib.import_module("joblib")
        self._parallel = self._joblib.Parallel(n_jobs=WORKERS)
        self._parallel.__enter__()

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        results: Iterable[Any] = self._parallel(self._joblib.delayed(fn)(x) for x in xs)
        return results

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown()


class Parsl(OfFutures):
    """Parsl's `HighThroughputExecutor` with one block on this machine."""

    name, package, how = "parsl", "parsl", "HighThroughputExecutor, python_app"
    is_slow, takes_futures = True, True

    def start(self) -> None:
        import parsl
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        executor = HighThroughputExecutor(
            label="bench",
            address="127.0.0.1",
            max_workers_per_node=WORKERS,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        runs = tempfile.mkdtemp(prefix="parsl-")  # in the sandbox
        parsl.load(parsl.Config(executors=[executor], run_dir=runs, strategy="none"))
        self._app = parsl.python_app(call)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self._app(fn, *args)
        return pending

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        return self.gather([self.submit(fn, x) for x in xs])

    def close(self) -> None:
        import parsl

        parsl.dfk().cleanup()


class Ray:
    """Ray on this machine with two CPUs."""

    name, package, how = "ray", "ray", "ray.remote, ray.get"
    is_slow, takes_futures = True, True

    def start(self) -> None:
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else it warns
        import ray

        ray.init(
            num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        self._call = ray.remote(call)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        plain = [one.reference if isinstance(one, _RayPending) else one for one in args]
        return _RayPending(self._call.remote(fn, *plain))

    def gather(self, pending: Sequence[Any]) -> list[Any]:
        import ray

        results: list[Any] = ray.get([one.reference for one in pending])
        return results

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        return self.gather([self.submit(fn, x) for x in xs])

    def close(self) -> None:
        import ray

        ray.shutdown()


class _RayPending:
    __slots__ = ("reference",)

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def result(self) -> Any:
        import ray

        return ray.get(self.reference)


class Executorlib(OfFutures):
    """`executorlib.SingleNodeExecutor` with workers that stay (else each call starts Python)."""

    name, package, how = "executorlib", "executorlib", "SingleNodeExecutor(block_allocation=True)"
    is_slow, takes_futures = True, True

    def start(self) -> None:
        from executorlib import SingleNodeExecutor

        self.executor = SingleNodeExecutor(
            max_workers=WORKERS, block_allocation=True, hostname_localhost=True
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self.executor.submit(call, fn, *args)
        return pending

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        return self.gather([self.submit(fn, x) for x in xs])


class Ipyparallel(OfFutures):
    """Two engines of IPython Parallel on this machine, behind a load-balanced view."""

    name, package, how = "ipyparallel", "ipyparallel", "LoadBalancedView"
    is_slow = True

    def start(self) -> None:
        ipyparallel = importlib.import_module("ipyparallel")
        self._cluster = ipyparallel.Cluster(n=WORKERS, log_level=40)  # errors
        self._client = self._cluster.start_and_connect_sync(activate=False)
        self._view = self._client.load_balanced_view()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Pending:
        pending: Pending = self._view.apply_async(fn, *args)
        return pending

    def map(self, fn: Callable[..., Any], xs: Iterable[Any], *, chunk: int) -> Iterable[Any]:
        results: Iterable[Any] = self._view.map_sync(fn, list(xs), chunksize=chunk)
        return results

    def close(self) -> None:
        self._client.close()
        self._cluster.stop_cluster_sync()


PEERS: tuple[type[Peer], ...] = (
    *(Dask, DaskExecutor, Parsl, Ray, Executorlib, Ipyparallel),
    *(Processes, Loky, Joblib),
)


def call(fn: Callable[..., Any], /, *args: Any) -> Any:
    """Call; for executors that take functions written in Python only."""
    return fn(*args)


def chosen(options: Options, report: Report, needed: str) -> list[type[Peer]]:
    """Give the peers to compare with; the report tells which are left out and why.

    Parameters
    ----------
    options : Options
        Which of them were asked for.
    report : Report
        Gets the notes.
    needed : str
        The method that they must have: "submit" or "map".
    """
    found = []
    for peer in PEERS:
        if options.peers and peer.name not in options.peers:
            continue
        if not is_installed(peer):
            report.notes.append(f"{peer.name}: left out: it is not installed")
        elif not hasattr(peer, needed):
            report.notes.append(f"{peer.name}: left out: it has no way to do this")
        else:
            found.append(peer)
    return found


def is_installed(peer: type[Peer]) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(peer.package) is not None


def version_of(peer: type[Peer]) -> str:
    """Give a peer's version; that of Python for what comes with it."""
    try:
        return importlib.metadata.version(peer.package)
    except importlib.metadata.PackageNotFoundError:
        return f"of Python {sys.version.split()[0]}"
