"""Results that are found again: memoised ones, and those of a run that was cut off."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import exadask as xd
from exadask.errors import InvalidRequest, RunFolderError, UnhashableValue
from exadask.journal.reading import RunRecord

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def opened(runs: Path, **options: Any) -> xd.Executor:
    return xd.Executor(nodes=[xd.NodeShape.declare(cores=2)], run_folder=runs, **options)


def note(notes: Path, name: object) -> None:
    with (notes / str(name)).open("a") as file:
        file.write("x")


def counts(notes: Path) -> dict[str, int]:
    return {path.name: len(path.read_text()) for path in notes.iterdir()}


# -- memoised tasks ---------------------------------------------------------------------------


def test_equal_calls_are_run_once_ever(runs: Path, notes: Path) -> None:
    @xd.task(memo=True)
    def square(x: int) -> int:
        note(notes, x)
        return x * x

    for _ in range(3):
        with opened(runs) as executor:
            assert [one.result() for one in square.map(range(5))] == [0, 1, 4, 9, 16]
            assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert counts(notes) == {str(x): 1 for x in range(5)}
    with RunRecord.opened(next(iter(sorted(runs.glob("2*"))))) as record:
        assert record.counts() == {"done": 5, "reused": 5}


def test_it_counts_what_a_function_does_and_not_what_it_asks_for(runs: Path, notes: Path) -> None:
    def make(step: int, **options: Any) -> xd.tasks.Task[Any, int]:
        def add(x: int) -> int:
            note(notes, x)
            return x + step

        return xd.task(memo=True, **options)(add)

    with opened(runs):
        assert make(1).submit(7).result() == 8
        assert make(1, cores=2, name="other", time="1h").submit(7).result() == 8
        assert counts(notes) == {"7": 1}
        assert make(2).submit(7).result() == 9
        assert make(1, version="2").submit(7).result() == 8
        assert counts(notes) == {"7": 3}


def test_inputs_count_by_their_values(runs: Path, notes: Path) -> None:
    @xd.task(memo=True)
    def total(values: Any) -> float:
        note(notes, "total")
        return float(np.sum(values))

    def make(n: int, way: str) -> Any:
        return list(range(n)) if way == "list" else np.arange(n)

    with opened(runs) as executor:
        for _ in range(2):
            assert total.submit(executor.submit(make, 4, "list")).result() == 6
            assert total.submit([executor.submit(abs, -4), 3]).result() == 7
    assert counts(notes) == {"total": 2}


def test_large_results_are_remembered(runs: Path, notes: Path) -> None:
    @xd.task(memo=True)
    def ones(n: int) -> Any:
        note(notes, n)
        return np.ones(n)

    @xd.task(memo=True)
    def mean(values: Any) -> float:
        note(notes, "mean")
        return float(values.mean())

    for _ in range(2):
        with opened(runs):
            made = ones.submit(500_000)
            assert mean.submit(made).result() == 1
            assert made.result().sum() == 500_000
    assert counts(notes) == {"500000": 1, "mean": 1}


def test_broadcast_values_and_files_count_by_their_content(
    runs: Path, notes: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("three")

    @xd.task(memo=True)
    def length(table: list[int], file: Any) -> int:
        note(notes, "length")
        return len(table) + len(Path(file).read_text())

    for _ in range(2):
        with opened(runs) as executor:
            table = executor.broadcast([1, 2])
            assert length.submit(table, xd.File(str(tmp_path / "a.txt"))).result() == 7
    (tmp_path / "a.txt").write_text("four")
    with opened(runs) as executor:
        table = executor.broadcast([1, 2])
        assert length.submit(table, xd.File(str(tmp_path / "a.txt"))).result() == 6
    assert counts(notes) == {"length": 2}


def test_damaged_results_are_computed_again(runs: Path, notes: Path) -> None:
    @xd.task(memo=True)
    def cube(x: int) -> int:
        note(notes, x)
        return x**3

    with opened(runs):
        assert [one.result() for one in cube.map(range(3))] == [0, 1, 8]
    for path in (runs / "memo").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-5])
    with opened(runs):
        assert [one.result() for one in cube.map(range(3))] == [0, 1, 8]
    assert set(counts(notes).values()) == {2}


def test_failures_are_not_remembered(runs: Path, notes: Path) -> None:
    @xd.task(memo=True)
    def fail_once(path: str) -> int:
        note(notes, "call")
        if counts(notes)["call"] == 1:
            raise ValueError(path)
        return 1

    with opened(runs):
        assert isinstance(fail_once.submit("a").exception(), ValueError)
        assert fail_once.submit("a").result() == 1
        assert fail_once.submit("a").result() == 1
    assert counts(notes) == {"call": 2}


class Stubborn:
    """Can travel, and cannot be hashed."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol == 4:
            raise TypeError("it has no content")
        return Stubborn, ()


