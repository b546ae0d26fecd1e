"""Tasks that their author wants in a thread of the agent: not isolated, results by reference."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from exadask.runtime.attempt import Attempt
from exadask.runtime.job import Job, Usage
from exadask.runtime.outcomes import failure_of
from exadask.runtime.parcel import Parcel

_states: dict[str, Any] = {}


async def run_in_thread(
    threads: ThreadPoolExecutor, job: Job, inputs: tuple[object, ...], attempt: Attempt
) -> object:
    """Run a job in a thread; a thread cannot be ended, so its limits are booked, not enforced."""
    start_s, cpu_start_s = time.monotonic(), time.process_time()
    loop = asyncio.get_running_loop()
    outcome = await loop.run_in_executor(threads, _call, job, inputs)
    attempt.usage = Usage(
        cpu_s=time.process_time() - cpu_start_s,
        wall_s=time.monotonic() - start_s,
        peak_bytes=0,
    )
    return outcome


def _call(job: Job, inputs: tuple[object, ...]) -> Any:
    try:
        values = [_giver_of(value) for value in inputs]
        function = job.kind.function.load(values)
        arguments, keywords = job.arguments.load(values)
        if job.kind.setup is not None:
            arguments = (_state(job), *arguments)
        value = function(*arguments, **keywords)
        return asyncio.run(value) if inspect.iscoroutine(value) else value
    except BaseException as error:  # the task's boundary: whatever it raises is its result
        return failure_of(error, job.kind)


def _giver_of(value: object) -> Callable[[], object]:
    return value.load if isinstance(value, Parcel) else lambda: value


def _state(job: Job) -> Any:
    assert job.kind.setup is not None
    if job.kind.setup.key not in _states:
        _states[job.kind.setup.key] = job.kind.setup.function.load()()
    return _states[job.kind.setup.key]
