"""A call on this side of the cluster, who wants to know what becomes of it, and the way there."""

from __future__ import annotations

import itertools
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from exadask.runtime.job import Report, Stream, Usage, WithKeywords
from exadask.runtime.kind import Kind
from exadask.runtime.parcel import Parcel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distributed import Future as DaskFuture

    Arguments = Parcel | tuple[Any, ...] | WithKeywords


LEAST_WINDOW = 2**15
"""So many calls in flight keep a few slots busy, be they as short as they may [calls]."""

_PROCESS = os.urandom(8).hex()
_serial = itertools.count()
_NUMBERED = re.compile(r"-[0-9a-f]{16}j[0-9a-f]+n([0-9a-f]+)(?:-up\d+)?$")


def new_key(name: str, number: int = 0, journal: int = 0) -> str:
    """Make a name that no other call, task or client of the same cluster has.

    Parameters
    ----------
    name : str
        What it begins with.
    number : int
        The call's number in a journal, where it is found again by that; 0 if it has none.
    journal : int
        Which of the journals of this process that is.
    """
    if not number:
        return f"{name}-{_PROCESS}{next(_serial):08x}"
    return f"{name}-{_PROCESS}j{journal:x}n{number:x}"


def number_in(key: str) -> int | None:
    """Read the number of a call from its name; None if it has none."""
    match = _NUMBERED.search(key)
    return None if match is None else int(match[1], 16)


class Seat(NamedTuple):
    """Where an attempt runs.

    Parameters
    ----------
    node : str
        The node.
    cores : tuple of int
        The ids of its cores there.
    gpus : tuple of str
        The ids of its GPUs there, or of the one that it shares.
    mates : tuple of str
        The other nodes of a gang.
    """

    node: str
    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    mates: tuple[str, ...] = ()


class Call:
    """One call that was submitted here.

    Parameters
    ----------
    kind : Kind
        What it has in common with others.
    key : str, optional
        Its name in the cluster; by default a new one, when it is asked for.
    arguments : Parcel, tuple or WithKeywords
        Its arguments; as they are if nothing in them can ever change.
    inputs : tuple of Call or distributed.Future
        What gives the values of the futures among its arguments, in the order of its parcel.

    Attributes
    ----------
    observer : Observer or None
        Who wants to know; None once there is nothing more to tell.
    function : str
        What it has in common with calls that last as long.
    bundle : int or None
        How many calls its user wants in a bundle [calls]; None: as many as suit.
    most_together : int or None
        How many calls may be in its bundle at most [calls]; None: as many as suit.
    nbytes : int
        Size of its arguments [bytes]; 0 if they are tiny.
    is_single : bool
        Whether it must travel alone.
    is_dropped : bool
        Whether nobody wants it any more.
    n_retried : int
        Attempts that followed an exception, in bundles.
    value : object
        Its result, if that is here: a Parcel, or the value itself if it is of a plain kind.
    has_value : bool
        Whether it is.
    remote : distributed.Future or None
        Keeps the task whose result is this call's in the cluster.
    error : BaseException or None
        Why it has no result.
    place : object
        The task that it is, or in which it travels; None while it waits here.
    index : int
        Its place in the bundle in which it travels.
    dependents : list of Call or None
        Calls that wait for its result.
    n_missing : int
        How many of its inputs it waits for.
    number : int
        Its number in the journal; 0 if it has none.
    journal : int
        Which of the journals of this process that is.
    submitted : float
        When it was submitted, if that is written down [s since the epoch].
    digest : bytes or None
        Names what it computes, so that its result can be found again; None if nobody wants that.
    checkpoint : str or None
        Its folder for checkpoints.
    is_lasting : bool
        Whether the digest is good for other runs too.
    check : callable or None
        Says of a result that was found whether it still is what it was.
    settle : callable or None
        Called when its inputs are there, before it is sent: whether its result is there already.
    """

    # Defaults of the class: there are millions of calls, and most need no more than three of these.
    inputs: tuple[Call | DaskFuture, ...] = ()
    observer: Observer | None = None
    is_single = is_dropped = has_value = is_lasting = False
    n_retried = index = n_missing = nbytes = number = journal = 0
    bundle: int | None = None
    most_together: int | None = None
    value: Any = None
    remote: DaskFuture | None = None
    error: BaseException | None = None
    place: Any = None
    dependents: list[Call] | None = None
    submitted = 0.0
    digest: bytes | None = None
    checkpoint: str | None = None
    check: Callable[[object], bool] | None = None
    settle: Callable[[], bool] | None = None
    _key: str | None = None

    def __init__(
        self,
        kind: Kind,
        arguments: Arguments,
        inputs: tuple[Call | DaskFuture, ...] = (),
        key: str | None = None,
    ) -> None:
        self.kind, self.arguments, self.function = kind, arguments, kind.source
        if kind.bundle is not None:
            self.bundle = kind.bundle
        if type(arguments) is Parcel:
            self.nbytes = arguments.nbytes
        if kind.is_single:
            self.is_single = True
        if inputs:
            self.inputs = inputs
        if key is not None:
            self._key = key

    @property
    def key(self) -> str:
        """Its name in the cluster: unique."""
        if self._key is None:
            self._key = new_key(self.kind.name, self.number, self.journal)
        return self._key

    def climb(self, kind: Kind) -> None:
        """Ask for more from now on; the cluster must not take it for the call that failed."""
        self._key = f"{self.key.partition('-up')[0]}-up{kind.rung}"
        self.kind, self.place, self.settle = kind, None, None

    @property
    def known_key(self) -> str | None:
        """Its name, if anybody has asked for it."""
        return self._key

    def __repr__(self) -> str:
        return f"<Call {self.key}>"


