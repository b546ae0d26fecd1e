"""What a journal tells of a run: each task's story, why tasks failed, and what to ask for."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from click.testing import CliRunner

import exadask as xd
from exadask.cli.main import cli
from exadask.journal.reading import RunRecord

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

MIB = 2**20


def eat(n_bytes: int) -> int:
    data = bytearray(n_bytes)
    for place in range(0, n_bytes, 4096):
        data[place] = 1
    time.sleep(5)
    return len(data)


def crash() -> None:
    sys.stderr.write("about to fall\n")
    sys.stderr.flush()
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def dawdle() -> None:
    time.sleep(60)


def refuse(place: int) -> None:
    raise ValueError(f"place {place} is taken")


def told(run: Path, *arguments: str) -> str:
    done = CliRunner().invoke(
        cli, [*arguments[:1], str(run), *arguments[1:]], standalone_mode=False
    )
    assert done.exception is None, done.output
    return done.output


def test_each_kind_of_failure_is_named_rightly(tmp_path: Path) -> None:
    shape = xd.NodeShape.declare(cores=2, memory="8GiB")
    options: dict[str, Any] = {"poll_interval_s": 0.02, "kill_grace_s": 0.2}
    with xd.Executor(nodes=[shape], run_folder=tmp_path, **options) as ex:
        greedy = ex.options(memory="100MiB").submit(eat, 300 * MIB)
        slow = ex.options(time="0.3s").submit(dawdle)
        failed = [ex.submit(refuse, place) for place in range(12)]
        injected: dict[str, list[xd.Future[Any]]] = {
            "MemoryExceeded": [greedy],
            "TimeExceeded": [slow],
            "TaskCrashed": [ex.submit(crash), ex.submit(leave)],
            "ValueError": failed,
            "DependencyFailed": [ex.submit(abs, greedy), ex.submit(abs, failed[0])],
        }
        unlucky = ex.options(retries=2, bundle=False).submit(refuse, 99)
        injected["ValueError"].append(unlucky)
        for futures in injected.values():
            for future in futures:
                assert future.exception(60) is not None
        gone = ex.submit(dawdle)
        gone.cancel()
        assert ex.submit(abs, -3).result() == 3
        keys = {name: [future.key for future in futures] for name, futures in injected.items()}
        run = ex.run_folder
    assert run is not None
    groups = json.loads(told(run, "failures", "--json"))
    assert {
        name: sum(one["n_tasks"] for one in groups if one["error"] == name) for name in injected
    } == {name: len(futures) for name, futures in injected.items()}
    assert {one["error"] for one in groups} == set(injected)
    (refused,) = [one for one in groups if one["error"] == "ValueError"]
    assert refused["name"] == "refuse"
    assert "is taken" in refused["message"]
    assert "Traceback" in refused["detail"]
    shown = told(run, "failures")
    assert shown.startswith("13 tasks of refuse: ValueError on node-0")
    assert "about to fall" in shown
    for name, those in keys.items():
        for key in those:
            (task,) = json.loads(told(run, "explain", key, "--json"))
            assert task["state"] == "failed"
            assert name in {one["error"] for one in task["attempts"]}, (name, key)
    text = told(run, "explain", keys["MemoryExceeded"][0])
    assert "attempt 1 on node-0" in text
    assert "100 MiB" in text
    text = told(run, "explain", unlucky.key)
    assert "attempt 3" in text
    assert "attempt 4" not in text
    assert "did not run to its end" in told(run, "explain", keys["DependencyFailed"][0])
    with RunRecord.opened(run) as record:
        assert record.counts() == {"failed": 19, "cancelled": 1, "done": 1}
    assert "19 failed" in told(run, "explain")


def test_advice_says_what_was_used(tmp_path: Path) -> None:
    @xd.task(cores=2, memory="4GiB", time="1h")
    def idle(place: int) -> int:
        time.sleep(0.25)
        return place

    with xd.Executor(
        nodes=[xd.NodeShape.declare(cores=4, memory="8GiB")], run_folder=tmp_path
    ) as ex:
        assert [one.result() for one in idle.map(range(6))] == list(range(6))
        run = ex.run_folder
    assert run is not None
    (found,) = json.loads(told(run, "advise", "--json"))
    assert found["n_tasks"] == 6
    assert found["cores"] == 1
    assert 0 < found["peak_bytes"] < found["memory_bytes"] < 500 * MIB
    assert 0.2 < found["wall_s"] < 5
    assert found["time_s"] < 10
    assert "ask for: cores=1, memory=" in told(run, "advise")


def test_advice_tells_large_arguments_from_small_ones(tmp_path: Path) -> None:
    @xd.task(memory="1GiB")
    def unpack(data: bytes) -> int:
        copies = [bytearray(data) for _ in range(20)]
        time.sleep(0.2)
        return len(copies)

    nodes = [xd.NodeShape.declare(cores=4, memory="8GiB")]
    with xd.Executor(nodes=nodes, run_folder=tmp_path) as ex:
        for size in (2000, 5_000_000):
            assert [one.result() for one in unpack.map([bytes(size)] * 5)] == [20] * 5
        run = ex.run_folder
    assert run is not None
    (found,) = json.loads(told(run, "advise", "--json"))
    (small, few, used, _), (large, many, more, _) = found["by_size"]
    assert (few, many) == (5, 5)
    assert 2000 <= small < 3000
    assert 5_000_000 <= large < 5_001_000
    assert used < 100 * MIB < more
    assert "with arguments of up to 4.768 MiB (5 tasks): under" in told(run, "advise")


def test_advice_counts_all_sessions_of_a_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"nodes": [xd.NodeShape.declare(cores=1)], "run_folder": tmp_path}
    with xd.Executor(keep_results=True, **options) as ex:
        ex.submit(abs, -1).result()
        run = ex.run_folder
    with xd.Executor(resume=run, **options) as ex:
        ex.submit(abs, -2).result()
    assert run is not None
    (found,) = json.loads(told(run, "advise", "--json"))
    assert found["n_tasks"] == 2


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    runner = CliRunner()
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)], run_folder=tmp_path) as ex:
        ex.submit(abs, 1).result()
        run = ex.run_folder
    assert run is not None
    for arguments in (["explain", str(run), "never"], ["explain", str(tmp_path / "no")]):
        done = runner.invoke(cli, arguments, standalone_mode=False)
        assert isinstance(done.exception, xd.errors.ExadaskError), done.output
    assert "no task of" in told(run, "failures")
    (run / "journal.sqlite").unlink()
    done = runner.invoke(cli, ["explain", str(run)], standalone_mode=False)
    assert "has no journal" in str(done.exception)


def test_memo_files_are_listed_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXADASK_RUN_FOLDER", str(tmp_path))

    @xd.task(memo=True)
    def square(x: int) -> int:
        return x * x

    @xd.task(memo=True)
    def cube(x: int) -> int:
        return x**3

    with xd.Executor(nodes=[xd.NodeShape.declare(cores=1)]):
        assert [one.result() for one in [*square.map(range(3)), *cube.map(range(2))]]
    runner = CliRunner()

    def names() -> list[str]:
        done = runner.invoke(cli, ["memo", "ls", "--json"], standalone_mode=False)
        return sorted(one["name"] for one in json.loads(done.stdout))

    assert names() == ["cube"] * 2 + ["square"] * 3
    runner.invoke(cli, ["memo", "rm", "cube"], standalone_mode=False)
    assert names() == ["square"] * 3
    done = runner.invoke(cli, ["memo", "rm", "cube"], standalone_mode=False)
    assert "has the key or the task 'cube'" in str(done.exception)
    runner.invoke(cli, ["memo", "gc", "--older-than", "1d"], standalone_mode=False)
    assert len(names()) == 3
    runner.invoke(cli, ["memo", "gc", "--keep", "1"], standalone_mode=False)
    assert names() == []
    done = runner.invoke(cli, ["memo", "gc", "--keep", "much"], standalone_mode=False)
    assert "--keep" in str(done.exception)
