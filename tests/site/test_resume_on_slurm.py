"""A driver that is killed again and again on a real Slurm comes to its end all the same.

Three kills here; twenty by ``python -m tests.faults 1 1 2000 --on slurm --kills 20``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exadask.journal.reading import RunRecord
from exadask.testing.waiting import eventually
from tests.faults.injector import Injector

N_KILLS, N_TASKS = 3, 2000
AGAIN_S = 1.0


@pytest.mark.timeout(400)
def test_a_killed_driver_is_resumed_with_new_allocations(
    slurm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    injector = Injector(tmp_path, 11, N_TASKS, "slurm")
    outcome = injector.run_and_kill(N_KILLS, is_early_too=False)
    eventually(lambda: not slurm.jobs(), timeout_s=60)  # the reaper has ended them
    with capsys.disabled():
        print(f"\n{outcome}")  # noqa: T201  # the counts belong to the test's result
    assert (outcome.wrong, outcome.lost) == ([], 0)
    assert outcome.checked >= N_TASKS
    assert max(outcome.repeated_s, default=0.0) <= AGAIN_S, "earlier work is not done again"
    (run,) = (tmp_path / "runs").glob("2*")
    with RunRecord.opened(run) as record:
        assert len(record.sessions()) == N_KILLS + 1
        assert record.counts()["reused"] > 0
        names = [one.name for one in record.allocations()]
        assert len(names) == len(set(names)) >= 4, "no name is used twice"
        last = record.allocations()[-1]
        assert last.state == "ended"
        assert last.began is not None
