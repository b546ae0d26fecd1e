"""An executor with chosen options for the next calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from exadask.packing import as_task
from exadask.tasks import Task, TaskOptions

if TYPE_CHECKING:
    from exadask.executor import Executor
    from exadask.future import Future

T = TypeVar("T")


class Submitter:
    """An executor with chosen options; made by `Executor.options`."""

    def __init__(self, executor: Executor, options: Mapping[str, Any]) -> None:
        TaskOptions.parse(options)  # complain now, not at the first call
        self._executor, self._options = executor, dict(options)
        self._last: tuple[Any, Task[Any, Any]] | None = None

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a callable as a task; see `Executor.submit`."""
        if self._last is None or self._last[0] is not fn:  # in a loop it is the same every time
            self._last = fn, as_task(fn).with_options(**self._options)
        return self._executor.submit_task(self._last[1], args, kwargs)

    def map(
        self, fn: Callable[..., T], /, *iterables: Iterable[Any], progress: bool = False
    ) -> list[Future[T]]:
        """Run a callable for each tuple of elements; see `Task.map`."""
        task = as_task(fn).with_options(**self._options)
        return self._executor.map_task(task, iterables, progress=progress)
