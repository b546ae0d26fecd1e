"""What a running task can ask about itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

import exadask as xd
from exadask.errors import InvalidRequest, TimeExceeded
from exadask.runtime.cluster import EmbeddedCluster
from exadask.runtime.node_agent import AGENT
from exadask.runtime.posting import Berth
from exadask.testing.waiting import eventually

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def node(runs: Path) -> Iterator[xd.Executor]:
    shape = xd.NodeShape.declare(cores=2)
    with xd.Executor(nodes=[shape], run_folder=runs, kill_grace_s=0.2) as executor:
        yield executor


@xd.task(checkpoint=True, retries=3)
def count_up(goal: int) -> list[int]:
    """Count one further in each attempt."""
    file = xd.checkpoint_dir() / "count"
    seen = int(file.read_text()) if file.exists() else 0
    file.write_text(str(seen + 1))
    if seen + 1 < goal:
        raise RuntimeError(f"only {seen + 1}")
    return [seen + 1, goal]


def folders(runs: Path) -> list[Path]:
    return list(runs.glob("2*/checkpoints/*"))


def test_an_attempt_finds_what_the_one_before_has_left(node: xd.Executor, runs: Path) -> None:
    futures = [node.submit(count_up, goal) for goal in (1, 2, 3)]
    assert [one.result(60) for one in futures] == [[1, 1], [2, 2], [3, 3]]
    eventually(lambda: not folders(runs))
    failed = node.submit(count_up, 9)
    assert isinstance(failed.exception(60), RuntimeError)
    assert [(one / "count").read_text() for one in folders(runs)] == ["4"]


def test_a_resumed_run_finds_it_too(runs: Path) -> None:
    shapes = [xd.NodeShape.declare(cores=2)]
    with xd.Executor(nodes=shapes, run_folder=runs, keep_results=True) as executor:
        assert executor.submit(count_up, 6).exception(60) is not None
        assert list(executor.map(count_up, [1, 2])) == [[1, 1], [2, 2]]
        run = executor.run_folder
    with xd.Executor(nodes=shapes, run_folder=runs, resume=run) as executor:
        assert executor.submit(count_up, 6).result(60) == [6, 6]
        assert list(executor.map(count_up, [1, 2])) == [[1, 1], [2, 2]]
    assert folders(runs) == []


def test_a_lost_node_leaves_it_to_the_next(runs: Path) -> None:
    @xd.task(checkpoint=True)
    def wait_once() -> str:
        folder = xd.checkpoint_dir()
        if not (folder / "begun").exists():
            (folder / "begun").touch()
            time.sleep(60)
        return "found"

    shape = xd.NodeShape.declare(cores=1)
    with xd.Executor(nodes=[shape, shape], run_folder=runs) as executor:
        future = executor.submit(wait_once)
        eventually(lambda: [one for one in folders(runs) if (one / "begun").exists()])
        assert isinstance(executor._cluster, EmbeddedCluster)
        assert future.node is not None
        executor._cluster.lose_node(future.node)
        assert future.result(60) == "found"


def test_time_left_is_that_of_the_call(node: xd.Executor) -> None:
    def look(place: int) -> float:
        time.sleep(0.02)
        return xd.time_left()

    assert node.submit(look, 0).result(60) == float("inf")
    for bundle in (None, False):
        limited = node.options(time="10s", bundle=bundle)
        left = [one.result(60) for one in [limited.submit(look, place) for place in range(40)]]
        assert all(9 < one <= 9.98 for one in left)


def test_a_task_is_warned_and_goes_on(node: xd.Executor, tmp_path: Path) -> None:
    @xd.task(time="3s", notice="2s")
    def work() -> list[float]:
        warned: list[float] = []
        xd.on_notice(lambda: warned.append(xd.time_left()))
        while not warned:
            time.sleep(0.01)
        return warned

    (left,) = node.submit(work).result(60)
    assert 0 < left < 3, "long before its end, and not at its beginning"

    @xd.task(time="5s", notice="1h")
    def warned_at_once() -> int:
        time.sleep(0.5)
        return os.getpid()

    assert node.submit(warned_at_once).result(60) > 0
    assert node.submit(abs, -1).result(60) == 1


def test_it_is_warned_once_and_then_ended_as_any_other(runs: Path, tmp_path: Path) -> None:
    @xd.task(time="1.5s", notice="1s")
    def work() -> None:
        xd.on_notice(lambda: (tmp_path / f"warned-{time.monotonic_ns()}").touch())
        time.sleep(60)

    shape = xd.NodeShape.declare(cores=1)
    with xd.Executor(nodes=[shape], run_folder=runs, kill_grace_s=30) as executor:
        future = executor.submit(work)
        with pytest.raises(TimeExceeded):
            future.result(20)  # SIGTERM has ended it, long before SIGKILL
        assert len(list(tmp_path.glob("warned-*"))) == 1


def test_each_call_in_a_process_is_warned(runs: Path) -> None:
    @xd.task(time="20s", notice="1h")
    def work() -> tuple[int, bool]:
        warned: list[bool] = []
        xd.on_notice(lambda: warned.append(True))
        deadline_s = time.monotonic() + 10
        while not warned and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return os.getpid(), bool(warned)

    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)], run_folder=runs) as executor:
        seen = [executor.submit(work).result(60) for _ in range(3)]
        assert len({pid for pid, _ in seen}) == 1, "the process is used again"
        assert all(was_warned for _, was_warned in seen)


def test_a_warning_that_comes_too_late_ends_nothing() -> None:
    program = """if True:
        import os, signal
        from exadask import inside

        told = []
        with inside.entered(inside.Here(None, None, has_notice=True)) as here:
            here.listeners.append(lambda: told.append(1))
        os.kill(os.getpid(), signal.SIGTERM)
        with inside.entered(inside.Here(None, None)):
            print("goes on", told, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "goes on []\n"
    assert ended.returncode == -signal.SIGTERM, "a call without a notice is ended by it"


def test_the_end_of_the_allocation_counts_too(node: xd.Executor) -> None:
    assert isinstance(node._cluster, EmbeddedCluster)
    (worker,) = node._cluster._workers.values()
    agent = worker.plugins[AGENT]
    agent._berth = Berth(pool="here", allocation="here-0", ends_at=time.monotonic() + 100)

    def look(_: int) -> float:
        return xd.time_left()

    for bundle in (None, False):
        for limit_s, most_s in (("1h", 100), ("10s", 10), (None, 100)):
            limited = node.options(time=limit_s, bundle=bundle)
            left = [one.result(60) for one in [limited.submit(look, place) for place in range(20)]]
            assert all(0.6 * most_s < one <= most_s for one in left)

    @xd.task(notice="1h")
    def is_warned() -> bool:
        warned: list[bool] = []
        xd.on_notice(lambda: warned.append(True))
        deadline_s = time.monotonic() + 10
        while not warned and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return bool(warned)

    assert node.submit(is_warned).result(60)


def test_a_task_with_notice_can_be_cancelled(node: xd.Executor, tmp_path: Path) -> None:
    @xd.task(time="1h", notice="1s")
    def stay() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    future = node.submit(stay)
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    future.cancel()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_what_makes_no_sense_is_refused(node: xd.Executor, runs: Path) -> None:
    for ask in (xd.time_left, xd.checkpoint_dir):
        with pytest.raises(InvalidRequest, match="where no task runs"):
            ask()
    with pytest.raises(InvalidRequest, match="checkpoint=True"):
        node.submit(xd.checkpoint_dir).result(60)
    with pytest.raises(InvalidRequest, match="notice="):
        node.submit(xd.on_notice, print).result(60)
    with pytest.raises((InvalidRequest, xd.errors.InvalidQuantity)):
        xd.task(notice="soon")(abs)
    with pytest.raises(xd.errors.InvalidQuantity, match="notice=0"):
        xd.task(notice=0)(abs)
    shapes = [xd.NodeShape.declare(cores=1)]
    with (
        xd.Executor(nodes=shapes, run_folder=runs, journal=False) as executor,
        pytest.raises(InvalidRequest, match="wants checkpoints"),
    ):
        executor.submit(count_up, 1)
