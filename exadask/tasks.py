"""What the user writes: ``@task`` on a function, and ``command`` for a shell command."""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from exadask.errors import InvalidRequest, shown
from exadask.resources import Resources
from exadask.texts import is_writable
from exadask.units import parse_seconds

if TYPE_CHECKING:
    from exadask.future import Future
    from exadask.runtime.kind import Isolation

P = ParamSpec("P")
T = TypeVar("T")

_KNOWN = (
    *("cores", "gpus", "memory", "time", "retries", "retry_on", "priority", "env", "setup"),
    *("isolation", "name", "pool", "bundle", "memo", "version"),
    *("checkpoint", "notice"),
)

_END_OF_COUNTS = 2**31  # what is larger cannot be sent: msgpack ends at 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Everything that can be said about how a task runs; built by `TaskOptions.parse`.

    Parameters
    ----------
    request : Resources
        What it asks of a node, at first.
    rungs : tuple of Resources
        What it asks for, from rung to rung of a ladder, `request` first; empty without a ladder.
    learns_memory : bool
        Whether its memory is to be learnt from earlier runs.
    retries : int
        Attempts after the first, when it raises; a lost node does not count.
    retry_on : tuple of type, optional
        Exceptions after which it is tried again. None: all.
    priority : int
        Larger runs earlier.
    env : tuple of (str, str)
        Environment variables.
    setup : callable, optional
        Builds the state that a slot keeps, and gives to every call as its first argument.
    isolation : {"process", "thread"}
        Where it runs.
    name : str, optional
        What to call it; the function's name by default.
    pool : str, optional
        The pool whose nodes it must run on. None: wherever it fits.
    bundle : int, optional
        How many calls travel together; 1 keeps each for itself. None: as many as suit.
    memo : bool
        Whether equal calls have the same result, in later runs too.
    version : str, optional
        What its user calls this version of the function; another one is another function.
    checkpoint : bool
        Whether each call has a folder that outlives its attempts.
    notice_s : float, optional
        How long before its end it is warned [s]. None: it is not.
    """

    request: Resources = field(default_factory=Resources)
    rungs: tuple[Resources, ...] = ()
    learns_memory: bool = False
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] | None = None
    priority: int = 0
    env: tuple[tuple[str, str], ...] = ()
    setup: Callable[[], Any] | None = None
    isolation: Isolation = "process"
    name: str | None = None
    pool: str | None = None
    bundle: int | None = None
    memo: bool = False
    version: str | None = None
    checkpoint: bool = False
    notice_s: float | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any], base: TaskOptions | None = None) -> TaskOptions:
        """Build options from what a user writes.

        Parameters
        ----------
        options : mapping
            ``cores``, ``gpus``, ``memory``, ``time``, ``retries``, ``retry_on``, ``priority``,
            ``env``, ``setup``, ``isolation``, ``name``, ``pool``, ``bundle``, ``memo``,
            ``version``, ``checkpoint``, ``notice``.
        base : TaskOptions, optional
            What holds where nothing is written.

        Raises
        ------
        InvalidQuantity
            A number, an amount of memory or a duration makes no sense.
        InvalidRequest
            An option is unknown, or has a value of the wrong kind.
        """
        base = base or cls()
        _reject_unknown(options)
        checked = {
            _FIELDS.get(name, name): check(options[name])
            for name, check in _CHECKS.items()
            if name in options
        }
        memory = options.get("memory")
        is_auto = isinstance(memory, str) and memory == "auto"
        learns_memory = is_auto if "memory" in options else base.learns_memory
        if is_auto:
            options = {**options, "memory": None}
        rungs = _merged_rungs(base.rungs or (base.request,), options)
        is_ladder = len(rungs) > 1
        if is_ladder and learns_memory:
            raise InvalidRequest(
                f'memory="auto" is a ladder by itself, and there is another from {rungs[0]}.',
                "Give the other options single values, or memory= a list too.",
            )
        return replace(
            base,
            request=rungs[0],
            rungs=rungs if is_ladder else (),
            learns_memory=learns_memory,
            **checked,
        )


class Task(Generic[P, T]):
    """A function that can be called here, or submitted to run as a task.

    Made by `task`. Calling it runs the plain function in this process.
    """

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., T], options: TaskOptions) -> None:
        self.function, self.options = function, options
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        """Run the function here and now."""
        if self.options.setup is not None:
            return self.function(_local_state(self.options.setup), *args, **kwargs)
        return self.function(*args, **kwargs)

    def submit(self, /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run the function as a task of the active executor.

        Parameters
        ----------
        *args, **kwargs
            The function's arguments; futures among them, at any depth, become their values.

        Returns
        -------
        Future
            Its result, now or later.

        Raises
        ------
        NoActiveExecutor
            No executor is open.
        ImpossibleRequest
            No node is large enough.
        NotSerializable
            An argument cannot be sent to another process.
        """
        from exadask.active import active_executor

        return active_executor(self.name).submit_task(self, args, kwargs)

    def map(self, /, *iterables: Iterable[Any], progress: bool = False) -> list[Future[T]]:
        """Submit one task for each element (or for each tuple of elements, as `map` does).

        Parameters
        ----------
        *iterables : iterable
            Arguments; the shortest ends it.
        progress : bool
            Whether to show a progress bar while they run.

        Returns
        -------
        list of Future
            In the order of the elements.
        """
        from exadask.active import active_executor

        return active_executor(self.name).map_task(self, iterables, progress=progress)

    def with_options(self, **options: Any) -> Task[P, T]:
        """Return the same task with other options.

        Examples
        --------
        >>> @task(cores=2)
        ... def train(x):
        ...     return x
        >>> train.with_options(cores=8).options.request
        Resources(cores=8)
        """
        return type(self)(self.function, TaskOptions.parse(options, self.options))

    @property
    def name(self) -> str:
        """What it is called in messages and in the cluster."""
        return self.options.name or name_of(self.function)

    @property
    def origin(self) -> str:
        """Its name and the module of its function: earlier runs know it by that."""
        return f"{self.name} {getattr(innermost(self.function), '__module__', '')}"

    @property
    def is_importable(self) -> bool:
        """Whether other processes can import it by its name."""
        found: Any = sys.modules.get(self.__module__)
        if found is None or self.__module__ == "__main__":
            return False
        for part in getattr(self, "__qualname__", "?").split("."):
            found = getattr(found, part, None)
        return found is self

    def __get__(self, instance: object, owner: type | None = None) -> Task[P, T]:
        """Bind to an instance, as functions in classes do."""
        if instance is None:
            return self
        return type(self)(self.function.__get__(instance, owner), self.options)

    def __repr__(self) -> str:
        return f"<Task {self.name}: {self.options.request}>"

    def __reduce__(self) -> Any:
        """Travel by name where the other side can import it, as functions do."""
        if self.is_importable:
            return self.__qualname__
        return object.__new__, (type(self),), self.__dict__


