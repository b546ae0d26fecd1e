"""Every error a user can meet: what happened with the values, why, and what to do next.

All of them survive pickling, because they travel between nodes: the positional arguments of
``super().__init__`` rebuild the error on the other side.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "AllocationFailed",
    "ClusterLost",
    "ClusterUnreachable",
    "CommandFailed",
    "DependencyFailed",
    "Detached",
    "ExadaskError",
    "ExecutorClosed",
    "FileChanged",
    "ImpossibleRequest",
    "InvalidQuantity",
    "InvalidRequest",
    "InvalidTransition",
    "MemoryExceeded",
    "NoActiveExecutor",
    "NoNodeLeft",
    "NodeLost",
    "NotSerializable",
    "OutputMissing",
    "QueryFailed",
    "RanksFailed",
    "RecipeError",
    "RemoteError",
    "RunFolderError",
    "ServiceFailed",
    "SiteError",
    "SubmissionRefused",
    "TaskCrashed",
    "TimeExceeded",
    "UnhashableValue",
]


_MOST_SHOWN = 200


def shown(value: object) -> str:
    """Write a value into a message, whatever it is: what is long is cut.

    Examples
    --------
    >>> shown("lots")
    "'lots'"
    >>> shown(10**5000)
    '<an int that cannot be shown>'
    """
    try:
        text = repr(value)
    except Exception:  # its class is not ours; and Python writes no number of 5,000 digits
        kind = type(value).__name__
        return f"<{'an' if kind[0] in 'aeiou' else 'a'} {kind} that cannot be shown>"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


class ExadaskError(Exception):
    """The base of all errors that exadask raises."""


class InvalidQuantity(ExadaskError, ValueError):
    """A number, an amount of memory or a duration that cannot be understood."""

    def __init__(self, name: str, value: object, wanted: str) -> None:
        super().__init__(name, value, wanted)
        self.name, self.value, self.wanted = name, value, wanted

    def __str__(self) -> str:
        return f"{self.name}={shown(self.value)} is not valid: give {self.wanted}."


class InvalidRequest(ExadaskError, TypeError):
    """A call that cannot mean anything: a wrong type, an unknown option, a missing value."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what, self.advice = what, advice

    def __str__(self) -> str:
        return f"{self.what} {self.advice}"


class InvalidTransition(ExadaskError, RuntimeError):
    """The scheduler's books were told something that cannot have happened: a bug of exadask."""

    def __init__(self, subject: str, event: str, history: str) -> None:
        super().__init__(subject, event, history)
        self.subject, self.event, self.history = subject, event, history

    def __str__(self) -> str:
        return (
            f"{self.subject} cannot take the event {self.event!r} (history: {self.history}). "
            "This is a bug of exadask; please report it with this message."
        )


class ImpossibleRequest(ExadaskError):
    """A task asks for more than any node can ever offer, so waiting would never help.

    Parameters
    ----------
    task : str
        The task.
    asked : str
        What it asks for.
    largest : str
        What there is at most of that which is in the way: a node, the nodes of an allocation, a
        walltime, or the open pools.
    limit : {"node", "allocation", "time", "pool"}
        What is in the way.
    """

    def __init__(
        self,
        task: str,
        asked: str,
        largest: str,
        limit: Literal["node", "allocation", "time", "pool"] = "node",
    ) -> None:
        super().__init__(task, asked, largest, limit)
        self.task, self.asked, self.largest = task, asked, largest
        self.limit = limit

    def __str__(self) -> str:
        if self.limit == "pool":
            return (
                f"task {self.task!r} asks for {self.asked}, but no such pool is open; "
                f"{self.largest}. Correct pool=, or leave it out."
            )
        if self.limit == "time":
            return (
                f"task {self.task!r} asks for {self.asked}, but a node that could run it stays at "
                f"most {self.largest}. Lower time=, split the task, or raise the walltime of the "
                "pool."
            )
        if self.limit == "allocation":
            return (
                f"task {self.task!r} asks for {self.asked}, but one allocation has at most "
                f"{self.largest}. Ask for less, raise nodes= of the pool, or start the Executor "
                "with more nodes (see: exadask info)."
            )
        return (
            f"task {self.task!r} asks for {self.asked}, but the largest node has {self.largest}. "
            "Ask for less, or start the Executor with larger nodes (see: exadask info)."
        )


