"""A bundle that is about to end has an heir on its node; whatever happens, nobody is stuck."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

import exadask as xd
from exadask.core.ledger import ShareId, TaskId
from exadask.runtime.cluster import EmbeddedCluster
from exadask.runtime.relay import Relay
from exadask.testing.waiting import eventually

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.dask, pytest.mark.timeout(90)]


@pytest.fixture
def node() -> Iterator[xd.Executor]:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=2)], kill_grace_s=0.3) as executor:
        yield executor
        placement = cluster_of(executor).plugin.placement
        eventually(lambda: all(one.ledger.is_idle for one in placement.nodes.values()))
        placement.check()
        assert not cluster_of(executor).plugin.relay._heirs


@pytest.fixture
def heirs(monkeypatch: pytest.MonkeyPatch) -> list[TaskId]:
    """The bundles that were sent ahead."""
    found: list[TaskId] = []
    choose = Relay._choose

    def choose_and_note(self: Relay, share: ShareId) -> TaskId | None:
        heir = choose(self, share)
        found.extend([heir] if heir is not None else [])
        return heir

    monkeypatch.setattr(Relay, "_choose", choose_and_note)
    return found


def cluster_of(executor: xd.Executor) -> EmbeddedCluster:
    assert isinstance(executor._cluster, EmbeddedCluster)
    return executor._cluster


def rest(place: int) -> int:
    time.sleep(0.005)
    return place


def test_bundles_follow_each_other(node: xd.Executor, heirs: list[TaskId]) -> None:
    for _ in range(20):  # on a busy machine a bundle may end before its heir has come
        assert list(node.map(rest, range(500))) == list(range(500))
        if heirs:
            return
    raise AssertionError("no bundle was sent ahead")


def test_nobody_waits_behind_a_call_that_does_not_end(node: xd.Executor, tmp_path: Path) -> None:
    def rest_or_wait(place: int) -> int:
        deadline_s = time.monotonic() + 60
        while place == 193 and len(list(tmp_path.iterdir())) < 399:
            assert time.monotonic() < deadline_s, "others wait for this one"
            time.sleep(0.01)
        time.sleep(0.005)
        (tmp_path / str(place)).touch()
        return place

    futures = [node.submit(rest_or_wait, place) for place in range(400)]
    assert [future.result(60) for future in futures] == list(range(400))


def test_tasks_that_wait_for_tasks_lend_their_share_to_no_heir(node: xd.Executor) -> None:
    def ask(place: int) -> int:
        time.sleep(0.004)
        if place % 20:
            return place
        from exadask.active import active_executor

        return active_executor("ask").submit(rest, place).result()

    assert list(node.map(ask, range(300))) == list(range(300))


def test_heirs_can_be_cancelled(node: xd.Executor) -> None:
    assert list(node.map(rest, range(20))) == list(range(20))
    for n_done in (20, 45, 60, 95):
        futures = [node.submit(rest, place) for place in range(400)]
        for future in futures[:n_done]:
            assert future.result(30) >= 0
        for future in futures:
            future.cancel()
    assert list(node.map(rest, range(20))) == list(range(20))


def test_a_task_of_higher_priority_goes_before_heirs(node: xd.Executor) -> None:
    low = [node.submit(rest, place) for place in range(2000)]
    for n_done in (100, 300, 500, 700):
        low[n_done].result(30)
        assert node.options(priority=1).submit(rest, -1).result(30) == -1
    assert not low[-1].done(), "it did not wait for all of them"
    assert [future.result(30) for future in low] == list(range(2000))


def test_heirs_of_a_dead_node_run_elsewhere() -> None:
    shape = xd.NodeShape.declare(cores=2)
    with xd.Executor(nodes=[shape, shape], kill_grace_s=0.3) as executor:
        futures = [executor.submit(rest, place) for place in range(1500)]
        for n_done in (100, 400):
            futures[n_done].result(30)
            cluster_of(executor).add_node(shape)
            cluster_of(executor).lose_node(next(iter(cluster_of(executor).shapes)))
        assert [future.result(60) for future in futures] == list(range(1500))
