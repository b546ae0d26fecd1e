"""A driver that is killed again and again: nothing is lost, and hardly anything is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.injector import Injector

N_KILLS, N_TASKS = 20, 2000
AGAIN_S = 1.0


@pytest.mark.timeout(400)
def test_a_driver_is_killed_twenty_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    outcome = Injector(tmp_path, 1, N_TASKS).run_and_kill(N_KILLS)
    with capsys.disabled():
        print(f"\n{outcome}")  # noqa: T201  # the counts belong to the test's result
    assert (outcome.wrong, outcome.lost) == ([], 0)
    assert outcome.injected == {"drivers killed": N_KILLS}
    assert outcome.checked >= N_TASKS
    assert max(outcome.repeated_s) <= AGAIN_S, "what was done earlier is not done again"
