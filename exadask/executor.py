"""`Executor`: a `concurrent.futures.Executor` over everything below it."""

from __future__ import annotations

import atexit
import concurrent.futures
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from exadask.core.events import Offer, WaitingTask
from exadask.core.ledger import TaskId
from exadask.core.nodes import NodeIndex
from exadask.core.prospects import check_possible
from exadask.errors import (
    ExecutorClosed,
    InvalidRequest,
    NoActiveExecutor,
    NotSerializable,
)
from exadask.future import Future
from exadask.opening import Cluster, open_cluster, split_settings
from exadask.packing import TaskPacker
from exadask.resources import NodeShape
from exadask.runtime.job import Gateway, Submission
from exadask.tasks import Task, TaskOptions

if TYPE_CHECKING:
    from distributed import Client

    from exadask.core.events import Step
    from exadask.core.fleet_report import FleetSummary
    from exadask.pool import Pool

T = TypeVar("T")

_open: list[Executor] = []
_nested: Executor | None = None
_plain = TaskOptions()


class Executor(concurrent.futures.Executor):
    """Runs functions as tasks, each with exactly what it asks for.

    Without arguments: a cluster inside this process that offers this machine (or the part of it
    that the batch system allows). No port is opened. Ready in about a second.

    Parameters
    ----------
    nodes : sequence of NodeShape, int or (int, int), optional
        Without pools: shapes of the nodes. Declared shapes (`NodeShape.declare`) are counted
        exactly but bound to no real cores, which makes a larger machine out of a small one for a
        rehearsal. With pools: nodes of one allocation, or the least and the most.
    site : str, optional
        A site profile: the machine whose batch system gives the nodes (``exadask sites``), the
        path of a profile of one's own, or "here".
    pools : sequence of Pool, dict or str, optional
        Pools of one's own, or names of the site's.
    attach : str or Path, optional
        The folder of a run whose scheduler stands (``exadask up``): use that one.
    **settings
        Fields of `exadask.config.Config`, for example ``budget="100 node-hours"``, and facts for
        all pools (see `Pool.declare`), for example ``account="m1234"``, ``walltime="2h"``.

    Raises
    ------
    InvalidRequest, SiteError
        What was said makes no sense, or is not known.
    RunFolderError, ClusterUnreachable
        The run's files cannot be written, or the scheduler not be reached.

    Examples
    --------
    >>> with Executor() as ex:
    ...     ex.submit(pow, 2, 10).result()
    1024
    """

    def __init__(
        self,
        nodes: Sequence[NodeShape] | int | tuple[int, int] | None = None,
        *,
        site: str | None = None,
        pools: Sequence[Pool | Mapping[str, Any] | str] | None = None,
        attach: str | Path | None = None,
        **settings: Any,
    ) -> None:
        _send_main_by_value()
        cluster = open_cluster(nodes, site=site, pools=pools, attach=attach, settings=settings)
        self._cluster: Cluster | None = cluster
        segment_bytes = split_settings(settings)[0].segment_bytes
        self._adopt(cluster.gateway, segment_bytes)
        _open.append(self)
        _close_at_exit()

    @classmethod
    def _of_task(cls, gateway: Gateway) -> Executor:
        """Make the executor that a running task sees: the cluster it runs in."""
        self = cls.__new__(cls)
        self._cluster = None
        self._adopt(gateway, 2**20)
        return self

    def _adopt(self, gateway: Gateway, segment_bytes: int) -> None:
        self._gateway, self._segment_bytes = gateway, segment_bytes
        self._lock = threading.Lock()
        self._is_closed = False
        self._unfinished: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    # -- submitting -------------------------------------------------------------------------

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a callable as a task.

        Parameters
        ----------
        fn : callable
            A function, a lambda, a method, a `Task`: anything that can be called.
        *args, **kwargs
            Its arguments; futures among them, at any depth, become their values.

        Returns
        -------
        Future
            Its result, now or later.

        Raises
        ------
        ExecutorClosed
            The executor has been shut down.
        ImpossibleRequest
            No node is large enough.
        NotSerializable
            The callable or an argument cannot be sent to another process.
        """
        return self.submit_task(_as_task(fn), args, kwargs)

    def options(self, **options: Any) -> Submitter:
        """Choose resources and more for the next calls, without a decorator.

        Parameters
        ----------
        **options
            As for `exadask.task`.

        Examples
        --------
        >>> with Executor() as ex:
        ...     ex.options(memory="1GiB").submit(sum, [1, 2]).result()
        3
        """
        return Submitter(self, options)

    def submit_task(
        self, task: Task[Any, T], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Future[T]:
        """Run a task; `Task.submit` calls this."""
        self._check_open("submit a task")
        self._check_possible(task)
        return self._send(task, TaskPacker(task, self._segment_bytes), args, kwargs)

    def map_task(
        self, task: Task[Any, T], iterables: Sequence[Iterable[Any]], *, progress: bool = False
    ) -> list[Future[T]]:
        """Run a task for each tuple of elements; `Task.map` calls this."""
        self._check_open("submit tasks")
        self._check_possible(task)
        if not iterables:
            raise InvalidRequest("map() got nothing to map over.", "Give it at least one iterable.")
        packer = TaskPacker(task, self._segment_bytes)
        futures = [self._send(task, packer, args, {}) for args in zip(*iterables)]  # noqa: B905  # as map does
        if progress:
            from exadask.monitor.progress import follow

            follow(futures, task.name)
        return futures

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """Give the results for each tuple of elements, in their order, as they come.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables : iterable
            Its arguments; the shortest ends it. They are consumed at once.
        timeout : float, optional
            How long to wait for all of it, from now [s].
        chunksize : int
            Calls per task.

        Raises
        ------
        TimeoutError
            A result was not there in time.
        ValueError
            ``chunksize`` is less than one.
        """
        if not isinstance(chunksize, int) or chunksize < 1:
            raise ValueError(f"chunksize={chunksize!r} is not valid: give a whole number >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = _chunks(zip(*iterables), chunksize)  # noqa: B905  # as map does
        parts = super().map(_Chunk(fn), chunks, timeout=timeout)
        return itertools.chain.from_iterable(parts)

    def _send(
        self, task: Task[Any, T], packer: TaskPacker, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Future[T]:
        job, futures = packer.job(args, kwargs)
        submission = Submission(
            job=job,
            inputs=tuple(self._input_key(one, task.name) for one in futures),
            priority=task.options.priority,
            retries=task.options.retries,
            pool=task.options.pool,
        )
        future: Future[T] = Future(self._gateway, job.key, task.name, task.options.request)
        with self._lock:
            self._check_open("submit a task")
            self._unfinished.add(future)
            self._gateway.submit(submission, future)
        return future

    def _input_key(self, future: Any, name: str) -> str:
        if isinstance(future, Future):
            if future._gateway is not self._gateway:
                raise InvalidRequest(
                    f"task {name!r} got the future of {future.name!r}, which belongs to another "
                    "executor (perhaps one that is closed).",
                    "Pass its result() instead.",
                )
            return future.key
        client = getattr(self._gateway, "client", None)
        if client is None or future.client.scheduler.addr != client.scheduler.addr:
            raise InvalidRequest(
                f"task {name!r} got the Dask future {future.key!r} of another cluster.",
                "Pass its result() instead, or make it with Executor.client.",
            )
        return future.key  # type: ignore[no-any-return]  # Dask's keys may also be tuples

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise ExecutorClosed(what)

    def _check_possible(self, task: Task[Any, Any]) -> None:
        offers: Sequence[Offer] = getattr(self._gateway, "offers", ())
        if offers:
            options = task.options
            waiting = WaitingTask(
                task=TaskId(task.name), request=options.request, priority=(), pool=options.pool
            )
            check_possible(NodeIndex(), offers, waiting, now=0.0)

    # -- the cluster ------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The Dask client: delayed, arrays and dataframes run on the same cluster.

        Raises
        ------
        ExecutorClosed
            The executor has been shut down.
        """
        self._check_open("use its Dask client")
        return self._gateway.client  # type: ignore[attr-defined]  # a DaskGateway's

    @property
    def nodes(self) -> dict[str, NodeShape]:
        """The nodes by name, and what each offers; none once it is closed."""
        return dict(self._cluster.shapes) if self._cluster and not self._is_closed else {}

    @property
    def dashboard(self) -> str | None:
        """Where the dashboard is and how to get there; None where there is none."""
        return getattr(self._cluster, "dashboard", None)

    @property
    def run_folder(self) -> Path | None:
        """The folder with the logs of this run; None for a cluster inside this process."""
        run = getattr(self._cluster, "run", None)
        return None if run is None else Path(run.path)

    def plan(self) -> list[Step]:
        """Say what would be asked of the batch system next and why, and what not and why not.

        Returns
        -------
        list of Step
            Print one to read it.

        Raises
        ------
        InvalidRequest
            There are no pools.
        """
        steps: list[Step] = self._ask_pools("exadask_plan")
        return steps

    def scale(self, pool: str, *, nodes: int) -> None:
        """Ask for so many nodes of a pool, from now on and whatever waits.

        Parameters
        ----------
        pool : str
            The pool.
        nodes : int
            Nodes to have, rounded up to whole allocations [nodes]; 0 gives all back.

        Raises
        ------
        InvalidRequest
            There is no such pool, that is no number of nodes, or the pools follow what waits
            (``scale="manual"`` is not set).
        """
        self._ask_pools("exadask_scale", pool=pool, nodes=nodes)

    def status(self) -> FleetSummary:
        """Say how the pools and their allocations are.

        Raises
        ------
        InvalidRequest
            There are no pools.
        """
        summary: FleetSummary = self._ask_pools("exadask_summary")
        return summary

    def _ask_pools(self, question: str, **arguments: Any) -> Any:
        self._check_open("ask about its pools")
        if self.run_folder is None:
            raise InvalidRequest(
                "this executor has no pools: its cluster is in one process.",
                'Open it with site="..." or pools=[...].',
            )
        return self._gateway.ask(question, **arguments)  # type: ignore[attr-defined]  # a DaskGateway's

    # -- the end ----------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the cluster when those that were submitted are done.

        Parameters
        ----------
        wait : bool
            Whether to return only when all is ended. Otherwise it ends in the background.
        cancel_futures : bool
            Whether to cancel the tasks that have not begun.
        """
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if was_closed or self._cluster is None:
            return
        if self in _open:
            _open.remove(self)
        if cancel_futures:
            for future in list(self._unfinished):
                if not future.running():
                    future.cancel()
        closing = threading.Thread(target=self._finish, name="exadask-shutdown")
        closing.start()
        if wait:
            closing.join()

    def _finish(self) -> None:
        concurrent.futures.wait(list(self._unfinished))
        assert self._cluster is not None
        self._cluster.close()

    def _abandon(self) -> None:
        """End everything at once: the user wants out."""
        for future in list(self._unfinished):
            future.cancel()
        self.shutdown()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        if exc_type is not None and issubclass(exc_type, (KeyboardInterrupt, SystemExit)):
            self._abandon()
        else:
            self.shutdown()
        return None

    def __reduce__(self) -> Any:
        raise NotSerializable(
            "an executor",
            "an object that is pickled",
            "a task finds the cluster that it runs in by itself: call .submit() in it",
        )

    def __repr__(self) -> str:
        if self._is_closed:
            return "<Executor: closed>"
        counts = [f"{name}: {shape}" for name, shape in self.nodes.items()] or ["no node yet"]
        return f"<Executor: {'; '.join(counts[:4])}{' ...' if len(counts) > 4 else ''}>"

    def _repr_html_(self) -> str:
        from exadask.monitor.html import executor_html

        return executor_html(self.nodes, is_closed=self._is_closed)


class Submitter:
    """An executor with chosen options; made by `Executor.options`."""

    def __init__(self, executor: Executor, options: Mapping[str, Any]) -> None:
        TaskOptions.parse(options)  # complain now, not at the first call
        self._executor, self._options = executor, dict(options)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a callable as a task; see `Executor.submit`."""
        task = _as_task(fn).with_options(**self._options)
        return self._executor.submit_task(task, args, kwargs)

    def map(
        self, fn: Callable[..., T], /, *iterables: Iterable[Any], progress: bool = False
    ) -> list[Future[T]]:
        """Run a callable for each tuple of elements; see `Task.map`."""
        task = _as_task(fn).with_options(**self._options)
        return self._executor.map_task(task, iterables, progress=progress)