class MemoryExceeded(ExadaskError):
    """A task used more memory than it asked for, and was ended; its neighbours were not."""

    def __init__(self, task: str, asked: int, peak: int, node: str) -> None:
        super().__init__(task, asked, peak, node)
        self.task, self.asked, self.peak, self.node = task, asked, peak, node

    def __str__(self) -> str:
        gib = 2**30
        return (
            f"task {self.task!r} used {self.peak / gib:.3f} GiB on node {self.node!r} and was "
            f"entitled to {self.asked / gib:.3f} GiB, so it was ended. "
            f"Ask for more, for example memory='{_rounded_up_gib(self.peak)}', "
            "or make the task smaller."
        )


class TimeExceeded(ExadaskError):
    """A task ran longer than the time it asked for, and was ended."""

    def __init__(self, task: str, limit_s: float, node: str) -> None:
        super().__init__(task, limit_s, node)
        self.task, self.limit_s, self.node = task, limit_s, node

    def __str__(self) -> str:
        return (
            f"task {self.task!r} ran longer than its time limit of {self.limit_s:g} s on node "
            f"{self.node!r}, so it was ended. Raise time=, or split the task."
        )


class TaskCrashed(ExadaskError):
    """The process of a task died: a signal (a segfault, the kernel's OOM killer) or an exit."""

    def __init__(
        self, task: str, signal: str | None, exit_code: int | None, stderr_tail: str, node: str
    ) -> None:
        super().__init__(task, signal, exit_code, stderr_tail, node)
        self.task, self.signal, self.exit_code = task, signal, exit_code
        self.stderr_tail, self.node = stderr_tail, node

    def __str__(self) -> str:
        if self.signal is not None:
            how = f"was killed by {self.signal}"
            hints = {
                "SIGSEGV": "Compiled code touched memory that is not its own: run the function "
                "alone under `python -X faulthandler`.",
                "SIGKILL": "Nobody here sent it: most often the kernel ran out of memory. Give "
                "the task a memory= request.",
            }
            hint = hints.get(self.signal, "Run the function alone to reproduce it.")
        else:
            how = f"ended its process with exit code {self.exit_code}"
            hint = "A task must return or raise; it must not call exit()."
        tail = f"\nLast lines of its stderr:\n{self.stderr_tail}" if self.stderr_tail else ""
        return f"task {self.task!r} {how} on node {self.node!r}. {hint}{tail}"


class NodeLost(ExadaskError):
    """A task was running, alone, each time that several nodes died: it is what kills them."""

    def __init__(self, task: str, nodes: tuple[str, ...]) -> None:
        super().__init__(task, nodes)
        self.task, self.nodes = task, nodes

    def __str__(self) -> str:
        return (
            f"task {self.task!r} was running on {len(self.nodes)} nodes in a row when they died "
            f"({', '.join(self.nodes)}), the last time alone, so it is not tried again. "
            "Run it alone with more memory=, and look at the nodes' logs."
        )


class DependencyFailed(ExadaskError):
    """A task could not run because one of its inputs failed; the root's error is the cause."""

    def __init__(self, task: str, chain: tuple[str, ...], root_error: str) -> None:
        super().__init__(task, chain, root_error)
        self.task, self.chain, self.root_error = task, chain, root_error

    def __str__(self) -> str:
        path = " <- ".join((self.task, *self.chain))
        return (
            f"task {self.task!r} did not run, because an input failed ({path}): "
            f"{self.root_error}. Repair {self.chain[-1]!r}; its full traceback is the cause above."
        )


class RanksFailed(ExadaskError):
    """The ranks of an MPI program ended badly, and none of them has raised an exception."""

    def __init__(self, task: str, n_ranks: int, exit_code: int, tail: str) -> None:
        super().__init__(task, n_ranks, exit_code, tail)
        self.task, self.n_ranks, self.exit_code, self.tail = task, n_ranks, exit_code, tail

    def __str__(self) -> str:
        tail = f"\nThe end of its standard error:\n{self.tail.rstrip()}" if self.tail else ""
        return (
            f"the {self.n_ranks} ranks of task {self.task!r} ended with exit code "
            f"{self.exit_code}: one was killed, crashed, or called MPI_Abort; see the task's "
            f"stdout() too.{tail}"
        )


