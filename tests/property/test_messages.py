"""Whatever a wrong peer sends: nobody else notices, and the books agree."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exadask as xd
from exadask.core.placement import Placement
from exadask.resources import Resources
from exadask.runtime.backlog import Backlog
from exadask.runtime.cluster import EmbeddedCluster
from exadask.runtime.node_agent import AGENT
from exadask.runtime.wire import Decoder, encode
from exadask.testing.waiting import eventually
from tests.property.oddities import tried

pytestmark = [pytest.mark.dask, pytest.mark.timeout(120)]

few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FOUR = xd.NodeShape.declare(cores=4, gpus=1, memory="8GiB")
MARK = "test-mark"


@dataclass(repr=False)
class World:
    """A cluster, a right client, a wrong one, and what has arrived of the wrong one's marks."""

    ex: xd.Executor
    stranger: Client
    arrived: set[int] = field(default_factory=set)
    serial: Iterator[int] = field(default_factory=itertools.count)

    @property
    def cluster(self) -> EmbeddedCluster:
        assert isinstance(self.ex._cluster, EmbeddedCluster)
        return self.ex._cluster

    @property
    def placement(self) -> Placement:
        return self.cluster.plugin.placement

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function on the loop of the cluster."""

        async def run() -> Any:
            return function(*arguments)

        return self.cluster._runner.run_sync(run)

    def send(self, way: str, messages: list[dict[str, Any]]) -> None:
        """Send messages, and wait until they have been taken: the connection still stands."""
        mark = next(self.serial)

        def send() -> None:
            worker = next(iter(self.cluster._workers.values()))
            stream = {
                "client": self.stranger.scheduler_comm,
                "node": worker.batched_stream,
                "scheduler": self.cluster.scheduler.stream_comms[worker.address],
            }[way]
            for message in [*messages, {"op": MARK, "mark": mark}]:
                stream.send(message)

        self.call(send)
        eventually(lambda: mark in self.arrived)

    def live(self) -> tuple[str, int]:
        """Give the key and the share of a task that runs, if one does."""

        def find() -> tuple[str, int]:
            for key, record in self.cluster.plugin._records.items():
                if record.share is not None:
                    return key, int(record.share.share_id)
            return "no-task", 10**6

        found: tuple[str, int] = self.call(find)
        return found

    def check_books(self) -> None:
        """Nothing is held any more by anyone, and the books agree with themselves."""
        eventually(lambda: all(node.ledger.is_idle for node in self.placement.nodes.values()))
        self.call(self.placement.check)
        assert len(self.placement.nodes) == len(self.cluster.scheduler.workers) == 2


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with xd.Executor(nodes=[FOUR, FOUR], kill_grace_s=0.3) as ex:
        assert isinstance(ex._cluster, EmbeddedCluster)
        cluster = ex._cluster
        with Client(cluster.address, loop=cluster._runner.loop, set_as_default=False) as stranger:
            made = World(ex, stranger)

            def note(mark: int, **_: object) -> None:
                made.arrived.add(mark)

            cluster.scheduler.stream_handlers[MARK] = note
            for worker in cluster._workers.values():
                worker.stream_handlers[MARK] = note
            yield made
            made.check_books()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep thousands of refusals from the report."""
    caplog.set_level(logging.CRITICAL)


# -- what is wrong with messages -------------------------------------------------------------------

LIVE_KEY, LIVE_SHARE = "<live key>", "<live share>"
PLAIN = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats()),
        *(st.text(max_size=6), st.binary(max_size=12)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PICKLES = st.sampled_from(
    (b"", b"garbage", pickle.dumps(5), pickle.dumps(FOUR)[:-9], pickle.dumps({"cores": 10**9}))
)
KEYS = st.one_of(st.just(LIVE_KEY), st.text(max_size=5), PLAIN)
WRONG_KEYS = st.one_of(st.text(max_size=5), PLAIN)
SHARES = st.one_of(
    st.integers(10**7, 2**62),
    st.integers(-(2**62), -1),
    PLAIN.filter(lambda one: isinstance(one, bool) is False and not isinstance(one, int | float)),
)
INDICES = st.one_of(st.integers(8192, 2**62), st.integers(-(2**62), -2), st.text(max_size=3))
WISHES = st.one_of(
    PLAIN,
    st.fixed_dictionaries(
        {},
        optional={
            "cores": st.one_of(PLAIN, st.integers(-3, 3)),
            "gpu_units": st.one_of(PLAIN, st.integers(-3, 3000)),
            "memory_bytes": PLAIN,
            "time_s": PLAIN,
        },
    ),
)
LANES = st.one_of(
    PLAIN, st.lists(st.one_of(PLAIN, st.tuples(PLAIN, PLAIN, PLAIN, WISHES).map(list)), max_size=3)
)
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "exadask-node": {
        "shape": st.one_of(PLAIN, PICKLES, st.just(pickle.dumps(FOUR))),
        "pool": PLAIN,
        "allocation": PLAIN,
        "left_s": PLAIN,
    },
    "exadask-leaving": {"worker": WRONG_KEYS},
    "exadask-cancel": {"key": WRONG_KEYS},
    "exadask-report": {
        "share": SHARES,
        "key": KEYS,
        "report": st.one_of(PLAIN, PICKLES),
        "kept": PLAIN,
        "may_retry": PLAIN,
    },
    "exadask-progress": {
        "key": KEYS,
        "worker": PLAIN,
        "kept": INDICES,
        "items": st.one_of(PICKLES, PLAIN),
        "returned": PLAIN,
    },
    "exadask-nearing": {"share": SHARES, "key": KEYS},
    "exadask-drop": {"key": KEYS, "index": INDICES},
    "exadask-backlog": {"lanes": LANES},
    "exadask-ended": {"share": SHARES},
    "exadask-lend": {"share": st.one_of(SHARES, st.just(LIVE_SHARE))},
    "exadask-reclaim": {"share": st.one_of(SHARES, st.just(LIVE_SHARE))},
}
TO_NODES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "exadask-resume": {"share": st.one_of(PLAIN, st.fixed_dictionaries({"share": SHARES}))},
    "exadask-drop": {
        "key": KEYS,
        "indices": st.one_of(
            st.lists(INDICES, min_size=1, max_size=3),
            PLAIN.filter(lambda one: not isinstance(one, bytes | list) or not one),
        ),
    },
    "exadask-yield": {"key": KEYS},
}