def active_executor(name: str) -> Executor:
    """Find the executor that was opened last and is still open; in a task, the task's own.

    Raises
    ------
    NoActiveExecutor
        There is none.
    """
    global _nested
    child = sys.modules.get("exadask.runtime.child")
    link = getattr(child, "link", None)
    if link is not None:
        if _nested is None:
            from exadask.runtime.nested import NestedGateway

            _nested = Executor._of_task(NestedGateway(link))
        return _nested
    if not _open:
        raise NoActiveExecutor(name)
    return _open[-1]


class _Chunk:
    """Several calls in one task."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__name__ = getattr(fn, "__name__", "chunk")

    def __call__(self, chunk: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [self.fn(*args) for args in chunk]


def _chunks(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk


def _as_task(fn: Any) -> Task[Any, Any]:
    if isinstance(fn, Task):
        return fn
    if not callable(fn):
        raise InvalidRequest(
            f"submit() got {fn!r}, which cannot be called.",
            "Give the function first and its arguments after it: submit(f, x), not submit(f(x)).",
        )
    return Task(fn, _plain)


def _send_main_by_value() -> None:
    """Treat the main module of a process that `multiprocessing` spawned like any other main."""
    main = sys.modules.get("__mp_main__")
    if main is not None:
        import cloudpickle

        cloudpickle.register_pickle_by_value(main)


def _close_at_exit() -> None:
    """Finish what was submitted before the interpreter goes, as the standard library does.

    `atexit` comes too late: thread pools, Dask's among them, take no more work by then.
    """
    if not getattr(_close_all, "is_registered", False):
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_close_all)
        _close_all.is_registered = True  # type: ignore[attr-defined]  # once is enough


def _close_all() -> None:
    for executor in list(_open):
        try:
            executor.shutdown()
        except KeyboardInterrupt:
            executor._abandon()
