"""What travels between client, agent and child process about one task."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from exadask.inside import Gang
from exadask.runtime.kind import Kind
from exadask.runtime.parcel import Parcel
from exadask.runtime.segment import Segment

_LONGEST_TEXT = 8000

INLINE_OUTPUT_BYTES = 4096
"""What a task has written travels with its result up to this size [bytes]."""

Stream = Literal["stdout", "stderr"]


class _Keyed:
    """What Dask knows by its key."""

    __slots__ = ()

    key: str

    def __dask_tokenize__(self) -> str:
        """Spare Dask a look inside: the key is unique."""
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(_Keyed):
    """One call of a function, ready to travel.

    Parameters
    ----------
    key : str
        Its name in the cluster.
    kind : Kind
        What it has in common with others.
    arguments : Parcel
        Its arguments.
    checkpoint : str, optional
        Its folder for checkpoints.
    """

    key: str
    kind: Kind
    arguments: Parcel
    checkpoint: str | None = None

    def emptied(self) -> Job:
        """Give the same without its arguments, for who only wants to know what it is."""
        return replace(self, arguments=Parcel(b""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(_Keyed):
    """A value that is kept in the cluster, on every node where a call has needed it."""

    key: str
    kind: Kind
    value: Parcel

    def emptied(self) -> Data:
        """Give the same without its value."""
        return replace(self, value=Parcel(b""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle(_Keyed):
    """Several calls that any slot treats alike, ready to travel as one task.

    Parameters
    ----------
    key : str
        Its name in the cluster.
    kinds : tuple of Kind
        The kinds of the calls; all ask for the same, in the same environment.
    calls : bytes
        The pickled arguments of the calls: a list of tuple (as they are), `WithKeywords`, Parcel or
        `WithInputs`. Only a slot unpacks it.
    kind_of : tuple of int, optional
        The index of each call's kind. None: all are of the first.
    count : int
        How many calls there are [calls].
    expected_s : float
        How long one of them is believed to last [s]; nan if that is not known.
    bound_s : float
        When it has lasted so long, it begins no other call [s].
    """

    key: str
    kinds: tuple[Kind, ...]
    calls: bytes
    count: int
    kind_of: tuple[int, ...] | None
    expected_s: float
    bound_s: float

    @property
    def kind(self) -> Kind:
        """What holds for all its calls."""
        return self.kinds[0]

    def emptied(self) -> Bundle:
        """Give the same without the arguments of its calls."""
        return replace(self, calls=b"")

    def kind_at(self, index: int) -> Kind:
        """Give the kind of one call."""
        return self.kinds[self.kind_of[index]] if self.kind_of is not None else self.kind

    def one(self, index: int, shared: Sequence[Any]) -> tuple[Job, tuple[Any, ...]]:
        """Make a job of one call; gives its inputs too, some of which are the bundle's."""
        arguments, inputs = pickle.loads(self.calls)[index], tuple[Any, ...]()
        if isinstance(arguments, WithInputs):
            inputs = tuple(shared[x] if isinstance(x, int) else x for x in arguments.inputs)
            arguments = arguments.arguments
        if not isinstance(arguments, Parcel):
            pair = arguments if isinstance(arguments, WithKeywords) else (arguments, {})
            arguments = Parcel(pickle.dumps(tuple(pair), 5))
        return Job(key=self.key, kind=self.kind_at(index), arguments=arguments), inputs


def filled(work: Job | Bundle, inputs: tuple[Any, ...]) -> tuple[Job | Bundle, tuple[Any, ...]]:
    """Put functions that travelled apart into their kinds; gives the other inputs too."""
    kinds, rest = [], list(inputs)
    for kind in work.kinds if isinstance(work, Bundle) else (work.kind,):
        kinds.append(kind.filled(rest.pop(0).shared_as("")) if kind.is_hollow else kind)
    if isinstance(work, Bundle):
        return replace(work, kinds=tuple(kinds)), tuple(rest)
    return replace(work, kind=kinds[0]), tuple(rest)


class WithKeywords(NamedTuple):
    """Arguments that travel as they are, some of them by name."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class WithInputs(NamedTuple):
    """Packed arguments, and the values that they lack: packed, or as indices of the bundle's."""

    arguments: Parcel
    inputs: tuple[Parcel | int, ...]


