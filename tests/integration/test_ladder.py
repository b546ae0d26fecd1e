"""A task that has exceeded its memory or its time is placed again one rung up its ladder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import exadask as xd
from exadask.errors import InvalidRequest, MemoryExceeded, TimeExceeded
from exadask.journal.reading import RunRecord

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

MIB = 2**20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[xd.Executor]:
    shape = xd.NodeShape.declare(cores=4, memory="2GiB")
    options: dict[str, Any] = {"poll_interval_s": 0.02, "kill_grace_s": 0.2}
    with xd.Executor(nodes=[shape], run_folder=tmp_path, **options) as executor:
        yield executor


def hold(n_bytes: int) -> int:
    """Take so much memory, and wait to be caught."""
    data = bytearray(n_bytes)
    for place in range(0, n_bytes, 4096):
        data[place] = 1
    time.sleep(0.3 if n_bytes > 50 * MIB else 0.01)
    return len(data)


@pytest.mark.parametrize("bundle", [None, False])
def test_those_that_need_more_get_more_and_no_retry_is_counted(
    node: xd.Executor, bundle: bool | None
) -> None:
    sizes = [200 * MIB if place % 5 == 0 else MIB for place in range(50)]
    futures = [
        node.options(memory=["100MiB", "400MiB"], bundle=bundle).submit(hold, size)
        for size in sizes
    ]
    assert [one.result(90) for one in futures] == sizes
    assert [one.attempts for one in futures] == [2 if size > MIB else 1 for size in sizes]
    wanted = [one.resources.memory_bytes for one in futures]
    assert wanted == [400 * MIB if size > MIB else 100 * MIB for size in sizes]
    assert node.run_folder is not None
    node.shutdown()
    with RunRecord.opened(node.run_folder) as record:
        assert record.counts() == {"done": 50}
        (climbed,) = record.find(futures[0].key)
        outcomes = [(one.outcome, one.error) for one in record.attempts(climbed.id)]
        assert outcomes == [("failed", "MemoryExceeded"), ("done", None)]


def test_the_last_rung_is_the_last(node: xd.Executor) -> None:
    ladder = node.options(memory=["60MiB", "100MiB", "150MiB"])
    future = ladder.submit(hold, 600 * MIB)
    with pytest.raises(MemoryExceeded, match=r"entitled to 0\.146 GiB"):
        future.result(60)
    assert future.attempts == 3


def test_a_rung_that_fits_no_node_is_not_climbed_to(node: xd.Executor) -> None:
    future = node.options(memory=["60MiB", "1TiB"]).submit(hold, 300 * MIB)
    with pytest.raises(MemoryExceeded, match=r"entitled to 0\.059 GiB"):
        future.result(60)
    assert future.attempts == 1


def test_time_can_be_climbed_too(node: xd.Executor) -> None:
    future = node.options(time=[0.2, 30], cores=[1, 2]).submit(time.sleep, 0.6)
    assert future.result(60) is None
    assert future.attempts == 2
    assert (future.resources.time_s, future.resources.cores) == (30, 2)
    late = node.options(time=[0.1, 0.3], retries=0).submit(time.sleep, 20)
    with pytest.raises(TimeExceeded):
        late.result(60)


def test_other_errors_do_not_climb_and_retries_still_count(node: xd.Executor) -> None:
    future = node.options(memory=["100MiB", "200MiB"], retries=1).submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        future.result(60)
    assert future.attempts == 2
    assert future.resources.memory_bytes == 100 * MIB


def test_tasks_of_tasks_climb(node: xd.Executor) -> None:
    def parent() -> int:
        from exadask.active import active_executor

        ladder = active_executor("hold").options(memory=["60MiB", "400MiB"])
        return ladder.submit(hold, 200 * MIB).result()

    assert node.submit(parent).result(60) == 200 * MIB


@pytest.mark.parametrize("bundle", [None, False])
def test_nobody_climbs_for_another(node: xd.Executor, bundle: bool | None) -> None:
    def parent() -> int:
        from exadask.active import active_executor

        return active_executor("hold").options(memory="60MiB").submit(hold, 200 * MIB).result()

    future = node.options(memory=["300MiB", "600MiB"], bundle=bundle).submit(parent)
    with pytest.raises(MemoryExceeded, match=r"'hold'.*entitled to 0\.059 GiB"):
        future.result(60)
    assert future.attempts == 1, "it was its child that needed more"


@pytest.mark.parametrize("bundle", [None, False])
def test_retries_are_those_of_all_rungs(
    node: xd.Executor, tmp_path: Path, bundle: bool | None
) -> None:
    def fail() -> None:
        n_before = len(list(tmp_path.glob("attempt-*")))
        (tmp_path / f"attempt-{n_before}").touch()
        if n_before == 1:
            hold(300 * MIB)
        raise ValueError(f"attempt {n_before}")

    future = node.options(memory=["100MiB", "900MiB"], retries=1, bundle=bundle).submit(fail)
    with pytest.raises(ValueError, match="attempt 2"):  # one, its retry, and one rung up
        future.result(60)
    assert future.attempts == 3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"memory": []}, "has no rung"),
        ({"memory": ["2GiB", "1GiB"]}, "from 1 core, 2 GiB of memory to 1 core, 1 GiB"),
        ({"memory": ["1GiB", "1GiB"]}, "Each rung must have more"),
        ({"cores": [1, 2]}, "Each rung must have more"),
        ({"memory": ["1GiB", "2GiB"], "time": [1, 2, 3]}, "memory: 2, time: 3"),
        ({"memory": ["1GiB", "much"]}, "much"),
        ({"memory": ["1GiB", "2GiB"], "gpus": [2, 1]}, "less of nothing"),
        ({"memory": ["1GiB", "2GiB"], "cores": [2, 1]}, "less of nothing"),
        ({"memory": "auto", "time": [1, 2]}, "is a ladder by itself"),
    ],
)
def test_ladders_that_make_no_sense_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises((InvalidRequest, xd.errors.InvalidQuantity), match=why):
        xd.task(**options)(abs)


def test_options_can_be_changed_on_a_ladder() -> None:
    ladder = xd.task(memory=["1GiB", "4GiB"], time="1h")(hold)
    assert [one.memory_bytes for one in ladder.options.rungs] == [2**30, 2**32]
    assert ladder.with_options(time="2h").options.rungs[1].time_s == 7200
    flat = ladder.with_options(memory="2GiB").options
    assert flat.rungs == ()
    assert flat.request.memory_bytes == 2**31
    assert "ladder" not in repr(flat.request)
    with pytest.raises(InvalidRequest, match="time: 2, memory: 3"):
        xd.task(time=["10m", "1h"])(hold).with_options(memory=["1GiB", "2GiB", "3GiB"])
    both = xd.task(memory=["1GiB", "4GiB"], time=["10m", "1h"])(hold).with_options(memory="2GiB")
    assert [one.time_s for one in both.options.rungs] == [600, 3600]
    assert {one.memory_bytes for one in both.options.rungs} == {2**31}


def test_memory_is_learnt_from_earlier_runs(tmp_path: Path) -> None:
    @xd.task(memory="auto")
    def use(n_bytes: int) -> int:
        return hold(n_bytes)

    shape = xd.NodeShape.declare(cores=2, memory="2GiB")
    options: dict[str, Any] = {"poll_interval_s": 0.02, "run_folder": tmp_path}
    with xd.Executor(nodes=[shape], **options) as ex:
        first = [ex.submit(use, 60 * MIB) for _ in range(4)]
        assert [one.result(60) for one in first] == [60 * MIB] * 4
        assert first[0].resources.memory_bytes == 2**30, "nothing is known yet"
    with xd.Executor(nodes=[shape], **options) as ex:
        again = ex.submit(use, 60 * MIB)
        assert again.result(60) == 60 * MIB
        wanted = again.resources.memory_bytes
        assert wanted is not None
        assert 80 * MIB < wanted < 400 * MIB
        larger = ex.submit(use, 700 * MIB)
        assert larger.result(60) == 700 * MIB
        assert larger.attempts > 1
    assert xd.task(memory="1GiB")(hold).with_options(memory="auto").options.learns_memory
    assert not xd.task(memory="auto")(hold).with_options(memory="1GiB").options.learns_memory