@overload
def task(function: Callable[P, T], /) -> Task[P, T]: ...
@overload
def task(**options: Any) -> Callable[[Callable[P, T]], Task[P, T]]: ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task.

    Parameters
    ----------
    function : callable
        The function.
    **options
        ``cores``: whole cores [cores]. ``gpus``: whole GPUs or a share of one [GPUs].
        ``memory``: "8GiB" or bytes. ``time``: "2h" or seconds. A list of any of these is a
        ladder: a call that has exceeded its memory or its time is placed again one rung up.
        ``memory="auto"`` is a ladder that begins with what 95 % have used in earlier runs.
        ``retries``: attempts after the first. ``retry_on``: exceptions that are worth another
        attempt. ``priority``: larger runs earlier. ``env``: environment variables. ``setup``: a
        function without arguments; what it returns is built once per slot and given to each
        call as the first argument. ``isolation``: "process", or "thread" to run in the agent's
        own process, where limits are
        booked but cannot be enforced. ``name``: what to call it. ``pool``: the only pool whose
        nodes may run it. ``bundle``: how many short calls travel together; False keeps each call
        for itself, and by default as many travel together as last a fraction of a second.
        ``memo``: whether to remember results, here and in later runs; ``version``: change it to
        forget them though the code is the same. ``checkpoint``: whether each call has a folder
        that outlives its attempts (`exadask.checkpoint_dir`). ``notice``: how long before its end
        a call is warned (`exadask.inside.on_notice`).

    Returns
    -------
    Task
        Calls run here; ``submit`` and ``map`` run as tasks.

    Raises
    ------
    InvalidQuantity, InvalidRequest
        An option makes no sense.

    Examples
    --------
    >>> @task(cores=2, memory="1GiB", time="5m")
    ... def area(radius):
    ...     return 3 * radius**2
    >>> area(2)
    12
    """
    if function is not None and not callable(function):
        raise InvalidRequest(
            f"@task got {shown(function)} where a function was expected.",
            "Options go by name: @task(cores=2).",
        )
    parsed = TaskOptions.parse(options)

    def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
        require_function(function, "@task", "Put it on a function or a method.")
        return Task(function, parsed)

    return decorate(function) if function is not None else decorate


def require_function(function: object, decorator: str, advice: str) -> None:
    """Complain of a decorator that was put on something else.

    Raises
    ------
    InvalidRequest
        It is no function.
    """
    if not callable(function) or isinstance(function, type):
        raise InvalidRequest(
            f"{decorator} was put on {shown(function)}, which is not a function.", advice
        )


def name_of(function: Callable[..., Any]) -> str:
    """Name a callable for messages: short, and without characters that confuse."""
    inner = innermost(function)
    name = getattr(inner, "__name__", type(inner).__name__)
    return str(name).strip("<>")


def innermost(function: Callable[..., Any]) -> Any:
    """Give what partial applications are made of."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


