"""A pool of agents that are processes of this machine: all that an embedded cluster can, and more.

The agents listen on loopback, with TLS, as they would on the nodes of a batch system.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

import exadask as xd
from exadask.errors import ExecutorClosed, ImpossibleRequest, InvalidRequest, NoNodeLeft
from exadask.journal.reading import RunRecord
from exadask.testing.waiting import eventually

# Children shall not import this module: pytest's memory would count as the task's.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.dask

MIB = 2**20
LONG_S = 60
AGENT = "exadask.runtime.agent_program"


@dataclass(frozen=True)
class Site:
    """This machine as a site: pools of it, and what is left of them."""

    folder: Path

    def pool(self, name: str = "here", **facts: Any) -> xd.Pool:
        """Describe a pool whose nodes have four cores, whatever this machine has."""
        defaults: dict[str, Any] = {
            "batch": "local",
            "interface": "lo",
            "exclusive": False,
            "cores": 4,
            "memory": "4GiB",
            "walltime": "5m",
            "scratch": str(self.scratch),
        }
        return xd.Pool.declare(name, **defaults | facts)

    def open(self, *pools: xd.Pool, **settings: Any) -> xd.Executor:
        """Open an executor with these pools, or one of four cores."""
        chosen = list(pools) or [self.pool()]
        return xd.Executor(pools=chosen, run_folder=self.folder / "runs", **settings)

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def processes(self) -> list[str]:
        """List what runs for a run here: drivers' helpers, job scripts, agents, tasks."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = process.info["cmdline"] or []
            is_of_node = (process.info["environ"] or {}).get("EXADASK_SCRATCH") == str(self.scratch)
            if is_of_node or any(str(self.folder / "runs") in word for word in words):
                found.append(" ".join(words))
        return found

    def check_nothing_is_left(self) -> None:
        """Wait until nothing runs any more, and look at what has stayed."""
        eventually(lambda: not self.processes(), timeout_s=20)
        left = [one for name in ("tls", "cluster.json", "cancel.json", "depot") for one in
                self.folder.glob(f"runs/*/{name}")]  # fmt: skip
        assert left == []
        assert list(self.scratch.glob("*")) == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """This machine, for one test."""
    here = Site(tmp_path)
    yield here
    here.check_nothing_is_left()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[xd.Executor]:
    """Two allocations of one node each, for all tests that disturb nothing."""
    here = Site(tmp_path_factory.mktemp("two"))
    with here.open(here.pool(max_allocations=2, gpus=1), scale="manual") as executor:
        executor.scale("here", nodes=2)
        eventually(lambda: len(executor.nodes) == 2, timeout_s=LONG_S)
        yield executor
    here.check_nothing_is_left()