@st.composite
def messages(
    draw: st.DrawFn, kinds: dict[str, dict[str, st.SearchStrategy[Any]]]
) -> list[dict[str, Any]]:
    """Write messages in any order, whose fields are wrong, missing or too many."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from(sorted(kinds)))
        message = {name: draw(value) for name, value in kinds[op].items()}
        match draw(st.sampled_from(("whole", "whole", "missing", "more"))):
            case "missing" if op != "exadask-leaving":
                del message[draw(st.sampled_from(sorted(message)))]
            case "more":
                message[draw(st.sampled_from(("extra", "self", "op2")))] = draw(PLAIN)
        found.append({"op": op, **message})
    return found


def filled(world: World, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name a task that runs where a message is to name one."""
    key, share = world.live()
    live = {LIVE_KEY: key, LIVE_SHARE: share}
    return [
        {
            name: live.get(value, value) if isinstance(value, str) else value
            for name, value in message.items()
        }
        for message in found
    ]


def twice(number: int) -> int:
    return 2 * number


def require_no_harm(world: World, way: str, found: list[dict[str, Any]]) -> None:
    """Send wrong messages while right work is done."""
    alone = [world.ex.options(cores=2, bundle=False).submit(twice, number) for number in range(3)]
    short = world.ex.options(bundle=8).map(twice, range(16))
    world.send(way, filled(world, found))
    assert [future.result(30) for future in alone] == [0, 2, 4]
    assert [future.result(30) for future in short] == [2 * number for number in range(16)]
    world.check_books()


@few
@given(found=messages(FIELDS))
def test_a_wrong_client_harms_nobody(world: World, found: list[dict[str, Any]]) -> None:
    require_no_harm(world, "client", found)
    assert world.stranger.status == "running"


@few
@given(found=messages({op: one for op, one in FIELDS.items() if op != "exadask-leaving"}))
def test_a_wrong_agent_harms_nobody(world: World, found: list[dict[str, Any]]) -> None:
    require_no_harm(world, "node", found)


@few
@given(found=messages(TO_NODES))
def test_a_wrong_scheduler_harms_no_node(world: World, found: list[dict[str, Any]]) -> None:
    require_no_harm(world, "scheduler", found)


# -- questions -------------------------------------------------------------------------------------

QUESTIONS = ("exadask_explain", "exadask_output", "exadask_save")


@few
@given(
    question=st.sampled_from(QUESTIONS),
    arguments=st.fixed_dictionaries(
        {}, optional={"key": KEYS, "stream": PLAIN, "index": PLAIN, "name": PLAIN, "x": PLAIN}
    ),
)
def test_a_wrong_question_is_answered_or_refused(
    world: World, question: str, arguments: dict[str, Any]
) -> None:
    future = world.ex.options(bundle=False).submit(twice, 4)
    arguments = filled(world, [arguments])[0]

    async def ask() -> object:
        return await getattr(world.stranger.scheduler, question)(**arguments)

    answer, refusal = tried(lambda: world.cluster._runner.run_sync(ask), Exception)
    assert refusal is not None or isinstance(answer, str | bytes | None)
    assert future.result(30) == 8
    world.check_books()


# -- what tasks ask for ----------------------------------------------------------------------------

WHOLE = {
    **dict.fromkeys(("client", "memory_bytes", "time_s", "warm_key", "pool")),
    "name": "f",
    "order": 0,
    "cores": 1,
    "gpu_units": 0,
    "is_bundle": False,
}


@st.composite
def wishes(draw: st.DrawFn) -> Any:
    """Write a request in which something is wrong."""
    wish = dict(WHOLE)
    for name in draw(st.sets(st.sampled_from(sorted(WHOLE)), min_size=1, max_size=3)):
        if draw(st.booleans()):
            del wish[name]
        else:
            wish[name] = draw(PLAIN)
    return draw(st.one_of(st.just(wish), PLAIN.filter(lambda one: one is not None)))


