"""What travels between client, agent and child process about one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from exadask.resources import Resources
from exadask.runtime.parcel import Parcel

Isolation = Literal["process", "thread"]
_LONGEST_TEXT = 8000

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of a function, ready to travel."""

    key: str
    name: str
    function: Parcel
    arguments: Parcel
    request: Resources
    surroundings: Surroundings
    env: tuple[tuple[str, str], ...] = ()
    setup: Setup | None = None
    isolation: Isolation = "process"
    retry_on: tuple[str, ...] | None = None

    def __dask_tokenize__(self) -> str:
        """Spare Dask a look inside: the key is unique."""
        return self.key

    def may_retry(self, error: BaseException) -> bool:
        """Whether the user wants another attempt after this kind of error."""
        if self.retry_on is None:
            return True
        return any(qualified_name(kind) in self.retry_on for kind in type(error).__mro__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a task really used.

    Parameters
    ----------
    cpu_s : float
        Processor time of the task and of its processes that ended [s].
    wall_s : float
        Time from start to end [s].
    peak_bytes : int
        Largest memory of its processes together, as far as it was seen [bytes].
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
    """

    exception: Parcel
    summary: str
    traceback: str = ""
    may_retry: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Child to agent: how the job ended."""

    outcome: Parcel | Failure
    usage: Usage
    has_children: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Agent to client, by way of the scheduler: what became of one attempt."""

    key: str
    node: str
    attempt: int
    usage: Usage | None = None
    stdout: bytes | None = None
    stderr: bytes | None = None
    value: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job with all that is not the agent's business.

    Parameters
    ----------
    job : Job
        The call.
    inputs : tuple of str
        Keys of the tasks and data whose values it needs, in the order of its parcel.
    priority : int
        Larger runs earlier.
    retries : int
        Attempts after the first that may follow an exception.
    pool : str, optional
        The pool that it is pinned to.
    """

    job: Job
    inputs: tuple[str, ...] = ()
    priority: int = 0
    retries: int = 0
    pool: str | None = None


class TaskFailed(Exception):
    """How a failure passes through Dask, which must not unpack the user's exception."""

    def __init__(self, key: str, name: str, failure: Failure) -> None:
        super().__init__(key, name, failure)
        self.key, self.name, self.failure = key, name, failure

    def __str__(self) -> str:
        text = f"task {self.name!r}: {self.failure.summary}\n{self.failure.traceback}"
        return text[:_LONGEST_TEXT]  # Dask would replace the whole exception, were it longer


class Observer(Protocol):
    """Who wants to know what becomes of a task; called on the gateway's thread."""

    def placed(self, node: str) -> None:
        """Take the news that it has a share of a node and starts."""

    def reported(self, report: Report) -> None:
        """Take the report of one attempt."""

    def finished(self, value: Parcel | None) -> None:
        """Take the news that its result exists, and the result itself if it was small."""

    def failed(self, error: BaseException) -> None:
        """Take the news that it will never have a result."""


class Gateway(Protocol):
    """The way to a cluster: through a Dask client, or from inside a task through its agent."""

    def submit(self, submission: Submission, observer: Observer) -> None:
        """Hand over a task; returns at once."""

    def cancel(self, key: str) -> None:
        """End a task, whether it waits or runs."""

    def forget(self, key: str) -> None:
        """Let the cluster drop a task's result: nobody here wants it any more."""

    def fetch(self, key: str) -> Any:
        """Bring a result here; blocks. Gives a Parcel, or the object itself."""

    def explain(self, key: str) -> str:
        """Say what a task waits for; blocks."""

    def output(self, key: str, stream: Stream) -> bytes:
        """Bring what a task has written; blocks."""


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