class ServiceFailed(ExadaskError):
    """A service did not become ready, or has ended."""

    def __init__(self, service: str, reason: str, tail: str) -> None:
        super().__init__(service, reason, tail)
        self.service, self.reason, self.tail = service, reason, tail

    def __str__(self) -> str:
        tail = f"\nThe end of its standard error:\n{self.tail.rstrip()}" if self.tail else ""
        return (
            f"service {self.service!r} does not serve: {self.reason}. Start it again, or say "
            f"retries= to have that done.{tail}"
        )


class NotSerializable(ExadaskError, TypeError):
    """A function, an argument or a result cannot be sent to another process."""

    def __init__(self, what: str, where: str, reason: str) -> None:
        super().__init__(what, where, reason)
        self.what, self.where, self.reason = what, where, reason

    def __str__(self) -> str:
        return (
            f"cannot send {self.what} to another process, found at {self.where}: {self.reason}. "
            "Make it inside the task (open the file, connect, take the lock there), or pass what "
            "is needed to make it."
        )


class UnhashableValue(ExadaskError, TypeError):
    """What a memoised task computes cannot be named, since a value cannot be hashed."""

    def __init__(self, task: str, where: str, reason: str) -> None:
        super().__init__(task, where, reason)
        self.task, self.where, self.reason = task, where, reason

    def __str__(self) -> str:
        return (
            f"the result of task {self.task!r} cannot be remembered, because {self.where} cannot "
            f"be hashed: {self.reason}. Pass what is needed to make it (a path, a seed, a number) "
            "and make it inside the task, or leave memo=True out."
        )


class FileChanged(ExadaskError):
    """An input file is not what it was when the task was submitted, or cannot be read there."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"the file {self.path} is not what it was when the task was submitted: {self.reason}. "
            "Submit the task again, and leave files alone, on a file system that all nodes see, "
            "until the tasks that read them are done."
        )


class OutputMissing(ExadaskError):
    """A command ended well, but has not left what it was to leave."""

    def __init__(self, command: str, output: str, directory: str, found: tuple[str, ...]) -> None:
        super().__init__(command, output, directory, found)
        self.command, self.output, self.directory, self.found = command, output, directory, found

    def __str__(self) -> str:
        there = ", ".join(self.found[:10]) or "nothing"
        return (
            f"command {self.command!r} left no file for the output {self.output} in "
            f"{self.directory}; there are: {there}. Correct the pattern, or see its stderr."
        )


class RemoteError(ExadaskError):
    """An exception or a result of a task that cannot be rebuilt in this process."""

    def __init__(self, task: str, type_name: str, message: str, traceback: str) -> None:
        super().__init__(task, type_name, message, traceback)
        self.task, self.type_name = task, type_name
        self.message, self.traceback = message, traceback

    def __str__(self) -> str:
        return (
            f"task {self.task!r}: {self.type_name}: {self.message}\n"
            "(This object could not be rebuilt here: its class is missing, or its __init__ does "
            f"not accept its own args.)\n{self.traceback}"
        )


class ExecutorClosed(ExadaskError, RuntimeError):
    """Work was given to an executor that has been shut down, or asked of it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"cannot {self.what} after shutdown: the executor is closed. "
            "Do it inside the `with Executor() as ex:` block, or make a new Executor."
        )