@few
@given(wish=wishes(), share=PLAIN)
def test_a_task_that_asks_for_nonsense_is_placed_by_the_books(
    world: World, wish: Any, share: Any
) -> None:
    right = world.ex.options(cores=4, bundle=False).submit(twice, 5)
    with dask.annotate(exadask=wish, exadask_share=share):
        wrong = [world.stranger.submit(twice, number, pure=False) for number in range(4)]
    future = world.ex.options(cores=4, bundle=False).submit(twice, 6)
    world.stranger.submit(twice, 7, pure=False).result(30)  # it came after those
    records = world.cluster.plugin._records
    for one in wrong:
        record = records[one.key]
        assert record.request == Resources.parse(
            cores=record.request.cores,
            gpus=record.request.gpus,
            memory=record.request.memory_bytes,
            time=record.request.time_s,
        )
    assert (right.result(30), future.result(30)) == (10, 12)
    for one in wrong:
        one.cancel()
    world.check_books()


# -- by name: what once did harm -------------------------------------------------------------------


def test_a_wrong_message_costs_neither_client_nor_node(world: World) -> None:
    wrong: list[dict[str, Any]] = [{"op": op} for op in FIELDS]
    wrong += [{"op": "exadask-lend", "share": 10**9}, {"op": "exadask-reclaim", "share": -1}]
    nodes = set(world.cluster.scheduler.workers)
    for way in ("client", "node"):
        require_no_harm(world, way, wrong)
    require_no_harm(world, "scheduler", [{"op": op} for op in TO_NODES])
    assert set(world.cluster.scheduler.workers) == nodes
    assert world.stranger.status == "running"


def test_a_drop_of_no_call_is_not_kept_for_later_attempts(world: World, tmp_path: Path) -> None:
    go = tmp_path / "go"
    future = world.ex.options(bundle=False).submit(eventually, go.exists)
    eventually(lambda: future.node is not None)
    key, _ = world.live()
    world.send("client", [{"op": "exadask-drop", "key": key, "index": "x"}])
    world.send("scheduler", [{"op": "exadask-drop", "key": key, "indices": ["x", 10**9]}])
    assert world.cluster.plugin._records[key].dropped == []
    for worker in world.cluster._workers.values():
        assert worker.plugins[AGENT]._drops == {}
    go.touch()
    future.result(30)


def test_a_client_that_is_gone_waits_for_nothing(world: World) -> None:
    wish = {"cores": 1, "gpu_units": 0, "memory_bytes": None, "time_s": None}
    lanes = [[1, None, 50, wish]]
    world.send("client", [{"op": "exadask-backlog", "lanes": lanes, "client": "a ghost"}])
    assert world.cluster.plugin.backlog._unsent.get("a ghost") is None


@given(lanes=LANES)
def test_a_backlog_is_noted_whole_or_not_at_all(lanes: Any) -> None:
    backlog = Backlog(Placement(reserve_after_s=1))
    before = backlog.demand()
    slots, refusal = tried(lambda: backlog.note("client", lanes), Exception)
    if slots is None:
        assert refusal is not None
        assert backlog.demand() == before
    else:
        for one in backlog.demand():
            assert one.request.cores >= 1
            assert one.count >= 0


# -- between an agent and its processes ------------------------------------------------------------

FRAMES = st.one_of(
    st.binary(max_size=40),
    PLAIN.map(lambda one: encode(one)[0]),
    st.binary(max_size=20).map(lambda body: struct.pack("!QI", len(body), 0) + body),
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)).map(
        lambda pair: struct.pack("!QI", *pair) + b"x" * 20
    ),
)


@given(pieces=st.lists(FRAMES, max_size=4))
def test_any_bytes_are_messages_or_refused(pieces: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder()
    with ours, theirs:
        theirs.sendall(b"".join(pieces))
        theirs.shutdown(socket.SHUT_WR)
        while decoder.receive(ours):
            pass
        messages, refusal = tried(lambda: list(decoder.messages()), Exception)
        decoder.close()
    assert messages is not None or refusal is not None


def write_to_every_socket(what: bytes) -> None:
    for path in Path("/proc/self/fd").iterdir():
        try:
            if "socket:" in str(path.readlink()):
                os.write(int(path.name), what)
        except OSError:  # it was that of the directory
            continue
    eventually(lambda: False, timeout_s=60)


@pytest.mark.parametrize(
    "what",
    [b"garbage" * 9, b"\0" * 64, struct.pack("!QI", 2**62, 0), encode(5)[0], encode(None)[0]],
    ids=["text", "zeros", "huge", "number", "none"],
)
def test_a_task_that_writes_to_its_agent_fails_alone(world: World, what: bytes) -> None:
    other = world.ex.options(bundle=False).submit(twice, 2)
    future = world.ex.options(bundle=False).submit(write_to_every_socket, what)
    with pytest.raises(xd.errors.TaskCrashed):
        future.result(30)
    assert other.result(30) == 4
    world.check_books()