def test_unhashable_arguments_are_an_error_that_names_them(runs: Path) -> None:
    @xd.task(memo=True)
    def f(*values: object) -> int:
        return len(values)

    with opened(runs):
        with pytest.raises(UnhashableValue, match=r"argument 2\['a'\] .*it has no content"):
            f.submit(1, {"a": Stubborn()})
        with Path(os.devnull).open() as file, pytest.raises(UnhashableValue):
            f.submit(file)
        assert f.submit(1).result() == 1
        with pytest.raises(InvalidRequest, match="memo='yes'"):
            xd.task(memo="yes")(print)


# -- runs that are resumed --------------------------------------------------------------------


def test_a_resumed_run_computes_only_what_is_missing(runs: Path, notes: Path) -> None:
    def dice(low: int, high: int) -> float:
        note(notes, "dice")
        return random.random() + low + high

    def add(*values: float) -> float:
        note(notes, "add")
        return sum(values)

    with opened(runs, keep_results=True) as executor:
        first = [executor.submit(dice, 1, 6) for _ in range(4)]
        total = executor.submit(add, *first).result()
        thrown = [one.result() for one in first]
        mapped = list(executor.map(dice, range(3), range(3)))
        folder = executor.run_folder
    assert len(set(thrown)) == 4, "equal calls of a function that is not memoised are not the same"
    with opened(runs, resume=folder) as executor:
        again = [executor.submit(dice, 1, 6) for _ in range(5)]
        assert [one.result() for one in again[:4]] == thrown
        assert executor.submit(add, *again[:4]).result() == total
        assert list(executor.map(dice, range(3), range(3))) == mapped
        assert again[4].result() not in thrown
        assert executor.run_folder == folder
    assert counts(notes) == {"dice": 8, "add": 1}
    assert folder is not None
    with RunRecord.opened(folder) as record:
        assert len(record.sessions()) == 2
        assert record.counts() == {"done": 9, "reused": 8}


def test_one_driver_at_a_time(runs: Path) -> None:
    with opened(runs) as executor:
        with pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
            opened(runs, resume=executor.run_folder)
        assert executor.submit(abs, -1).result() == 1
    with pytest.raises(RunFolderError, match="no such run"):
        opened(runs, resume="never")


def test_a_run_folder_that_cannot_be_made_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file") as executor:
        assert executor.submit(abs, -2).result() == 2
        assert executor.run_folder is None
    assert [one for one in caplog.messages if "nothing is written about this run" in one]
    with pytest.raises(RunFolderError):
        opened(tmp_path / "file", keep_results=True)


CAMPAIGN = """
import time
from pathlib import Path
import exadask as xd
from exadask.active import active_executor

@xd.task
def work(place):
    time.sleep(0.003)
    with open(Path(__file__).parent / "notes" / str(place), "a") as file:
        file.write("x")
    return place * place

@xd.task
def add(first, second):
    return first + second

def main(*, n: int = 600):
    half = work.map(range(n // 2))
    pairs = [add.submit(*pair) for pair in zip(half[::2], half[1::2])]
    rest = active_executor("work").map(work, (place for place in range(n // 2, n)))
    print("total", sum(rest) + sum(one.result() for one in pairs))
"""


def test_a_driver_that_is_killed_again_and_again_comes_to_its_end(
    tmp_path: Path, notes: Path
) -> None:
    (tmp_path / "campaign.py").write_text(CAMPAIGN)
    command = [str(Path(sys.executable).with_name("exadask")), "run", "campaign.py", "--resume"]
    environment = {**os.environ, "EXADASK_RUN_FOLDER": str(tmp_path / "runs")}
    chance = random.Random(7)
    for _ in range(5):
        driver = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            driver.communicate(timeout=chance.uniform(1, 3))
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.communicate()
    last = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert f"total {sum(place**2 for place in range(600))}" in last.stdout
    executions = Counter(counts(notes).values())
    assert sum(executions.values()) == 600
    assert max(executions) <= 6, "each kill costs what was done in its last moment, no more"
    assert executions[1] > 100
    began_s = time.monotonic()
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert Counter(counts(notes).values()) == executions, "all was there"
    assert time.monotonic() - began_s < 60


@pytest.fixture(autouse=True)
def _no_module_is_left() -> Iterator[None]:
    yield
    sys.modules.pop("campaign", None)
