"""What calls have in common: a function, and how it is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from exadask.resources import Resources
from exadask.runtime.parcel import Parcel

Isolation = Literal["process", "thread"]


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
    checkpoint : bool
        Whether each call has a folder that outlives its attempts.
    notice_s : float, optional
        How long before its end a call is warned [s].

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
        "checkpoint",
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
        "notice_s",
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
        checkpoint: bool = False,
        notice_s: float | None = None,
    ) -> None:
        self.name, self.function, self.source = name, function, source
        self.request, self.surroundings, self.env, self.setup = request, surroundings, env, setup
        self.isolation, self.retry_on = isolation, retry_on
        self.priority, self.retries, self.pool, self.bundle = priority, retries, pool, bundle
        self.memo, self.rungs, self.rung = memo, rungs, 0
        self.digest = function.digest()
        self.checkpoint, self.notice_s = checkpoint, notice_s
        is_special = checkpoint or notice_s is not None
        self.is_single = bundle == 1 or isolation == "thread" or is_special
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
        """Whether its user wants another attempt after this error."""
        if self.retry_on is None:
            return True
        return any(qualified_name(kind) in self.retry_on for kind in type(error).__mro__)


_CACHES = ("function", "data", "lane", "above")
_TRAVELLING = tuple(name for name in Kind.__slots__ if name not in _CACHES)


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