class NoActiveExecutor(ExadaskError, RuntimeError):
    """A task was submitted where no executor is open."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return (
            f"no executor is open, so {self.task!r} has nowhere to run. Open one with "
            "`with exadask.Executor() as ex:`, or call the function directly to run it here."
        )


class ClusterLost(ExadaskError):
    """The connection to the scheduler broke, so the state of a task is unknown."""

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason

    def __str__(self) -> str:
        return (
            f"task {self.task!r} was lost with the cluster: {self.reason}. "
            "Submit it again with a new Executor."
        )


class Detached(ExadaskError):
    """A session has ended, and what its future stood for goes on without it."""

    def __init__(self, task: str, run: str, name: str) -> None:
        super().__init__(task, run, name)
        self.task, self.run, self.name = task, run, name

    def __str__(self) -> str:
        return (
            f"task {self.task!r} goes on without this session, which has left it as {self.name!r}. "
            f"Find it again: exadask.attach({self.run!r}, {self.name!r})"
        )


class AllocationFailed(ExadaskError):
    """A pool gives no nodes: its allocations cannot be had, or paid, or do not come to life."""

    def __init__(self, pool: str, reason: str, log_tail: str = "") -> None:
        super().__init__(pool, reason, log_tail)
        self.pool, self.reason, self.log_tail = pool, reason, log_tail

    def __str__(self) -> str:
        tail = f"\nLast lines of the job's log:\n{self.log_tail}" if self.log_tail else ""
        return (
            f"pool {self.pool!r} gives no nodes: {self.reason} Correct the pool or the site "
            f"profile (check: exadask doctor) and start again.{tail}"
        )


class NoNodeLeft(ExadaskError):
    """A task waits, and no node is there or can still be asked for that could run it."""

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason

    def __str__(self) -> str:
        return (
            f"task {self.task!r} can never run: {self.reason}. "
            "Raise budget=, or open a pool that can run it."
        )


class SubmissionRefused(ExadaskError):
    """The batch system did not take a job; `is_permanent` is None where it is not clear why."""

    def __init__(
        self, command: str, answer: str, is_permanent: bool | None, advice: str = ""
    ) -> None:
        super().__init__(command, answer, is_permanent, advice)
        self.command, self.answer = command, answer
        self.is_permanent, self.advice = is_permanent, advice

    def __str__(self) -> str:
        return f"`{self.command}` was refused: {self.answer} {self.advice}".rstrip()


class QueryFailed(ExadaskError):
    """The batch system did not say how its jobs are; that says nothing about the jobs."""

    def __init__(self, command: str, answer: str) -> None:
        super().__init__(command, answer)
        self.command, self.answer = command, answer

    def __str__(self) -> str:
        return f"`{self.command}` gave no answer: {self.answer}"


class ClusterUnreachable(ExadaskError):
    """A scheduler that should be there does not answer, or does not let us in."""

    def __init__(self, address: str, reason: str, advice: str) -> None:
        super().__init__(address, reason, advice)
        self.address, self.reason, self.advice = address, reason, advice

    def __str__(self) -> str:
        return f"the scheduler at {self.address} cannot be reached: {self.reason}. {self.advice}"


class RunFolderError(ExadaskError):
    """The folder of a run cannot be made, written or read."""

    def __init__(self, folder: str, reason: str, advice: str) -> None:
        super().__init__(folder, reason, advice)
        self.folder, self.reason, self.advice = folder, reason, advice

    def __str__(self) -> str:
        return f"the run folder {self.folder} cannot be used: {self.reason}. {self.advice}"


class SiteError(ExadaskError):
    """A site profile that does not exist, or cannot be used as it is written."""

    def __init__(self, site: str, problem: str, advice: str) -> None:
        super().__init__(site, problem, advice)
        self.site, self.problem, self.advice = site, problem, advice

    def __str__(self) -> str:
        return f"site {self.site!r}: {self.problem} {self.advice}"


class CommandFailed(ExadaskError):
    """A shell command ended with an exit code other than zero."""

    def __init__(self, command: str, exit_code: int, directory: str, stderr_tail: str) -> None:
        super().__init__(command, exit_code, directory, stderr_tail)
        self.command, self.exit_code = command, exit_code
        self.directory, self.stderr_tail = directory, stderr_tail

    def __str__(self) -> str:
        hint = "The shell did not find the program." if self.exit_code == 127 else ""
        tail = f"\nLast lines of its stderr:\n{self.stderr_tail}" if self.stderr_tail else ""
        return (
            f"command {self.command!r} ended with exit code {self.exit_code} in "
            f"{self.directory}. {hint} Its files were kept there; use check=False to get the "
            f"result all the same.{tail}"
        )


class RecipeError(ExadaskError):
    """A recipe that cannot be run: not found, no entry point, a wrong parameter."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what, self.advice = what, advice

    def __str__(self) -> str:
        return f"{self.what} {self.advice}"


def _rounded_up_gib(n_bytes: int) -> str:
    """Suggest half as much again, in whole steps of 256 MiB."""
    steps = -(-int(n_bytes * 1.5) // 2**28)
    return f"{steps / 4:g}GiB"