def agents(ex: xd.Executor) -> dict[str, psutil.Process]:
    """Find the agents of a run by the names of their allocations."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if AGENT in words and str(ex.run_folder) in words:
            found[words[words.index(AGENT) + 2]] = process
    return found


def work(index: int, seconds: float, marks: Path) -> int:
    with marks.open("a") as file:
        file.write(f"{index}\n")
    time.sleep(seconds)
    return index * index


def executions(marks: Path) -> int:
    return len(marks.read_text().split())


def hold(started: Path, go: Path) -> int:
    """Occupy a core until told to go on."""
    started.touch()
    eventually(go.exists, timeout_s=LONG_S)
    return os.getpid()


def n_done(futures: list[xd.Future[int]]) -> int:
    return sum(one.done() for one in futures)


# -- values -----------------------------------------------------------------------------------


def filled(size: int, value: int, folder: Path) -> np.ndarray[Any, Any]:
    """Make an array when all eight of these run, so that they are on both nodes."""
    (folder / str(value)).touch()
    eventually(lambda: len(list(folder.iterdir())) == 8, timeout_s=LONG_S)
    return np.full(size, value, dtype=np.uint8)


def total(parts: Any) -> int:
    """Add up arrays at any depth."""
    if isinstance(parts, dict):
        return sum(map(total, parts.values()))
    return sum(map(total, parts)) if isinstance(parts, (list, tuple)) else int(parts.sum())


def doubled(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array *= 2  # its own copy
    return array


def test_values_of_all_sizes_travel_between_nodes(two: xd.Executor, tmp_path: Path) -> None:
    sizes = [0, 1, 1000, 70_000, MIB, 4 * MIB, 20 * MIB, 50 * MIB]
    made = [two.submit(filled, size, value, tmp_path) for value, size in enumerate(sizes)]
    twice = [two.submit(doubled, one) for one in made]
    nested = two.submit(total, {"made": made[:4], "rest": ({"made": made[4:]}, {"twice": twice})})
    once = sum(value * size for value, size in enumerate(sizes))
    assert nested.result(LONG_S) == 3 * once
    assert {one.node for one in made} == {"here-0-0", "here-1-0"}
    for value, (one, size) in enumerate(zip(made, sizes, strict=True)):
        array = one.result(LONG_S)
        assert array.shape == (size,)
        assert total(array) == value * size
    assert {one.attempts for one in [*made, *twice]} == {1}


def test_a_large_argument_of_the_caller(two: xd.Executor) -> None:
    array = np.ones(50 * MIB, dtype=np.uint8)
    assert two.submit(total, [array, {"again": array}]).result(LONG_S) == 100 * MIB


def test_a_result_outlives_its_node(site: Site) -> None:
    marks = site.folder / "marks"

    def make(value: int) -> np.ndarray[Any, Any]:
        work(value, 0, marks)
        return np.full(3_000_000, value, dtype=np.uint8)

    with site.open(site.pool(idle="1s"), depot_bytes="4MiB") as ex:
        kept = [ex.submit(make, value) for value in range(4)]
        xd.wait(kept, timeout=LONG_S)
        eventually(lambda: ex.nodes == {})
        assert ex.run_folder is not None
        spilled = [one for one in ex.run_folder.glob("depot/**/*") if one.is_file()]
        assert sum(one.stat().st_size for one in spilled) >= 3_000_000
        later = ex.submit(total, {"kept": kept})
        assert later.result(LONG_S) == 6 * 3_000_000
        assert later.node == "here-1-0"
        assert [int(one.result(LONG_S)[-1]) for one in kept] == [0, 1, 2, 3]
    assert executions(marks) == 4


# -- tasks ------------------------------------------------------------------------------------


@xd.task
def tree(depth: int) -> int:
    return 1 if depth == 0 else sum(one.result() for one in tree.map([depth - 1] * 2))


def test_tasks_that_wait_for_tasks_need_no_second_core(site: Site) -> None:
    with site.open(site.pool(cores=1)) as ex:
        assert ex.submit(tree, 2).result(LONG_S) == 4


def refuse() -> None:
    raise LookupError("no such molecule", 7)


def touch_address_zero() -> None:
    ctypes.string_at(0)


def allocate() -> None:
    blocks = list[bytes]()
    while len(blocks) < 100:
        blocks.append(b"x" * (20 * MIB))
        time.sleep(0.02)  # a pace that a real program may have
    time.sleep(LONG_S)


FAILURES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type]] = {
    "raises": (refuse, (), {}, LookupError),
    "exits": (os._exit, (3,), {}, xd.errors.TaskCrashed),
    "calls exit": (sys.exit, (4,), {}, xd.errors.TaskCrashed),
    "segfaults": (touch_address_zero, (), {}, xd.errors.TaskCrashed),
    "takes memory": (allocate, (), {"memory": "200MiB"}, xd.errors.MemoryExceeded),
    "takes time": (time.sleep, (LONG_S,), {"time": "0.5s"}, xd.errors.TimeExceeded),
    "returns a lock": (threading.Lock, (), {}, xd.errors.NotSerializable),
}
FACTS = ("task", "signal", "exit_code", "asked", "limit_s", "what", "where", "chain", "root_error")


def failure(ex: xd.Executor, name: str) -> tuple[Any, ...]:
    """Let a task fail; give what its error says, without the node."""
    function, given, options, kind = FAILURES[name]
    first = ex.options(**options).submit(function, *given)
    after = ex.submit(str, [first])
    error = first.exception(LONG_S)
    assert isinstance(error, kind), repr(error)
    assert getattr(error, "node", first.node) == first.node
    assert first.attempts == 1
    consequence = after.exception(LONG_S)
    assert isinstance(consequence, xd.errors.DependencyFailed), repr(consequence)
    assert type(consequence.__cause__) is type(error)
    facts = [getattr(error, fact, None) for fact in FACTS]
    arguments = error.args if isinstance(error, LookupError) else ()
    return type(error), *facts, arguments, consequence.chain


@pytest.mark.parametrize("name", FAILURES)
def test_failures_arrive_as_from_an_embedded_cluster(
    ex: xd.Executor, two: xd.Executor, name: str
) -> None:
    assert failure(two, name) == failure(ex, name)


def test_a_retry_is_counted_and_may_go_elsewhere(two: xd.Executor, tmp_path: Path) -> None:
    def fail_first(mark: Path) -> str:
        if mark.exists():
            return "second"
        mark.touch()
        raise OSError("first")

    future = two.options(retries=1).submit(fail_first, tmp_path / "mark")
    assert future.result(LONG_S) == "second"
    assert future.attempts == 2


def test_running_and_queued_tasks_can_be_cancelled(two: xd.Executor, tmp_path: Path) -> None:
    go = tmp_path / "go"
    started = [tmp_path / f"started-{index}" for index in range(8)]
    running = [two.submit(hold, one, go) for one in started]
    eventually(lambda: all(one.exists() for one in started), timeout_s=LONG_S)
    queued = two.submit(work, 1, 0, tmp_path / "marks")
    after = two.submit(abs, queued)
    eventually(lambda: "needs 1 core" in queued.explain())
    eventually(lambda: "inputs" in after.explain())
    assert queued.cancel()
    assert running[0].cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        running[0].result(LONG_S)
    assert isinstance(after.exception(LONG_S), xd.errors.DependencyFailed)
    assert two.submit(abs, -1).result(LONG_S) == 1, "a cancelled task has left its core"
    go.touch()
    assert len({one.result(LONG_S) for one in running[1:]}) == 7
    assert not (tmp_path / "marks").exists()
    assert not running[1].cancel()


def speak(n_bytes: int, started: Path, go: Path) -> int:
    sys.stdout.write("x" * n_bytes)
    sys.stderr.write("oh no\n")
    sys.stdout.flush()
    sys.stderr.flush()
    return hold(started, go)


def test_a_future_tells_what_its_task_does(two: xd.Executor, tmp_path: Path) -> None:
    go, started = tmp_path / "go", tmp_path / "started"
    future = two.options(cores=2, memory="100MiB").submit(speak, 100_000, started, go)
    eventually(started.exists, timeout_s=LONG_S)
    assert len(future.stdout()) == 100_000, "while it runs"
    assert "running on here-" in future.explain()
    assert future.node in two.nodes
    go.touch()
    future.result(LONG_S)
    assert (len(future.stdout()), future.stderr()) == (100_000, "oh no\n")
    assert future.explain().startswith("finished after")
    assert future.usage is not None
    assert future.usage.peak_bytes > MIB
    assert (future.attempts, future.resources.cores) == (1, 2)


def test_state_is_loaded_once_per_process(two: xd.Executor, tmp_path: Path) -> None:
    def load() -> dict[str, int]:
        (tmp_path / f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
        return {"factor": 3}

    @xd.task(setup=load)
    def scale(state: dict[str, int], number: int) -> tuple[int, int]:
        return state["factor"] * number, os.getpid()

    results = [one.result(LONG_S) for one in two.map_task(scale, [range(30)])]
    assert [one for one, _ in results] == [3 * number for number in range(30)]
    assert len(list(tmp_path.glob("loaded-*"))) == len({pid for _, pid in results})


def test_a_task_may_run_in_the_agent(two: xd.Executor) -> None:
    pids = [two.options(isolation="thread").submit(os.getpid) for _ in range(4)]
    assert {one.result(LONG_S) for one in pids} <= {one.pid for one in agents(two).values()}


def device_of(started: Path, go: Path) -> tuple[str, ...]:
    hold(started, go)
    return tuple(os.environ.get(name, "?") for name in ("CUDA_VISIBLE_DEVICES", "TASTE", "SET_UP"))


@pytest.mark.parametrize("way", ["fact", "variable"])
def test_gpus_and_variables_reach_the_tasks(
    site: Site, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    facts: dict[str, Any] = {"env": {"TASTE": "sweet"}, "setup": ["export SET_UP=yes"]}
    if way == "fact":
        facts["gpus"] = 2
    else:
        monkeypatch.setenv("EXADASK_GPUS", "2")
        facts |= {"exclusive": True, "cores": os.cpu_count(), "gpus": 2}
    go = site.folder / "go"
    with site.open(site.pool(**facts)) as ex:
        one_each = ex.options(gpus=1)
        both = [one_each.submit(device_of, site.folder / f"{index}", go) for index in range(2)]
        eventually(
            lambda: all((site.folder / f"{index}").exists() for index in range(2)), timeout_s=LONG_S
        )
        third = ex.options(gpus=0.5).submit(device_of, site.folder / "third", go)
        eventually(lambda: "GPU" in third.explain())
        go.touch()
        found = sorted(one.result(LONG_S) for one in both)
        assert found == [("0", "sweet", "yes"), ("1", "sweet", "yes")]
        assert third.result(LONG_S)[0] in ("0", "1")
        sour = ex.options(env={"TASTE": "sour"}).submit(device_of, site.folder / "sour", go)
        assert sour.result(LONG_S) == ("", "sour", "yes")


def test_many_tiny_tasks(two: xd.Executor) -> None:
    futures = [two.submit(pow, 2, number) for number in range(300)]
    assert [one.result(LONG_S) for one in futures] == [2**number for number in range(300)]


def test_asyncio_and_the_standard_library_can_wait(two: xd.Executor) -> None:
    async def gather() -> list[int]:
        first = await two.submit(abs, -1)
        return [first, *await asyncio.gather(*(two.submit(abs, -n) for n in range(2, 5)))]

    assert asyncio.run(gather()) == [1, 2, 3, 4]
    futures = [two.submit(time.sleep, 0.01 * number) for number in range(5)]
    done, left = concurrent.futures.wait(futures, timeout=LONG_S)
    assert (done, left) == (set(futures), set())
    loop_free = [two.submit(abs, -number) for number in range(5)]
    assert sorted(one.result() for one in xd.as_completed(loop_free)) == [0, 1, 2, 3, 4]


def test_dask_runs_on_the_same_nodes(two: xd.Executor) -> None:
    import dask
    import dask.array as da

    tripled = dask.delayed(lambda x: 3 * x)(dask.delayed(total)(np.arange(5)))
    assert two.client.compute(tripled).result(LONG_S) == 30
    array = da.ones((1000, 1000), chunks=(250, 250))
    assert two.client.compute((array + array.T).sum()).result(LONG_S) == 2_000_000
    theirs = two.client.submit(abs, -5)
    assert two.submit(pow, theirs, 2).result(LONG_S) == 25


# -- what makes no sense ----------------------------------------------------------------------


def test_what_no_pool_can_run_is_refused_at_once(site: Site) -> None:
    with site.open(site.pool("small", cores=2), site.pool("large", cores=8)) as ex:
        refused: list[tuple[dict[str, Any], str]] = [
            ({"pool": "medium"}, r"no such pool is open; open are: small, large"),
            ({"cores": 9}, "8 cores"),
            ({"cores": 4, "pool": "small"}, "2 cores"),
            ({"gpus": 1}, "1 GPU"),
            ({"memory": "1TiB"}, "4 GiB"),
            ({"time": "1h"}, "5m"),
        ]
        for options, said in refused:
            with pytest.raises(ImpossibleRequest, match=said):
                ex.options(**options).submit(abs, -1)
        assert [pool.allocations for pool in ex.status().pools] == [(), ()]
        with pytest.raises(InvalidRequest, match=r"no pool 'medium'.*small, large"):
            ex.scale("medium", nodes=1)
        with pytest.raises(InvalidRequest, match='scale="manual"'):
            ex.scale("small", nodes=1)
        wide = ex.options(cores=4).submit(abs, -1)
        assert ex.options(pool="small").submit(abs, -2).result(LONG_S) == 2
        assert wide.result(LONG_S) == 1
        assert wide.node == "large-0-0"
        assert {pool.name: pool.nodes for pool in ex.status().pools} == {"small": 1, "large": 1}


@pytest.mark.parametrize("nodes", [-1, 1.5, "two", True, None])
def test_a_pool_is_scaled_to_whole_numbers(two: xd.Executor, nodes: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"nodes={nodes!r}"):
        two.scale("here", nodes=nodes)


def test_the_plan_says_why_not(two: xd.Executor) -> None:
    two.scale("here", nodes=9)
    (step,) = two.plan()
    two.scale("here", nodes=2)
    assert step.command is None
    assert "7 more nodes" in step.text
    assert "max_allocations=2" in step.text
    assert two.plan() == []


def test_an_embedded_cluster_has_no_pools(ex: xd.Executor) -> None:
    for ask in (ex.plan, ex.status, lambda: ex.scale("here", nodes=1)):
        with pytest.raises(InvalidRequest, match="has no pools"):
            ask()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a fact, nearly": ({"site": "local", "acount": "m1"}, "'account'"),
    "a setting, nearly": ({"site": "local", "lead": "1m"}, "'lead_s'"),
    "an argument, nearly": ({"sites": "local"}, "'site'"),
    "a fact without a pool": ({"account": "m1"}, "account=.*site="),
    "a site, nearly": ({"site": "locl"}, "'local'"),
    "no such pool of the site": ({"site": "local", "pools": ["gpu"]}, "no pool 'gpu'.*local"),
    "a pool without a site": ({"pools": ["gpu"]}, "site="),
    "no pool": ({"pools": []}, "has no pool"),
    "no kind of pool": ({"pools": [3]}, "Pool.declare"),
    "several mistakes": (
        {"pools": [{"name": "x", "batch": "slrm", "walltime": "soon", "cors": 2}]},
        "'slurm'.*walltime='soon'.*'cores'",
    ),
    "a machine made of shapes": (
        {"site": "local", "nodes": [xd.NodeShape.declare(cores=2)]},
        "nodes",
    ),
    "attach and site": ({"attach": "latest", "site": "local"}, "site= would change nothing"),
    "attach and facts": ({"attach": "latest", "walltime": "2h"}, "walltime= would"),
    "attach and a budget": ({"attach": "latest", "budget": "1 node-hours"}, "budget= would"),
    "a number for a choice": ({"site": "local", "scale": 3}, 'scale=3.*"manual"'),
    "a cost without its unit": ({"site": "local", "budget": "10 bananas"}, "node-hours"),
    "an interface that is not there": (
        {"site": "local", "scheduler_interface": "ib9"},
        r"no network interface 'ib9'.*lo \(127.0.0.1\)",
    ),
    "a folder that cannot be": ({"site": "local", "run_folder": "/proc/x"}, "EXADASK_RUN_FOLDER"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_said_wrongly_is_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, said = WRONG[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(xd.errors.ExadaskError, match=f"(?s){said}"):
        xd.Executor(**arguments)


def test_two_pools_of_one_name(site: Site) -> None:
    with pytest.raises(InvalidRequest, match=r"here.*a name of its own"):
        site.open(site.pool(), site.pool())


def test_a_variable_that_is_nearly_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXADASK_RUN_FOLDR", "runs")
    with pytest.raises(InvalidRequest, match="'EXADASK_RUN_FOLDER'"):
        xd.Executor(site="local")


def test_several_nodes_of_one_machine(site: Site) -> None:
    with pytest.raises(InvalidRequest, match=r"3 nodes.*max_allocations="):
        site.open(site.pool(nodes=3))


def test_a_closed_executor_says_so(site: Site) -> None:
    with site.open() as ex:
        small, large = ex.submit(abs, -1), ex.submit(bytes, MIB)
        again = ex.submit(bytes, MIB)
        assert len(large.result(LONG_S)) == MIB
    ex.shutdown()
    ex.shutdown(wait=False, cancel_futures=True)
    assert (small.result(), len(large.result())) == (1, MIB)
    for ask in (
        lambda: ex.submit(abs, -1),
        lambda: ex.scale("here", nodes=1),
        ex.plan,
        ex.status,
        lambda: ex.client,
        again.result,
    ):
        with pytest.raises(ExecutorClosed):
            ask()
    assert ex.nodes == {}
    assert repr(ex) == "<Executor: closed>"
    assert "closed" in ex._repr_html_()


def test_a_folder_that_the_nodes_do_not_see(
    two: xd.Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, go = tmp_path / "here", tmp_path / "go"
    here.mkdir()
    started = [tmp_path / f"{index}" for index in range(8)]
    busy = [two.submit(hold, one, go) for one in started]
    eventually(lambda: all(one.exists() for one in started), timeout_s=LONG_S)
    monkeypatch.chdir(here)
    future = two.submit(abs, -1)
    monkeypatch.chdir(tmp_path)
    eventually(lambda: "needs 1 core" in future.explain())
    here.rmdir()
    go.touch()
    with pytest.raises(InvalidRequest, match=rf"'abs' was submitted in {here}.*here-\d-0.*chdir"):
        future.result(LONG_S)
    xd.wait(busy)


# -- what breaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_agent_is_ended_and_every_result_arrives(site: Site, end: signal.Signals) -> None:
    marks, saved = site.folder / "marks", site.folder / "saved"

    def make() -> bytes:
        return bytes(work(1000, 0, saved))

    with site.open() as ex:
        kept = ex.submit(make)
        assert kept.exception(LONG_S) is None
        futures = [ex.submit(work, index, 0.5, marks) for index in range(20)]
        eventually(lambda: n_done(futures) >= 2, timeout_s=LONG_S)
        agents(ex)["here-0"].send_signal(end)
        assert [one.result(LONG_S) for one in futures] == [index**2 for index in range(20)]
        assert {one.attempts for one in futures} == {1}, "being cut off counts as no attempt"
        assert "here-1-0" in {one.node for one in futures}
        assert len(kept.result(LONG_S)) == 1_000_000
    assert executions(saved) == (1 if end is signal.SIGTERM else 2), "saved, or made again"


def test_a_task_that_kills_its_nodes_is_found_out(site: Site) -> None:
    def kill_agent() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(LONG_S)

    with site.open() as ex:
        poison = ex.submit(kill_agent)
        others = [ex.submit(work, index, 0.3, site.folder / "marks") for index in range(6)]
        error = poison.exception(LONG_S)
        assert isinstance(error, xd.errors.NodeLost)
        assert error.nodes == ("here-0-0", "here-1-0", "here-2-0")
        assert [one.result(LONG_S) for one in others] == [index**2 for index in range(6)]


def test_an_agent_that_stops_for_a_while(two: xd.Executor, tmp_path: Path) -> None:
    futures = [two.submit(work, index, 0.2, tmp_path / "marks") for index in range(24)]
    stopped = agents(two)["here-0"]
    stopped.suspend()
    try:
        xd.wait(futures, timeout=3)
    finally:
        stopped.resume()
    assert [one.result(LONG_S) for one in futures] == [index**2 for index in range(24)]
    assert executions(tmp_path / "marks") == 24


def test_a_job_script_is_killed_and_its_agent_does_not_stay(site: Site) -> None:
    with site.open() as ex:
        futures = [ex.submit(work, index, 0.5, site.folder / "marks") for index in range(12)]
        eventually(lambda: n_done(futures) >= 2, timeout_s=LONG_S)
        orphan = agents(ex)["here-0"]
        parents = [one for one in orphan.parents() if "bash" in one.name()]
        parents = [one for one in parents if str(ex.run_folder) in " ".join(one.cmdline())]
        for script in parents:
            script.kill()
        assert [one.result(LONG_S) for one in futures] == [index**2 for index in range(12)]
        eventually(lambda: list(agents(ex)) in ([], ["here-1"]))


def test_a_disk_that_cannot_be_written_for_a_while_costs_no_pool(site: Site) -> None:
    with site.open() as ex:
        assert ex.run_folder is not None
        allocations, aside = ex.run_folder / "allocations", ex.run_folder / "aside"
        allocations.rename(aside)
        allocations.touch()  # nobody can make a folder in a file, not even root
        future = ex.submit(work, 3, 0, site.folder / "marks")
        eventually(lambda: "refused" in future.explain(), timeout_s=LONG_S)
        allocations.unlink()
        aside.rename(allocations)
        assert future.result(LONG_S) == 9


def test_a_disk_that_cannot_be_written_keeps_no_allocation_from_its_end(site: Site) -> None:
    """The reaper's orders are written whenever a job begins or ends."""
    with site.open() as ex:
        assert ex.run_folder is not None
        orders, obstacle = ex.run_folder / "cancel.json", ex.run_folder / "cancel.json.draft"
        obstacle.mkdir()
        assert ex.submit(work, 3, 0, site.folder / "marks").result(LONG_S) == 9
        assert json.loads(orders.read_text()) == []
        agents(ex)["here-0"].kill()
        assert ex.submit(work, 4, 0, site.folder / "marks").result(LONG_S) == 16
        obstacle.rmdir()
        eventually(lambda: len(json.loads(orders.read_text())) == 1, timeout_s=LONG_S)


