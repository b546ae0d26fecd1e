"""A driver that is killed again and again on a real Slurm comes to its end all the same."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from exadask.journal.reading import RunRecord
from exadask.testing.waiting import eventually

pytestmark = pytest.mark.timeout(300)

CAMPAIGN = """
import sys, time
from pathlib import Path
from typing import Any
import exadask as xd

here = Path(sys.argv[1])
facts = {"queue": "cpu", "nodes": [1, 2], "interface": "lo", "walltime": "5m"}
pool = xd.Pool.declare("cpu", batch="slurm", **facts)

def work(place):
    time.sleep(0.01)
    with open(here / "notes" / str(place), "a") as file:
        file.write("x")
    return place * place

def add(*values):
    return sum(values)

resume = sorted((here / "runs").glob("2*"))[-1:]
options = {"resume": resume[0]} if resume else {"keep_results": True}
with xd.Executor(pools=[pool], run_folder=here / "runs", **options) as ex:
    print("open", flush=True)
    futures = [ex.submit(work, place) for place in range(2000)]
    print("total", ex.submit(add, *futures).result(), flush=True)
"""


def test_a_killed_driver_is_resumed_with_new_allocations(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    program = tmp_path / "campaign.py"
    program.write_text(CAMPAIGN)
    chance = random.Random(11)

    def n_executions() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "notes").iterdir())

    def drive(n_more: int | None) -> str:
        before = n_executions()
        driver = subprocess.Popen(
            [sys.executable, program, tmp_path], stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        if n_more is not None:
            eventually(lambda: n_executions() >= before + n_more, timeout_s=120)
            driver.kill()
        printed, _ = driver.communicate(timeout=200)
        if n_more is not None:
            eventually(lambda: not slurm.jobs(), timeout_s=60)  # the reaper has ended them
        return printed

    for _ in range(3):
        drive(chance.randint(50, 500))
    assert f"total {sum(place**2 for place in range(2000))}" in drive(None)
    executions = Counter(len(path.read_text()) for path in (tmp_path / "notes").iterdir())
    assert sum(executions.values()) == 2000
    assert max(executions) <= 4
    assert executions[1] >= 500, "what was done in the last second before a kill is done again"
    (run,) = (tmp_path / "runs").glob("2*")
    with RunRecord.opened(run) as record:
        assert len(record.sessions()) == 4
        assert record.counts()["reused"] > 0
        names = [one.name for one in record.allocations()]
        assert len(names) == len(set(names)) >= 4, "no name is used twice"
        last = record.allocations()[-1]
        assert last.state == "ended"
        assert last.began is not None