class Observer(Protocol):
    """Who wants to know what becomes of calls; called on the gateway's thread.

    Attributes
    ----------
    wants_reports : bool
        Whether it wants to know of each attempt.
    """

    wants_reports: bool

    def placed(self, call: Call, node: str) -> None:
        """Take the news that a call has a share of a node and starts."""

    def reported(self, call: Call, report: Report) -> None:
        """Take the report of one attempt."""

    def finished(self, call: Call) -> None:
        """Take the news that the result exists: as the call's value, or in the cluster."""

    def failed(self, call: Call, error: BaseException) -> None:
        """Take the news that there will never be a result."""

    def cancel(self) -> object:
        """End what it observes: nobody wants it any more."""

    def running(self) -> bool:
        """Whether what it observes has begun."""


class Record(Protocol):
    """Who writes down what becomes of calls; called on any thread, and returns at once."""

    def submitted(self, calls: Sequence[Call], observer: Observer) -> None:
        """Note that calls were handed over."""

    def placed(self, call: Call, seat: Seat) -> None:
        """Note that an attempt begins."""

    def reported(self, call: Call, report: Report, seat: Seat) -> None:
        """Note that an attempt has ended."""

    def passed(self, calls: Passed) -> None:
        """Note short calls of a map, of which nobody wants to know singly, and that are done."""

    def put_back(self, calls: Sequence[Call], *, is_lost: bool) -> None:
        """Note that calls wait again: their node is lost, or they had not begun where they were."""

    def finished(self, call: Call, observer: Observer) -> None:
        """Note that a result exists: as the call's value, or in the cluster."""

    def done(self, call: Call, report: Report, seat: Seat, observer: Observer) -> None:
        """Note that an attempt has ended, with a result that is here."""

    def failed(self, call: Call, error: BaseException | None, observer: Observer) -> None:
        """Note that there will be no result; without an error: nobody wants it any more."""

    def reused(self, call: Call) -> None:
        """Note that a result was there already, so that the call need not run."""


class Passed(NamedTuple):
    """Short calls that ran one after the other.

    Parameters
    ----------
    kind : Kind
        What they have in common.
    observer : Observer
        Who submitted them.
    seat : Seat
        Where they ran.
    n_calls : int
        How many they are [calls].
    usage : Usage
        What they used together.
    """

    kind: Kind
    observer: Observer
    seat: Seat
    n_calls: int
    usage: Usage


class Gateway(Protocol):
    """The way to a cluster: through a Dask client, or from inside a task through its agent.

    Attributes
    ----------
    lends : bool
        Whether it belongs to a running task, which lends its share out while it waits.
    """

    lends: bool

    def submit(self, call: Call, observer: Observer) -> None:
        """Hand over a call; returns at once."""

    def submit_all(self, calls: Sequence[Call], observer: Observer) -> None:
        """Hand over several calls, none of which has inputs; returns at once."""

    def cancel(self, call: Call) -> None:
        """End a call, whether it waits or runs."""

    def fetch(self, call: Call) -> Any:
        """Bring a result here; blocks. Gives a Parcel, or the object itself."""

    def explain(self, call: Call) -> str:
        """Say what a call waits for; blocks."""

    def output(self, call: Call, stream: Stream) -> bytes:
        """Bring what a call has written; blocks."""

    def forget(self, call: Call) -> None:
        """Let go of a call that nobody here wants to know of any more; it runs to its end."""

    def window(self) -> int:
        """Say how many calls keep the cluster busy, whatever they are [calls]."""

    def lend(self) -> bool:
        """Lend the share of the running task out while it waits, if it can be.

        Returns
        -------
        bool
            Whether the caller must end it, by `reclaim` or `reclaim_soon`.
        """

    def reclaim(self) -> None:
        """Wait until the share is back, unless the task still waits for something else."""

    def reclaim_soon(self) -> None:
        """Ask for the share, and do not wait for it."""