def test_a_run_folder_that_cannot_be_written_is_to_blame(site: Site) -> None:
    with site.open(keep_results=True) as ex:
        run = ex.run_folder
    assert run is not None
    (run / "tls").touch()
    with pytest.raises(xd.errors.RunFolderError, match="run_folder="):
        site.open(resume=run)
    (run / "tls").unlink()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("skew_s", [7200, -7200, 250])
def test_the_clock_of_an_agent_may_be_wrong(site: Site, skew_s: int) -> None:
    """Tasks are placed by how long the allocation really lasts: five minutes."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the library that sets the clock of a process wrong")
    library, clock = site.folder / "skew.so", site.folder / "clock"
    source = Path(__file__).parents[1] / "faults" / "skew.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    clock.write_bytes(skew_s.to_bytes(8, "little", signed=True))
    env = {"LD_PRELOAD": str(library), "SKEW_FILE": str(clock)}
    with site.open(site.pool(env=env)) as ex:
        future = ex.options(time="2m").submit(time.time)
        assert future.result(LONG_S) - time.time() == pytest.approx(skew_s, abs=LONG_S)
        with pytest.raises(ImpossibleRequest, match="5m"):
            ex.options(time="1h").submit(abs, -1).result(LONG_S)


@pytest.mark.timeout(200)
def test_the_walltime_ends_and_a_successor_goes_on(site: Site) -> None:
    """Two rounds of tasks do not fit into one allocation: the second is cut off."""
    marks = site.folder / "marks"
    with site.open(site.pool(walltime="8s")) as ex:
        futures = [ex.submit(work, index, 4.5, marks) for index in range(8)]
        assert [one.result(150) for one in futures] == [index**2 for index in range(8)]
        assert len({one.node for one in futures}) >= 2
        causes = [one.reason for one in ex.status().pools[0].ended]
    assert causes[0] == "reached its walltime"
    assert executions(marks) > 8


DRIVER = """
import signal, sys, time
import exadask as xd

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where it was ignored

