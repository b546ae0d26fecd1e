"""CPython's own tests of executors, adapted to `exadask.Executor`: submit, map, shutdown.

`ADAPTED` and `OMITTED` together name every test of ``test_concurrent_futures`` in CPython 3.10 and
3.13.
"""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.testing.waiting import eventually

FIVE = xd.NodeShape.declare(cores=5)

ADAPTED = {
    "executor": (
        "test_submit test_submit_keyword test_map test_map_exception test_map_timeout "
        "test_map_chunksize test_shutdown_race_issue12456 test_no_stale_references "
        "test_free_reference test_killed_child test_traceback test_ressources_gced_in_workers "
        "test_saturation test_idle_process_reuse_one test_map_submits_without_iteration"
    ),
    "shutdown": (
        "test_run_after_shutdown test_interpreter_shutdown test_submit_after_interpreter_shutdown "
        "test_hang_issue12364 test_cancel_futures test_hang_gh83386 test_processes_terminate "
        "test_context_manager_shutdown test_del_shutdown test_shutdown_no_wait"
    ),
    "deadlock": (
        "test_crash_at_task_unpickle test_crash_during_func_exec_on_worker "
        "test_exit_during_func_exec_on_worker test_error_during_func_exec_on_worker "
        "test_crash_during_result_pickle_on_worker test_error_during_result_pickle_on_worker "
        "test_error_during_result_unpickle_in_result_handler test_error_at_task_pickle "
        "test_error_at_task_unpickle test_exit_at_task_unpickle "
        "test_exit_during_result_unpickle_in_result_handler test_crash_big_data "
        "test_exit_during_result_pickle_on_worker test_shutdown_deadlock_pickle"
    ),
    "waiting (test_standard_waiting.py)": (
        "test_20369 test_first_completed test_first_completed_some_already_completed "
        "test_first_exception test_first_exception_some_already_complete "
        "test_first_exception_one_already_failed test_all_completed test_timeout "
        "test_pending_calls_race test_no_timeout test_future_times_out test_duplicate_futures "
        "test_free_reference_yielded_future test_correct_timeout_exception_msg"
    ),
    "futures (test_standard_waiting.py)": (
        "test_done_callback_with_result test_done_callback_with_exception "
        "test_done_callback_with_cancel test_done_callback_raises "
        "test_done_callback_already_successful test_done_callback_already_failed "
        "test_done_callback_already_cancelled test_done_callback_raises_already_succeeded "
        "test_repr test_cancel test_cancelled test_done test_running test_result_with_timeout "
        "test_result_with_success test_result_with_cancel test_exception_with_timeout "
        "test_exception_with_success"
    ),
}
OMITTED = {
    "test_max_workers_negative": "there is no max_workers: nodes have shapes (test_bad_input.py)",
    "test_max_workers_too_large": "there is no max_workers, and no limit of Windows",
    "test_default_workers": "there is no max_workers",
    "test_initializer": "there is no initializer=: setup= builds what a slot keeps",
    "test_hang_gh94440": "about a semaphore of forked pools; nothing here is forked",
    "test_hang_global_shutdown_lock": "about forking beside a lock; nothing here is forked",
    "test_shutdown_deadlock": "about a pool's pipe; the crash during shutdown is test_killed_child",
    "test_threads_terminate": "about a pool's threads; leftovers are checked after each module",
    "test_spawn": "about initializers",
    "test_forkserver": "about initializers",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "there is no wakeup pipe",
    "test_thread_names_assigned": "about the threads of a pool",
    "test_thread_names_default": "about the threads of a pool",
    "test_cancel_futures_wait_false": "the same code as test_shutdown_no_wait and cancel_futures",
    "test_idle_thread_reuse": "about threads; processes: test_idle_process_reuse_one",
    "test_executor_map_current_future_cancel": "map's generator is the standard library's own",
    "test_idle_process_reuse_multiple": "reuse is tested with one process, and by its pid",
    "test_max_tasks_per_child": "there is no max_tasks_per_child: a worn process is replaced",
    "test_max_tasks_per_child_defaults_to_spawn_context": "as above",
    "test_max_tasks_early_shutdown": "as above",
    "test_python_finalization_error": "a process starts in the agent, not in the user's thread",
    "test_multiple_set_result": "results are set by the cluster, not by users",
    "test_multiple_set_exception": "results are set by the cluster, not by users",
}


