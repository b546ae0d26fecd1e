"""`Executor`: a `concurrent.futures.Executor` over everything below it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from exadask import lifetime
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
from exadask.journal.learning import Learned
from exadask.journal.run import RunJournal, checkpoint_of, open_journal, resume_run
from exadask.mapped import Mapped
from exadask.opening import Cluster, open_cluster, split_settings
from exadask.packing import Kinds, TaskPacker, as_task
from exadask.resources import NodeShape
from exadask.runtime.call import Call, Gateway, Observer
from exadask.submitter import Submitter
from exadask.tasks import Task

if TYPE_CHECKING:
    from distributed import Client

    from exadask.core.events import Step
    from exadask.core.fleet_report import FleetSummary
    from exadask.pool import Pool

T = TypeVar("T")

_nested: Executor | None = None


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
    resume : str or Path, optional
        An earlier run, by its folder, its name or "latest": go on where it ended. A call gets its
        result if that run has it; see ``keep_results`` in `exadask.config.Config`.
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

    _journal: RunJournal | None

    def __init__(
        self,
        nodes: Sequence[NodeShape] | int | tuple[int, int] | None = None,
        *,
        site: str | None = None,
        pools: Sequence[Pool | Mapping[str, Any] | str] | None = None,
        attach: str | Path | None = None,
        resume: str | Path | None = None,
        **settings: Any,
    ) -> None:
        lifetime.send_main_by_value()
        config = split_settings(settings)[0]
        resumed = None if resume is None else resume_run(resume, config)
        run = None if resumed is None else resumed.folder
        with contextlib.ExitStack() as undo:
            if resumed is not None:
                undo.callback(resumed.lock.release)
            cluster = open_cluster(
                nodes, site=site, pools=pools, attach=attach, run=run, settings=settings
            )
            self._cluster: Cluster | None = cluster
            undo.callback(cluster.close)
            self._adopt(cluster.bundler, config.segment_bytes, Path(config.run_folder))
            folder = run or cluster.journal_folder()
            self._journal = open_journal(folder, config, cluster, resumed)
            undo.pop_all()
        lifetime.opened(self)

    @classmethod
    def _of_task(cls, gateway: Gateway) -> Executor:
        """Make the executor that a running task sees: the cluster it runs in."""
        self = cls.__new__(cls)
        self._cluster = None
        self._adopt(gateway, 2**20, None)
        return self

    def _adopt(self, gateway: Gateway, segment_bytes: int, runs: Path | None) -> None:
        self._gateway = gateway
        self._journal = None
        self._kinds, self._learned = Kinds(segment_bytes), Learned(runs)
        self._lock = threading.Lock()
        self._is_closed = False

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
        return self.submit_task(fn, args, kwargs)

    def broadcast(self, value: T) -> Future[T]:
        """Keep a value in the cluster, for many calls that have it as an argument.

        It is packed once, goes to each node once, and to the tasks there through shared memory. A
        process unpacks it once for all calls, so that no call may change it; the memory of arrays
        of a megabyte or more cannot be written to.

        Parameters
        ----------
        value : object
            Anything that can be pickled, without futures in it.

        Returns
        -------
        Future
            To be given as an argument; drop it, and the cluster does.

        Raises
        ------
        NotSerializable
            The value cannot be sent to another process.

        Examples
        --------
        >>> with Executor() as ex:
        ...     table = ex.broadcast(list(range(1000)))
        ...     sum(ex.map(lambda table, i: table[i], [table] * 10, range(10)))
        45
        """
        with self._lock:
            self._check_open("broadcast a value")
            call = self._kinds.data(value)
            if self._journal is not None:
                self._journal.remembered.identify_value(call, value)
            return self._submit(call)

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
        self,
        task: Task[Any, T] | Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Future[T]:
        """Run a task, or another callable; `Task.submit` calls this."""
        with self._lock:
            self._check_open("submit a task")
            return self._submit(self._call(self._packer(task), args, kwargs))

    def map_task(
        self, task: Task[Any, T], iterables: Sequence[Iterable[Any]], *, progress: bool = False
    ) -> list[Future[T]]:
        """Run a task for each tuple of elements; `Task.map` calls this."""
        if not iterables:
            raise InvalidRequest("map() got nothing to map over.", "Give it at least one iterable.")
        futures = list(self._sent(task, zip(*iterables)))  # noqa: B905  # as map does
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
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Give the results for each tuple of elements, in their order, as they come.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables : iterable
            Its arguments; the shortest ends it. Where all have a length they are consumed at once.
            A generator is consumed as results are taken, so that millions of calls need no memory.
        timeout : float, optional
            How long to wait for all of it, from now [s].
        chunksize : int, optional
            Calls that travel together; see ``bundle`` of `exadask.task`.
        buffersize : int, optional
            How many calls may be submitted whose results have not been taken [calls]. By default
            all that have a length; of others as many as keep the cluster busy.

        Raises
        ------
        TimeoutError
            A result was not there in time.
        ValueError
            ``chunksize`` or ``buffersize`` is less than one.
        """
        for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} is not valid: give a whole number >= 1.")
        task = as_task(fn)
        if chunksize is not None and chunksize > 1:
            task = task.with_options(bundle=chunksize)
        if buffersize is None and not all(isinstance(one, Sized) for one in iterables):
            buffersize = self._gateway.window()
        calls = self._calls(task, iterables)
        mapped = Mapped(self._gateway, calls, self._hand_over, window=buffersize, timeout=timeout)
        return mapped.results()

    def _hand_over(self, calls: Sequence[Call], observer: Observer) -> None:
        """Submit calls of one kind."""
        with self._lock:
            self._check_open("submit tasks")
            if self._journal is not None:
                calls = [one for one in calls if one.digest is None or not self._journal.find(one)]
            if calls and not any(call.inputs for call in calls):
                self._gateway.submit_all(calls, observer)
                return
            for call in calls:
                self._gateway.submit(call, observer)

    def _calls(self, task: Task[Any, Any], iterables: Sequence[Iterable[Any]]) -> Iterator[Call]:
        """Give the calls of one task as they are asked for; its function is packed once."""
        with self._lock:
            self._check_open("submit tasks")
            packer = self._packer(task)
        arguments = zip(*iterables)  # noqa: B905  # as map does
        if packer.kind.checkpoint or self._wants(packer):
            return (self._call(packer, args, {}) for args in arguments)
        return packer.calls(arguments, self._input_of)

    def _sent(self, task: Task[Any, T], calls: Iterable[tuple[Any, ...]]) -> Iterator[Future[T]]:
        """Submit calls of one task as they are asked for; its function is packed once."""
        with self._lock:
            self._check_open("submit tasks")
            packer = self._packer(task)
        for args in calls:
            with self._lock:
                self._check_open("submit a task")
                future: Future[T] = self._submit(self._call(packer, args, {}))
            yield future

    def _packer(self, task: Any) -> TaskPacker:
        offers: Sequence[Offer] = getattr(self._gateway, "offers", ())
        packer = self._kinds.packer(self._learned.resolved(task, offers))
        if offers and packer.possible_on is not offers:
            name, request, pool = packer.kind.name, packer.kind.request, packer.kind.pool
            task = WaitingTask(task=TaskId(name), request=request, priority=(), pool=pool)
            check_possible(NodeIndex(), offers, task, now=0.0)
            packer.possible_on = offers
        return packer

    def _wants(self, packer: TaskPacker) -> bool:
        return self._journal is not None and self._journal.remembered.wants(packer.kind)

    def _call(self, packer: TaskPacker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = packer.call(args, kwargs, self._input_of)
        if self._journal is not None and self._wants(packer):
            self._journal.remembered.identify(call, packer.task, args, kwargs)
        if call.kind.checkpoint:
            call.checkpoint = checkpoint_of(call, self._journal)
        return call

    def _submit(self, call: Call) -> Future[Any]:
        future: Future[Any] = Future(self._gateway, call)
        if call.digest is not None and self._journal is not None and self._journal.find(call):
            future.finished(call)
        else:
            self._gateway.submit(call, future)
        return future

    def _input_of(self, future: Any, name: str) -> Any:
        """Give what the value of a future among the arguments comes from."""
        if isinstance(future, Future):
            if future._gateway is not self._gateway:
                raise InvalidRequest(
                    f"task {name!r} got the future of {future.name!r}, which belongs to another "
                    "executor (perhaps one that is closed).",
                    "Pass its result() instead.",
                )
            return future._call
        client = self._client
        if client is None or future.client.scheduler.addr != client.scheduler.addr:
            raise InvalidRequest(
                f"task {name!r} got the Dask future {future.key!r} of another cluster.",
                "Pass its result() instead, or make it with Executor.client.",
            )
        return future

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise ExecutorClosed(what)

    @property
    def _client(self) -> Client | None:
        return self._cluster.gateway.client if self._cluster is not None else None

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
        client = self._client
        if client is None:
            raise InvalidRequest("a task has no Dask client of its own.", "Submit to its executor.")
        return client

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
        """The folder of this run, with its logs and its journal; None where it has none."""
        run = getattr(self._cluster, "run", None)
        if run is None and self._journal is not None:
            run = self._journal.folder
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
        if getattr(self._cluster, "run", None) is None:
            raise InvalidRequest(
                "this executor has no pools: its cluster is in one process.",
                'Open it with site="..." or pools=[...].',
            )
        assert self._cluster is not None, "an executor with a run folder has a cluster"
        return self._cluster.gateway.ask(question, **arguments)

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
        lifetime.closed(self)
        if cancel_futures:
            for one in self._cluster.bundler.unfinished():
                if not one.running():
                    one.cancel()
        closing = threading.Thread(target=self._finish, name="exadask-shutdown")
        closing.start()
        if wait:
            closing.join()

    def _finish(self) -> None:
        assert self._cluster is not None
        self._cluster.bundler.wait_until_idle()
        if self._journal is not None:
            self._journal.settle()
        try:
            self._cluster.close()
        finally:
            if self._journal is not None:
                self._journal.close()

    def abandon(self) -> None:
        """End everything at once: the user wants out."""
        assert self._cluster is not None
        for one in self._cluster.bundler.unfinished():
            one.cancel()
        self.shutdown()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        if exc_type is not None and issubclass(exc_type, (KeyboardInterrupt, SystemExit)):
            self.abandon()
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


def broadcast(value: T) -> Future[T]:
    """Keep a value in the cluster of the active executor; see `Executor.broadcast`."""
    return active_executor("broadcast").broadcast(value)


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
    last = lifetime.last_opened()
    if last is None:
        raise NoActiveExecutor(name)
    return last