def sleep(name):
    open(name, "w").close()
    time.sleep(600)

pool = xd.Pool.declare("here", batch="local", interface="lo", exclusive=False, cores=2,
    scratch=sys.argv[1])
with xd.Executor(pools=[pool], run_folder=sys.argv[2]) as ex:
    xd.wait([ex.submit(sleep, f"started-{index}") for index in range(4)])
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_driver_that_is_ended(site: Site, end: signal.Signals) -> None:
    argv = [sys.executable, "-c", DRIVER, str(site.scratch), str(site.folder / "runs")]
    with subprocess.Popen(argv, cwd=site.folder, stderr=subprocess.PIPE, text=True) as driver:
        eventually(lambda: len(list(site.folder.glob("started-*"))) == 2, timeout_s=LONG_S)
        assert len([one for one in site.processes() if AGENT in one]) == 1
        driver.send_signal(end)
        _, errors = driver.communicate(timeout=LONG_S)
    if end is signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt")
    site.check_nothing_is_left()


IN_A_THREAD = """
import signal, sys, threading
from pathlib import Path
import exadask as xd
from exadask.runtime.requests import preview

def run():
    pool = xd.Pool.declare("here", batch="local", interface="lo", scratch=sys.argv[1])
    with xd.Executor(pools=[pool], run_folder=sys.argv[2]) as ex:
        print(ex.submit(pow, 2, 10).result(60))
    far = xd.Pool.declare("far", batch="slurm", queue="cpu", cores=4)
    print("#SBATCH" in preview(far, Path("runs")).scripts.job, "dask_jobqueue" in sys.modules)

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a background job
before = signal.getsignal(signal.SIGINT)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(signal.getsignal(signal.SIGINT) is before is signal.default_int_handler)
"""


def test_a_thread_may_open_an_executor_and_ctrl_c_stays_what_it_was(site: Site) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_THREAD, str(site.scratch), str(site.folder / "runs")],
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert (ended.stdout.splitlines(), ended.stderr) == (["1024", "True True", "True"], "")


# -- a run that goes on -------------------------------------------------------------------------


def test_a_resumed_run_has_spent_what_it_spent_before(site: Site) -> None:
    with site.open(budget="1 node-hours", keep_results=True) as executor:
        executor.submit(time.sleep, 1.5).result(LONG_S)
        run = executor.run_folder
    assert run is not None
    with RunRecord.opened(run) as record:
        (known,) = record.allocations()
    assert known.node_seconds is not None
    assert known.node_seconds >= 1.5
    with site.open(budget="1 node-hours", resume=run) as executor:
        assert executor.status().spent_node_s == pytest.approx(known.node_seconds)
    too_much = f"{known.node_seconds / 3600} node-hours"
    with site.open(budget=too_much, resume=run) as executor, pytest.raises(NoNodeLeft):
        executor.submit(abs, -1).result(LONG_S)
