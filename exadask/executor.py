"""`Executor`: a `concurrent.futures.Executor` over everything below it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from exadask import lifetime
from exadask.errors import (
    ExecutorClosed,
    InvalidRequest,
    NotSerializable,
)
from exadask.future import Future
from exadask.handover import Handover
from exadask.intake import Intake
from exadask.journal.run import RunJournal, open_journal, resume_run
from exadask.mapped import Mapped
from exadask.opening import Cluster, open_cluster, split_settings
from exadask.packing import as_task
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
        run = None if resumed is None else resumed.earlier
        with contextlib.ExitStack() as undo:
            if resumed is not None:
                undo.callback(resumed.lock.release)
            cluster = open_cluster(
                nodes, site=site, pools=pools, attach=attach, run=run, settings=settings
            )
            self._cluster: Cluster | None = cluster
            undo.callback(cluster.close)
            self._adopt(cluster.bundler, config.segment_bytes, Path(config.run_folder))
            folder = run.folder if run is not None else cluster.journal_folder()
            self._intake.journal = open_journal(folder, config, cluster, resumed)
            undo.pop_all()
        lifetime.opened(self)

    @classmethod
    def of_task(cls, gateway: Gateway) -> Executor:
        """Make the executor that a running task sees: the cluster it runs in."""
        self = cls.__new__(cls)
        self._cluster = None
        self._adopt(gateway, 2**20, None)
        return self

    def _adopt(self, gateway: Gateway, segment_bytes: int, runs: Path | None) -> None:
        self._gateway = gateway
        self._intake = Intake(gateway, segment_bytes, runs, lambda: self._client)
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
            return self._intake.submit(self._intake.data(value))

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
            return self._intake.submit(self._intake.call(self._intake.packer(task), args, kwargs))

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
            self._intake.submit_all(calls, observer)

    def _calls(self, task: Task[Any, Any], iterables: Sequence[Iterable[Any]]) -> Iterator[Call]:
        """Give the calls of one task as they are asked for; its function is packed once."""
        with self._lock:
            self._check_open("submit tasks")
            packer = self._intake.packer(task)
        return self._intake.calls(packer, zip(*iterables))  # noqa: B905  # as map does

    def _sent(self, task: Task[Any, T], calls: Iterable[tuple[Any, ...]]) -> Iterator[Future[T]]:
        """Submit calls of one task as they are asked for; its function is packed once."""
        with self._lock:
            self._check_open("submit tasks")
            packer = self._intake.packer(task)
        for args in calls:
            with self._lock:
                self._check_open("submit a task")
                future: Future[T] = self._intake.submit(self._intake.call(packer, args, {}))
            yield future

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise ExecutorClosed(what)

    @property
    def _journal(self) -> RunJournal | None:
        return self._intake.journal

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

    def detach(self, futures: Any = None, *, name: str = "latest") -> None:
        """End this session, and leave all that is not done to the scheduler that stands.

        Nothing starts anew: what runs goes on, and what waits is sent by a process beside the
        scheduler. Loops over `map` end; other sessions get the futures with `take_back`, or with
        `exadask.attach`.

        Parameters
        ----------
        futures : Future, list, dict, ..., optional
            Futures that are to be found again, in any arrangement of plain containers. None: the
            list of those that are not done.
        name : str
            What they are called from now on.

        Raises
        ------
        InvalidRequest
            The scheduler ends with this process, there is no future in it, or the name is used.
        NotSerializable
            There is something else in it that cannot be sent to another process.
        ClusterUnreachable
            Nobody takes them. If the error says so, they have been written nevertheless.
        """
        with self._lock:
            self._check_open("detach")
            handover = self.handover("detach")
            if futures is None:
                opened = self._cluster.bundler.unfinished()  # type: ignore[union-attr]  # attached
                futures = [one for one in opened if isinstance(one, Future)]
            handover.keep(futures)
            self._is_closed = True
        try:
            handover.leave(name)
        finally:
            self._is_closed = handover.is_giving  # otherwise nothing has changed
            if self._is_closed:
                self.let_go()

    def take_back(self, name: str | None = None) -> Any:
        """Take what an earlier session has left with `detach`, and go on with it.

        Parameters
        ----------
        name : str, optional
            What it was called. None: what was left last.

        Returns
        -------
        Future, list, dict, ...
            The futures, arranged as they were.

        Raises
        ------
        InvalidRequest
            There is nothing of that name.
        ClusterUnreachable
            Who has them does not answer.
        """
        with self._lock:
            self._check_open("take back what was left")
            return self.handover("take_back").take(name)

    def handover(self, what: str) -> Handover:
        """Give what passes calls to other processes; `exadask.deputy` calls this too.

        Raises
        ------
        InvalidRequest
            The scheduler ends with this process.
        """
        cluster = self._cluster
        if cluster is None or cluster.standing is None:
            raise InvalidRequest(
                f"{what}() needs a scheduler that stays when this process ends.",
                "Start one with: exadask up; then Executor(attach=...). Or resume the run later: "
                "Executor(resume=...).",
            )
        return Handover(cluster.bundler, cluster.standing)

    def let_go(self) -> None:
        """End this session; what is not done has gone on elsewhere."""
        assert self._cluster is not None, "only sessions have something to let go"
        self._is_closed = True
        lifetime.closed(self)
        if self._journal is not None:
            self._journal.settle()
        self._cluster.bundler.record = None
        self._finish(is_idle=True)

    def _finish(self, *, is_idle: bool = False) -> None:
        assert self._cluster is not None
        if not is_idle:
            self._cluster.bundler.wait_until_idle()
        if self._journal is not None and not is_idle:
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
