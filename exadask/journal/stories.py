"""What a journal tells a user: the story of a task, why tasks failed, and what to ask for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from exadask.journal.reading import Failed, RunRecord, Used, request_of
from exadask.journal.rows import AttemptRow, FunctionRow, TaskRow
from exadask.resources import Resources
from exadask.units import render_bytes, render_seconds

__all__ = ["Advice", "FailureGroup", "advice", "failure_groups", "story"]

_TAIL_LINES = 12
_MOST_ATTEMPTS = 20
_MARGIN = 1.2
_FEW = 5
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def story(record: RunRecord, task: TaskRow, now: float) -> list[str]:
    """Tell what happened to a task, line by line.

    Parameters
    ----------
    record : RunRecord
        The journal.
    task : TaskRow
        The task.
    now : float
        The time [s since the epoch].
    """
    function = record.function(task.function)
    request = request_of(function)
    count = f" ({task.n_tasks} calls of a map)" if task.n_tasks != 1 else ""
    lines = [f"task {task.id} {function.name}{count}, asked for {request}: {task.state}"]
    if task.key:
        lines.append(f"  known to the cluster as {task.key}")
    if task.state == "reused":
        return [*lines, "  its result was there already, so that it did not run"]
    lines += _waits(record, task, request, now)
    attempts = record.attempts(task.id)
    for attempt in attempts[:_MOST_ATTEMPTS]:
        lines += _told(attempt)
    if len(attempts) > _MOST_ATTEMPTS:
        lines.append(f"  ... and {len(attempts) - _MOST_ATTEMPTS} attempts more")
    if task.state in ("waiting", "running") and _has_ended(record):
        lines.append("  then the process that drove the run ended; --resume goes on with it")
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Tasks that failed for the same reason.

    Parameters
    ----------
    error : str
        The class of the error.
    name : str
        The function.
    n_tasks : int
        How many [tasks].
    tasks : tuple of int
        Their numbers, the first of them.
    nodes : tuple of str
        Where they were.
    message : str
        What the first of them says.
    detail : str
        A traceback, or what it wrote last.
    """

    error: str
    name: str
    n_tasks: int
    tasks: tuple[int, ...]
    nodes: tuple[str, ...]
    message: str
    detail: str

    def __str__(self) -> str:
        noun = "task" if self.n_tasks == 1 else "tasks"
        where = f" on {', '.join(self.nodes[:4])}" if self.nodes else ""
        lines = [f"{self.n_tasks} {noun} of {self.name}: {self.error}{where}"]
        lines.append(f"  for example task {self.tasks[0]}: {self.message}")
        lines += [f"    | {line}" for line in self.detail.rstrip().splitlines()[-_TAIL_LINES:]]
        return "\n".join(lines)


def failure_groups(record: RunRecord) -> list[FailureGroup]:
    """Sort the tasks that failed by why they did; the most frequent reason comes first.

    Messages that differ in numbers and names only are taken for the same.
    """
    found: dict[tuple[str, str, str], list[Failed]] = {}
    for failed in record.failures():
        attempt = failed.attempt
        error = (attempt.error if attempt else None) or "unknown"
        message = (attempt.message if attempt else None) or ""
        pattern = _NUMBERS.sub("#", _QUOTED.sub("'...'", message))
        found.setdefault((error, failed.function.name, pattern), []).append(failed)
    groups = [_group(error, name, members) for (error, name, _), members in found.items()]
    return sorted(groups, key=lambda one: -one.n_tasks)