def test_every_test_of_cpython_is_adapted_or_left_out_for_a_reason() -> None:
    adapted = {name for names in ADAPTED.values() for name in names.split()}
    assert adapted.isdisjoint(OMITTED)
    here = Path(__file__)
    written = here.read_text() + here.with_name("test_standard_waiting.py").read_text()
    for name in adapted:
        assert f"def {name}" in written, name
    assert all(OMITTED.values())


@pytest.fixture(scope="module")
def pool() -> Iterator[xd.Executor]:
    with xd.Executor(nodes=[FIVE]) as executor:
        yield executor


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def run_script(text: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, as a user would."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- executor -------------------------------------------------------------------------------


def test_submit(pool: xd.Executor) -> None:
    assert pool.submit(pow, 2, 8).result() == 256


def test_submit_keyword(pool: xd.Executor) -> None:
    assert pool.submit(capture, 1, self=3, fn=4).result() == ((1,), {"self": 3, "fn": 4})
    with pytest.raises(TypeError):
        pool.submit(fn=capture, arg=1)  # type: ignore[call-arg]  # on purpose
    with pytest.raises(TypeError):
        pool.submit(arg=1)  # type: ignore[call-arg]  # on purpose


def test_map(pool: xd.Executor) -> None:
    assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(pool.map(pow, range(10), range(10), chunksize=3)) == list(
        map(pow, range(10), range(10))
    )


def test_map_exception(pool: xd.Executor) -> None:
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_timeout(pool: xd.Executor) -> None:
    results = pool.map(time.sleep, [0, 0, 6], timeout=2)
    assert [next(results), next(results)] == [None, None]
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_map_chunksize(pool: xd.Executor) -> None:
    expected = list(map(pow, range(40), range(40)))
    for chunksize in (6, 50, 40):
        assert list(pool.map(pow, range(40), range(40), chunksize=chunksize)) == expected
    with pytest.raises(ValueError, match="chunksize"):
        list(pool.map(pow, range(40), range(40), chunksize=-1))


def test_map_submits_without_iteration(pool: xd.Executor, tmp_path: Path) -> None:
    pool.map(Path.touch, [tmp_path / f"{index}" for index in range(5)])
    eventually(lambda: len(list(tmp_path.iterdir())) == 5)


def test_shutdown_race_issue12456() -> None:
    with xd.Executor(nodes=[FIVE]) as executor:
        executor.map(str, [2] * 6)


class MyObject:
    def my_method(self) -> None:
        """Do nothing."""


def test_no_stale_references(pool: xd.Executor) -> None:
    obj = MyObject()
    collected = threading.Event()
    reference = weakref.ref(obj, lambda _: collected.set())
    pool.submit(obj.my_method).result()
    del obj
    gc.collect()
    assert collected.wait(10), reference


def test_free_reference(pool: xd.Executor) -> None:
    for obj in pool.map(make_object, range(10)):
        reference = weakref.ref(obj)
        del obj
        gc.collect()
        eventually(lambda reference=reference: reference() is None)  # type: ignore[misc]  # bound now


def make_object(_: int) -> MyObject:
    return MyObject()


def test_killed_child(pool: xd.Executor, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    future = pool.submit(note_pid_and_sleep, started)
    eventually(lambda: started.exists() and started.read_text())
    os.kill(int(started.read_text()), signal.SIGKILL)
    with pytest.raises(xd.errors.TaskCrashed, match="SIGKILL"):
        future.result(30)
    assert pool.submit(pow, 2, 8).result(30) == 256  # the standard pool would be broken


def note_pid_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(100)


def raise_runtime_error() -> None:
    raise RuntimeError(123)  # some comment


def test_traceback(pool: xd.Executor) -> None:
    with pytest.raises(RuntimeError) as caught:
        pool.submit(raise_runtime_error).result()
    assert caught.value.args == (123,)
    cause = caught.value.__cause__
    assert cause is not None
    assert "raise RuntimeError(123)  # some comment" in str(cause)
    assert "exadask/runtime" not in str(cause)


class EventfulGC:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __del__(self) -> None:
        self.path.write_text(str(os.getpid()))


def test_ressources_gced_in_workers(pool: xd.Executor, tmp_path: Path) -> None:
    obj = EventfulGC(tmp_path / "collected")
    pid = pool.submit(keep_nothing, obj).result(30)
    eventually(lambda: (tmp_path / "collected").read_text() == str(pid))


def keep_nothing(_: EventfulGC) -> int:
    return os.getpid()


def test_saturation(pool: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    futures = [pool.submit(wait_for, go) for _ in range(15)]
    eventually(lambda: sum(future.running() for future in futures) == 5)
    go.touch()
    assert [future.result(30) for future in futures] == [True] * 15


def wait_for(path: Path) -> bool:
    eventually(path.exists, timeout_s=60)
    return True


def test_idle_process_reuse_one(pool: xd.Executor) -> None:
    assert len({pool.submit(os.getpid).result() for _ in range(5)}) == 1


# -- shutdown -------------------------------------------------------------------------------


def test_run_after_shutdown() -> None:
    executor = xd.Executor(nodes=[FIVE])
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pow, 2, 5)


def test_interpreter_shutdown() -> None:
    ended = run_script(
        """
        import exadask, sys, time
        def sleep_and_print(t, text):
            time.sleep(t)
            open(1, "w", closefd=False).write("")
            return text
        executor = exadask.Executor()
        future = executor.submit(sleep_and_print, 0.5, "apple")
        future.add_done_callback(lambda f: sys.stdout.write(f.result()))
        """
    )
    assert ended.stderr == ""
    assert ended.stdout == "apple"
    assert ended.returncode == 0


def test_submit_after_interpreter_shutdown() -> None:
    ended = run_script(
        """
        import atexit
        @atexit.register
        def run_last():
            try:
                executor.submit(id, None)
            except RuntimeError:
                print("runtime-error")
        import exadask
        executor = exadask.Executor()
        executor.submit(id, 42).result()
        """
    )
    assert ended.stdout.strip() == "runtime-error"
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_hang_issue12364() -> None:
    executor = xd.Executor(nodes=[FIVE])
    futures = [executor.submit(time.sleep, 0.1) for _ in range(50)]
    executor.shutdown()
    assert [future.result() for future in futures] == [None] * 50


def test_cancel_futures(tmp_path: Path) -> None:
    executor = xd.Executor(nodes=[FIVE])
    go = tmp_path / "go"
    futures = [executor.submit(wait_for, go) for _ in range(50)]
    eventually(lambda: sum(future.running() for future in futures) == 5)
    go.touch()
    executor.shutdown(cancel_futures=True)
    cancelled = [future for future in futures if future.cancelled()]
    assert len(cancelled) >= 20
    assert all(future.done() for future in futures)
    finished = [future for future in futures if not future.cancelled()]
    assert len(finished) >= 5
    assert all(future.result() is True for future in finished)


def test_hang_gh83386() -> None:
    ended = run_script(
        """
        import exadask, time
        executor = exadask.Executor()
        future = executor.submit(time.sleep, 0.5)
        executor.shutdown(wait=False)
        print(future.result())
        """
    )
    assert (ended.stdout.strip(), ended.stderr, ended.returncode) == ("None", "", 0)


def test_processes_terminate() -> None:
    executor = xd.Executor(nodes=[FIVE])
    pids = {executor.submit(os.getpid).result() for _ in range(5)}
    executor.shutdown()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_context_manager_shutdown() -> None:
    with xd.Executor(nodes=[FIVE]) as executor:
        assert list(executor.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    assert repr(executor) == "<Executor: closed>"


def test_del_shutdown() -> None:
    executor = xd.Executor(nodes=[FIVE])
    results = executor.map(abs, range(-5, 5))
    executor.shutdown()
    del executor
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_shutdown_no_wait() -> None:
    executor = xd.Executor(nodes=[FIVE])
    results = executor.map(abs, range(-5, 5))
    executor.shutdown(wait=False)
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    eventually(lambda: not threading_names() & {"exadask-shutdown"})


def threading_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


# -- no deadlock, whatever happens while something is pickled -------------------------------


class CrashAtPickle:
    """Kills the process that pickles it, unless that is the one that made it."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return CrashAtPickle, ()


class ExitAtPickle:
    def __reduce__(self) -> Any:
        sys.exit(1)


class ErrorAtPickle:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("at pickling")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    sys.exit(1)


def fail() -> None:
    raise ZeroDivisionError("at unpickling")


class AtUnpickle:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return self.function, ()


def crashing_result() -> CrashAtPickle:
    made = CrashAtPickle()
    made.home = -1
    return made


def exiting_result() -> ExitAtPickle:
    return ExitAtPickle()


def failing_result() -> ErrorAtPickle:
    return ErrorAtPickle()


def result_that_fails_to_unpickle() -> AtUnpickle:
    return AtUnpickle(fail)


def test_crash_at_task_unpickle(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.TaskCrashed, match="SIGSEGV"):
        pool.submit(id, AtUnpickle(crash)).result(30)


def test_exit_at_task_unpickle(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.TaskCrashed, match="exit code 1"):
        pool.submit(id, AtUnpickle(leave)).result(30)


def test_error_at_task_unpickle(pool: xd.Executor) -> None:
    with pytest.raises(ZeroDivisionError, match="at unpickling"):
        pool.submit(id, AtUnpickle(fail)).result(30)


def test_error_at_task_pickle(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.NotSerializable, match="at pickling"):
        pool.submit(id, ErrorAtPickle())


def test_crash_during_func_exec_on_worker(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.TaskCrashed, match="SIGSEGV"):
        pool.submit(crash).result(30)


def test_exit_during_func_exec_on_worker(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.TaskCrashed, match="exit code 1"):
        pool.submit(leave).result(30)


def test_error_during_func_exec_on_worker(pool: xd.Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.submit(fail).result(30)


def test_crash_during_result_pickle_on_worker(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.TaskCrashed, match="SIGKILL"):
        pool.submit(crashing_result).result(30)


def test_exit_during_result_pickle_on_worker(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.TaskCrashed, match="exit code 1"):
        pool.submit(exiting_result).result(30)


def test_error_during_result_pickle_on_worker(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.NotSerializable, match="at pickling"):
        pool.submit(failing_result).result(30)


def test_error_during_result_unpickle_in_result_handler(pool: xd.Executor) -> None:
    with pytest.raises(xd.errors.RemoteError, match="at unpickling"):
        pool.submit(result_that_fails_to_unpickle).result(30)


def result_that_exits_when_unpickled() -> AtUnpickle:
    return AtUnpickle(leave)


def test_exit_during_result_unpickle_in_result_handler(pool: xd.Executor) -> None:
    with pytest.raises(SystemExit):  # it is unpickled here, by whoever asks for it
        pool.submit(result_that_exits_when_unpickled).result(30)
    assert pool.submit(pow, 2, 8).result(30) == 256


def test_crash_big_data(pool: xd.Executor) -> None:
    future = pool.submit(crash_with, b"a" * 100_000_000)
    with pytest.raises(xd.errors.TaskCrashed, match="SIGSEGV"):
        future.result(30)


def crash_with(_: bytes) -> None:
    crash()


def test_shutdown_deadlock_pickle() -> None:
    executor = xd.Executor(nodes=[FIVE])
    future = executor.submit(failing_result)
    executor.shutdown(wait=False)
    with pytest.raises(xd.errors.NotSerializable):
        future.result(30)
    eventually(lambda: not threading_names() & {"exadask-shutdown"})
