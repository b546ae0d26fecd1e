"""What travels between client, agent and child process about one task."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from exadask.resources import Resources
from exadask.runtime.parcel import Parcel
from exadask.runtime.segment import Segment

Isolation = Literal["process", "thread"]
_LONGEST_TEXT = 8000

INLINE_OUTPUT_BYTES = 4096
"""What a task has written travels with its result up to this size [bytes]."""

Stream = Literal["stdout", "stderr"]


def qualified_name(kind: type) -> str:
    """Name a class so that processes which cannot import it can compare it."""
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where the user's code lives: a task sees the same modules and the same directory."""

    cwd: str
    sys_path: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """State that a slot builds once and gives to every call as its first argument."""

    key: str
    function: Parcel


class Kind:
    """What all calls of one function with one set of options have in common.

    Parameters
    ----------
    name : str
        What its tasks are called.
    function : Parcel
        The function.
    source : str
        Where the function's code was written: calls of the same code last about as long.
    request : Resources
        What each call asks for.
    surroundings : Surroundings
        Where the user's code lives.
    env : tuple of (str, str)
        Environment variables.
    setup : Setup, optional
        State that a slot gives to every call.
    isolation : {"process", "thread"}
        Where a call runs.
    retry_on : tuple of str, optional
        Exceptions after which a call is tried again. None: all.
    priority : int
        Larger runs earlier.
    retries : int
        Attempts after the first that may follow an exception.
    pool : str, optional
        The pool that it is pinned to.
    bundle : int, optional
        How many calls travel together; 1 keeps each for itself. None: as many as suit.
    memo : bool
        Whether equal calls have the same result, in later runs too.
    rungs : tuple of Resources
        What a call asks for from rung to rung of a ladder; empty without one.

    Attributes
    ----------
    digest : bytes
        Names the packed function, so that a process which has it need not unpack it again.
    is_single : bool
        Whether its calls travel alone.
    is_data : bool
        Whether a "call" only keeps its arguments in the cluster, for other calls.
    data : object
        The call that keeps the function in the cluster, if it is large; another such cache.
    rung : int
        On which rung it is.
    above : Kind or None
        The same one rung up, once it has been asked for; another cache.
    lane : object
        Where these calls queue; a cache of `exadask.runtime.bundling`, which does not travel.
    """

    __slots__ = (
        "above",
        "bundle",
        "data",
        "digest",
        "env",
        "function",
        "is_data",
        "is_single",
        "isolation",
        "lane",
        "memo",
        "name",
        "pool",
        "priority",
        "request",
        "retries",
        "retry_on",
        "rung",
        "rungs",
        "setup",
        "source",
        "surroundings",
    )

    def __init__(
        self,
        *,
        name: str,
        function: Parcel,
        source: str,
        request: Resources,
        surroundings: Surroundings,
        env: tuple[tuple[str, str], ...] = (),
        setup: Setup | None = None,
        isolation: Isolation = "process",
        retry_on: tuple[str, ...] | None = None,
        priority: int = 0,
        retries: int = 0,
        pool: str | None = None,
        bundle: int | None = None,
        memo: bool = False,
        rungs: tuple[Resources, ...] = (),
    ) -> None:
        self.name, self.function, self.source = name, function, source
        self.request, self.surroundings, self.env, self.setup = request, surroundings, env, setup
        self.isolation, self.retry_on = isolation, retry_on
        self.priority, self.retries, self.pool, self.bundle = priority, retries, pool, bundle
        self.memo, self.rungs, self.rung = memo, rungs, 0
        self.digest = function.digest()
        self.is_single = bundle == 1 or isolation == "thread"
        self.is_data = False
        self.lane: Any = None
        self.data: Any = None
        self.above: Kind | None = None

    @property
    def is_hollow(self) -> bool:
        """Whether the function travels apart from it, as the first input of its task."""
        return self.function is None

    def filled(self, function: Parcel) -> Kind:
        """Give the same with its function."""
        whole = Kind.__new__(Kind)
        whole.__setstate__(self.__getstate__())
        whole.function = function
        return whole

    def __getstate__(self) -> tuple[Any, ...]:
        function = None if self.data is not None else self.function
        return (function, *(getattr(self, name) for name in _TRAVELLING))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.function = state[0]
        for name, value in zip(_TRAVELLING, state[1:], strict=True):
            setattr(self, name, value)
        self.lane = self.data = self.above = None

    def is_same(self, other: Kind) -> bool:
        """Whether calls of the other could as well be calls of this."""
        setups = [one.setup.key if one.setup else None for one in (self, other)]
        return setups[0] == setups[1] and all(
            getattr(self, name) == getattr(other, name) for name in _TRAVELLING if name != "setup"
        )

    def higher(self, error: str) -> Kind | None:
        """Give the same one rung up, if that helps after an error of this class."""
        if self.rung + 1 >= len(self.rungs):
            return None
        here, there = self.request, self.rungs[self.rung + 1]
        is_memory = error == "MemoryExceeded" and here.memory_bytes != there.memory_bytes
        is_time = error == "TimeExceeded" and here.time_s != there.time_s
        if not (is_memory or is_time):
            return None
        if self.above is None:
            self.above = Kind.__new__(Kind)
            self.above.__setstate__((self.function, *self.__getstate__()[1:]))
            self.above.request, self.above.rung = there, self.rung + 1
            self.above.data = self.data
        return self.above

    def may_retry(self, error: BaseException) -> bool:
        """Whether another attempt may follow this error, with what it asks for now."""
        if self.higher(type(error).__name__) is not None:
            return False  # its client places it one rung up
        if self.retry_on is None:
            return True
        return any(qualified_name(kind) in self.retry_on for kind in type(error).__mro__)


_CACHES = ("function", "data", "lane", "above")
_TRAVELLING = tuple(name for name in Kind.__slots__ if name not in _CACHES)


class _Keyed:
    """What Dask knows by its key."""

    __slots__ = ()

    key: str

    def __dask_tokenize__(self) -> str:
        """Spare Dask a look inside: the key is unique."""
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(_Keyed):
    """One call of a function, ready to travel."""

    key: str
    kind: Kind
    arguments: Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(_Keyed):
    """A value that is kept in the cluster, on every node where a call has needed it."""

    key: str
    kind: Kind
    value: Parcel


def data_kind(surroundings: Surroundings) -> Kind:
    """Make the kind of values that are kept for others; they go before all calls."""
    kind = Kind(
        name="broadcast",
        function=Parcel(b""),
        source="broadcast",
        request=Resources(),
        surroundings=surroundings,
        priority=2**30,
        bundle=1,
    )
    kind.is_data = True
    return kind


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
    """Agent to child: run this job with these inputs on these cores."""

    job: Job
    inputs: tuple[Parcel, ...]
    cores: tuple[int, ...]
    n_cores: int
    node: str

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
    """

    exception: Parcel
    summary: str
    traceback: str = ""
    may_retry: bool = True
    error: str = ""

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