class Usage(NamedTuple):
    """What a task really used.

    Parameters
    ----------
    cpu_s : float
        Processor time of the task and of its processes that ended [s]. For calls of less than some
        hundredths of a millisecond it is taken to be the wall time.
    wall_s : float
        Time from start to end [s].
    peak_bytes : int
        Largest memory of its processes together, as far as it was seen [bytes]. Calls of less than
        some hundredths of a second are measured several together.
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Agent to child: run this job with these inputs on these cores; the node stays so long [s].

    The cores are in the order of the GPUs that they are near.
    """

    job: Job
    inputs: tuple[Parcel, ...]
    cores: tuple[int, ...]
    n_cores: int
    node: str
    left_s: float | None = None
    gang: Gang | None = None

    @property
    def kind(self) -> Kind:
        """What holds for it."""
        return self.job.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBundle:
    """Agent to child: run these calls, from `start` on, one after the other, on these cores.

    Progress and small results go by way of the board, whose memory comes with the first bundle.
    """

    bundle: Bundle
    inputs: tuple[Parcel, ...]
    start: int
    board: Segment | None
    cores: tuple[int, ...]
    n_cores: int
    node: str
    inline_bytes: int
    left_s: float | None = None

    @property
    def kind(self) -> Kind:
        """What holds for all its calls."""
        return self.bundle.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception on its way to the user.

    Parameters
    ----------
    exception : Parcel
        The exception itself.
    summary : str
        One line: its type and message.
    traceback : str
        Where it was raised, without exadask's own frames.
    may_retry : bool
        Whether another attempt may help.
    error : str
        The class of the exception, without its module.
    is_limit : bool
        Whether the call was ended at a limit of its own, and not one that it waited for.
    """

    exception: Parcel
    summary: str
    traceback: str = ""
    may_retry: bool = True
    error: str = ""
    is_limit: bool = False

    @property
    def problem(self) -> Problem:
        """Say it in words, for the record."""
        first, _, rest = self.summary.partition("\n")
        return Problem(self.error, first[:_LONGEST_TEXT], (self.traceback or rest)[-_LONGEST_TEXT:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Child to agent: how the job ended."""

    outcome: Parcel | Failure
    usage: Usage
    has_children: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDone:
    """Child to agent: it will begin no other call of the bundle.

    Parameters
    ----------
    stop : int
        All calls before this one were begun, unless they were dropped.
    has_children : bool
        Whether processes are left behind.
    """

    stop: int
    has_children: bool


class Item(NamedTuple):
    """How one call of a bundle ended.

    Parameters
    ----------
    place : int
        Its index in the bundle.
    cpu_s, wall_s, peak_bytes
        What it used; see `Usage`.
    outcome : object
        A Failure, a Parcel, or the value itself if it is of a plain kind. In a message of its own
        (a result or an output that is too large for the board) it may have segments.
    stdout, stderr : bytes or (int, int)
        What it wrote; where that is in the capture file, if it is much [bytes].
    """

    place: int
    cpu_s: float
    wall_s: float
    peak_bytes: int
    outcome: object
    stdout: bytes | tuple[int, int] = b""
    stderr: bytes | tuple[int, int] = b""

    def packed(self) -> bytes:
        """Pack it, without the name of its class: there are many."""
        return pickle.dumps(tuple(self), 5)


class Kept(NamedTuple):
    """Stands for the outcome of a call whose result is the result of the whole bundle's task."""

    nbytes: int


class Problem(NamedTuple):
    """Why an attempt failed, in words.

    Parameters
    ----------
    error : str
        The class of the error, without its module.
    summary : str
        One line: the class and the message.
    detail : str
        Where it was raised, or what the task wrote last.
    """

    error: str
    summary: str
    detail: str = ""


class Report(NamedTuple):
    """What became of one attempt.

    Parameters
    ----------
    node : str
        Where it was.
    usage : Usage, optional
        What it used.
    stdout, stderr : bytes, optional
        What it wrote, if it is little.
    value : bytes, optional
        Its packed result, if it is small.
    problem : Problem, optional
        Why it has none.
    """

    node: str
    usage: Usage | None = None
    stdout: bytes | None = None
    stderr: bytes | None = None
    value: bytes | None = None
    problem: Problem | None = None


class TaskFailed(Exception):
    """How a failure passes through Dask, which must not unpack the user's exception."""

    def __init__(self, key: str, name: str, failure: Failure) -> None:
        super().__init__(key, name, failure)
        self.key, self.name, self.failure = key, name, failure

    def __str__(self) -> str:
        text = f"task {self.name!r}: {self.failure.summary}\n{self.failure.traceback}"
        return text[:_LONGEST_TEXT]  # Dask would replace the whole exception, were it longer


@dataclass(frozen=True, slots=True)
class Ask:
    """Child to agent: a task that itself submits tasks wants something of the cluster."""

    ticket: int
    verb: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Agent to child: what came of an `Ask`; an exception is raised there."""

    ticket: int
    value: Any


@dataclass(frozen=True, slots=True)
class News:
    """Agent to child: a call of the `Observer` of a task that was submitted there."""

    key: str
    verb: str
    arguments: tuple[Any, ...]