_states: dict[Callable[[], Any], Any] = {}


def _local_state(setup: Callable[[], Any]) -> Any:
    if setup not in _states:
        _states[setup] = setup()
    return _states[setup]


OF_RANKS = (
    *("ranks", "nodes", "ranks_per_node"),
    *("cores_per_rank", "gpus_per_rank", "memory_per_rank"),
)
"""Options of programs with ranks alone; see `exadask.ranks`."""

_MEANT = {"mem": ["memory"], "ram": ["memory"], "cpus": ["cores"], "walltime": ["time"]}


def _reject_unknown(options: Mapping[str, Any]) -> None:
    import difflib

    for name in options:
        if name in OF_RANKS:
            where = f"{name}= is for programs with ranks: @xd.mpi, or xd.command."
            raise InvalidRequest(f"unknown task option {name!r}.", where)
        if name not in _KNOWN:
            near = _MEANT.get(name) or difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(_KNOWN)}."
            raise InvalidRequest(f"unknown task option {name!r}.", hint)


def _merged_rungs(base: tuple[Resources, ...], options: Mapping[str, Any]) -> tuple[Resources, ...]:
    """Build what is asked for, from rung to rung; without a list that is one."""
    columns: dict[str, list[Any]] = {
        "cores": [one.cores for one in base],
        "gpus": [one.gpus for one in base],
        "memory": [one.memory_bytes for one in base],
        "time": [one.time_s for one in base],
    }
    lists = {name: values for name, values in columns.items() if len(set(values)) > 1}
    for name in columns:
        if name not in options:
            continue
        lists.pop(name, None)
        value = options[name]
        if not isinstance(value, (list, tuple)):
            columns[name] = [value] * len(base)
            continue
        if not value:
            raise InvalidRequest(f"{name}=[] has no rung.", "Give at least one value.")
        columns[name] = lists[name] = list(value)
    n_rungs = max(len(one) for one in (lists or columns).values())
    for name, values in columns.items():
        if name in lists and len(values) != n_rungs:
            counts = ", ".join(f"{name}: {len(one)}" for name, one in lists.items())
            raise InvalidRequest(
                f"the lists of a ladder have different lengths ({counts}).",
                "Give each as many values as there are rungs; a single value holds for all.",
            )
        if len(values) != n_rungs:
            columns[name] = [values[0]] * n_rungs
    rungs = [
        Resources.parse(**{name: values[place] for name, values in columns.items()})
        for place in range(n_rungs)
    ]
    if not lists and len(set(rungs)) == 1:
        return (rungs[0],)  # what its rungs differed in holds for all of them now
    for lower, higher in itertools.pairwise(rungs):
        if not _is_higher(higher, lower):
            raise InvalidRequest(
                f"a ladder goes from {lower} to {higher}.",
                "Each rung must have more memory or more time than the one before, and less of "
                "nothing.",
            )
    return tuple(rungs)