class OfSize(NamedTuple):
    """What tasks used whose arguments are about as large.

    Parameters
    ----------
    nbytes : int
        The largest arguments among them [bytes].
    n_tasks : int
        How many they are [tasks].
    peak_bytes : int
        Under this were 99 % of them [bytes].
    wall_s : float
        So long lasted 99 % of them at most [s].
    """

    nbytes: int
    n_tasks: int
    peak_bytes: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What tasks of a function asked for and used, and what they should ask for.

    Parameters
    ----------
    name : str
        The function.
    n_tasks : int
        How many were measured [tasks].
    asked : Resources
        What they asked for.
    peak_bytes : int
        Under this were 99 % of them [bytes].
    wall_s : float
        So long lasted 99 % of them at most [s].
    busy_cores : float
        So many cores they kept busy, on average [cores].
    memory_bytes, time_s, cores
        What to ask for; None where it is right as it is, or not known.
    by_size : tuple of OfSize
        The same by the size of the arguments, where that makes a difference.
    """

    name: str
    n_tasks: int
    asked: Resources
    peak_bytes: int
    wall_s: float
    busy_cores: float
    memory_bytes: int | None
    time_s: float | None
    cores: int | None
    by_size: tuple[OfSize, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.n_tasks} tasks asked for {self.asked}"]
        lines.append(
            f"  99 % used under {render_bytes(self.peak_bytes)} and {render_seconds(self.wall_s)}; "
            f"on average {self.busy_cores:.2g} cores were busy"
        )
        for one in self.by_size:
            size = (
                f"arguments of up to {render_bytes(one.nbytes)}" if one.nbytes else "tiny arguments"
            )
            lines.append(
                f"  with {size} ({one.n_tasks} tasks): under {render_bytes(one.peak_bytes)} and "
                f"{render_seconds(one.wall_s)}"
            )
        proposals = []
        if self.cores is not None:
            proposals.append(f"cores={self.cores}")
        if self.memory_bytes is not None:
            proposals.append(f'memory="{_round_memory(self.memory_bytes)}"')
        if self.time_s is not None:
            proposals.append(f'time="{render_seconds(self.time_s)}"')
        lines.append(f"  ask for: {', '.join(proposals)}" if proposals else "  that is right")
        return "\n".join(lines)


def advice(record: RunRecord) -> Iterator[Advice]:
    """Say for each function what its tasks should ask for."""
    alike: dict[tuple[object, ...], list[FunctionRow]] = {}
    for function in record.functions():  # each session of a resumed run has its own
        alike.setdefault(function[1:], []).append(function)
    for functions in alike.values():
        used = [one for each in functions for one in record.used(each.id) if one.outcome == "done"]
        if used:
            yield _advice(functions[0], used)


def peaks_of(used: Sequence[Used]) -> list[tuple[float, int]]:
    """Give the largest memory of tasks [bytes], and for how many tasks each stands."""
    return [(float(one.peak_bytes or 0), one.n_tasks) for one in used]


def percentile(used: Sequence[tuple[float, int]], part: float) -> float:
    """Give the value under which a part of all lies; each value stands for a number of tasks."""
    total = sum(count for _, count in used)
    seen = 0
    for value, count in sorted(used):
        seen += count
        if seen >= part * total:
            return value
    return math.nan


def _waits(record: RunRecord, task: TaskRow, request: Resources, now: float) -> list[str]:
    if task.submitted is None:
        return []
    until = task.placed or task.ended or now
    waited = f"  waited {render_seconds(max(0.0, until - task.submitted))}"
    inputs = [] if task.inputs is None else json.loads(task.inputs)
    names = []
    for number in inputs[:4]:
        for one in record.find(str(number)):
            names.append(f"{record.function(one.function).name} (task {number}, {one.state})")
    needs = f" for {request}" if task.placed or not names else ""
    also = f"; it needs {', '.join(names)}" if names else ""
    return [waited + needs + also]


def _told(attempt: AttemptRow) -> list[str]:
    if attempt.number == 0:
        return [f"  did not run to its end: {attempt.message}", *_tail(attempt)]
    text = f"  attempt {attempt.number} on {attempt.node}"
    if attempt.cores:
        text += f", cores {attempt.cores}"
    if attempt.gpus:
        text += f", GPU {attempt.gpus}"
    words = {
        "running": "runs",
        "done": "came to its end",
        "lost": "was lost with its node",
        "returned": "was sent back before it began",
        "cancelled": "was cancelled",
        "failed": f"failed: {attempt.message}",
    }
    if attempt.began is not None and attempt.ended is not None:
        lasted_s = attempt.wall_s if attempt.wall_s else attempt.ended - attempt.began
        text += f", {render_seconds(max(0.0, lasted_s))}"
    if attempt.peak_bytes:
        text += f", at most {render_bytes(attempt.peak_bytes)}"
    return [f"{text}: {words.get(attempt.outcome, attempt.outcome)}", *_tail(attempt)]


def _tail(attempt: AttemptRow) -> list[str]:
    lines = (attempt.detail or "").rstrip().splitlines()
    return [f"    | {line}" for line in lines[-_TAIL_LINES:]]


def _has_ended(record: RunRecord) -> bool:
    sessions = record.sessions()
    return bool(sessions) and sessions[-1].ended is not None


def _group(error: str, name: str, members: Sequence[Failed]) -> FailureGroup:
    first = members[0].attempt
    nodes = {one.attempt.node for one in members if one.attempt and one.attempt.node}
    return FailureGroup(
        error=error,
        name=name,
        n_tasks=sum(one.task.n_tasks for one in members),
        tasks=tuple(one.task.id for one in members[:100]),
        nodes=tuple(sorted(nodes)),
        message=(first.message if first else None) or "",
        detail=(first.detail if first else None) or "",
    )


def _advice(function: FunctionRow, used: Sequence[Used]) -> Advice:
    asked = request_of(function)
    peaks, walls = peaks_of(used), _walls_of(used)
    total_s = sum(one.wall_s or 0.0 for one in used)
    busy = sum(one.cpu_s or 0.0 for one in used) / total_s if total_s else 0.0
    n_tasks = sum(count for _, count in walls)
    peak, wall_s = percentile(peaks, 0.99), percentile(walls, 0.99)
    is_known = n_tasks >= _FEW
    is_whole = is_known and asked.parts == 1  # of a gang only the first node is measured
    wanted_bytes, wanted_s = int(_MARGIN * peak), _MARGIN * wall_s
    cores = max(1, math.ceil(busy - 0.1))
    return Advice(
        name=function.name,
        n_tasks=n_tasks,
        asked=asked,
        peak_bytes=int(peak),
        wall_s=wall_s,
        busy_cores=busy,
        memory_bytes=wanted_bytes
        if is_whole and (asked.memory_bytes is None or _is_far(asked.memory_bytes, wanted_bytes))
        else None,
        time_s=_rounded_up(wanted_s)
        if is_known and asked.time_s is not None and _is_far(asked.time_s, wanted_s)
        else None,
        cores=cores if is_whole and total_s > 1 and cores < asked.cores else None,
        by_size=tuple(_by_size(used)),
    )


def _by_size(used: Sequence[Used]) -> list[OfSize]:
    """Tell tasks apart by their arguments, where that makes a difference."""
    classes: dict[int, list[Used]] = {}
    for one in used:
        classes.setdefault((one.nbytes.bit_length() + 1) // 2, []).append(one)  # a factor of 4
    found = []
    for _, members in sorted(classes.items()):
        n_tasks = sum(one.n_tasks for one in members)
        if n_tasks >= _FEW:
            peak = int(percentile(peaks_of(members), 0.99))
            wall_s = percentile(_walls_of(members), 0.99)
            found.append(OfSize(max(one.nbytes for one in members), n_tasks, peak, wall_s))
    peaks = [one.peak_bytes for one in found]
    walls = [one.wall_s for one in found]
    is_telling = len(found) > 1 and any(max(each) > 2 * min(each) for each in (peaks, walls))
    return found if is_telling else []


def _walls_of(used: Sequence[Used]) -> list[tuple[float, int]]:
    """Give how long tasks lasted [s]; a row of several has their times together."""
    return [((one.wall_s or 0.0) / one.n_tasks, one.n_tasks) for one in used]


def _is_far(asked: float, wanted: float) -> bool:
    return asked > 2 * wanted or asked < wanted


def _rounded_up(seconds: float) -> float:
    return float(max(1, math.ceil(seconds)))


def _round_memory(n_bytes: int) -> str:
    """Round up to something that one would write."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= unit:
            steps = math.ceil(10 * n_bytes / unit)
            return f"{steps / 10:g}{name}"
    return "1MiB"


def as_json(value: Any) -> Any:
    """Make plain data of what is told."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_json(one) for name, one in value._asdict().items()}
    return value.hex() if isinstance(value, bytes) else value