def _is_higher(one: Resources, other: Resources) -> bool:
    """Whether a rung is above another: None stands for no limit."""
    pairs = [(one.memory_bytes, other.memory_bytes), (one.time_s, other.time_s)]
    limits = [
        tuple(math.inf if limit is None else float(limit) for limit in pair) for pair in pairs
    ]
    is_less = any(here < there for here, there in limits)
    has_more = any(here > there for here, there in limits)
    return has_more and not (is_less or one.cores < other.cores or one.gpu_units < other.gpu_units)


def _checked_count(name: str, *, least: int | None) -> Callable[[object], int]:
    def check(value: object) -> int:
        is_count = isinstance(value, int) and not isinstance(value, bool)
        lowest = -_END_OF_COUNTS if least is None else least
        if isinstance(value, int) and is_count and lowest <= value < _END_OF_COUNTS:
            return value
        wanted = "a whole number" + ("" if least is None else f", at least {least}")
        raise InvalidRequest(f"{name}={shown(value)} is not valid.", f"Give {wanted}.")

    return check


def _checked_retry_on(value: object) -> tuple[type[BaseException], ...] | None:
    if value is None:
        return None
    kinds = value if isinstance(value, (tuple, list)) else (value,)
    if not kinds or not all(
        isinstance(one, type) and issubclass(one, BaseException) for one in kinds
    ):
        raise InvalidRequest(
            f"retry_on={shown(value)} is not valid.", "Give an exception class, or a tuple of them."
        )
    return tuple(kinds)


def _checked_env(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"env={shown(value)} is not valid.", "Give a dict of names and texts.")
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidRequest(
                f"env has the name {shown(name)}.", "Names are texts without '=' and not empty."
            )
        if not isinstance(text, str) or "\0" in text or not _is_encodable(name + text):
            raise InvalidRequest(
                f"env[{name!r}]={shown(text)} is not valid.", f"Give a text: {shown(text)!a}."
            )
    return tuple(sorted(value.items()))


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _checked_setup(value: object) -> Callable[[], Any] | None:
    if value is not None and not callable(value):
        raise InvalidRequest(
            f"setup={shown(value)} is not valid.", "Give a function without arguments."
        )
    return value


def _checked_isolation(value: object) -> Isolation:
    if not isinstance(value, str) or value not in ("process", "thread"):
        raise InvalidRequest(
            f"isolation={shown(value)} is not valid.", "Give 'process' or 'thread'."
        )
    return value  # type: ignore[return-value]  # one of the two


def _checked_text(name: str, *, is_hashed: bool = False) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        is_text = isinstance(value, str) and bool(value.strip())
        if is_hashed and is_text:
            is_text = is_writable(str(value))
        if value is not None and not is_text:
            raise InvalidRequest(
                f"{name}={shown(value)} is not valid.", "Give a text that is not empty."
            )
        return value  # type: ignore[return-value]  # a text, or None

    return check


def _checked_flag(name: str) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise InvalidRequest(f"{name}={shown(value)} is not valid.", "Give True or False.")

    return check


def _checked_notice(value: object) -> float | None:
    if value is None:
        return None
    return parse_seconds(value, name="notice")  # type: ignore[arg-type]  # it checks that too


def _checked_bundle(value: object) -> int | None:
    if value is None or value is True:
        return None
    if value is False:
        return 1
    if isinstance(value, int) and value >= 1:
        return value
    raise InvalidRequest(
        f"bundle={shown(value)} is not valid.",
        "Give the number of calls that travel together, or False to keep each for itself.",
    )


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "retries": _checked_count("retries", least=0),
    "retry_on": _checked_retry_on,
    "priority": _checked_count("priority", least=None),
    "env": _checked_env,
    "setup": _checked_setup,
    "isolation": _checked_isolation,
    "name": _checked_text("name"),
    "pool": _checked_text("pool"),
    "bundle": _checked_bundle,
    "memo": _checked_flag("memo"),
    "version": _checked_text("version", is_hashed=True),
    "checkpoint": _checked_flag("checkpoint"),
    "notice": _checked_notice,
}
_FIELDS = {"notice": "notice_s"}
