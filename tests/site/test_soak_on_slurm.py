"""A checked workload on a real Slurm whose jobs are cancelled and whose nodes go down.

Longer: ``python -m tests.faults 20 1 20000 --on slurm``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exadask.testing.waiting import eventually
from tests.faults.disk import small_disk
from tests.faults.injector import Injector

FOR_S = 40


@pytest.mark.timeout(400)
def test_nothing_is_wrong_and_nothing_is_lost(
    slurm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path):
        outcome = Injector(tmp_path, 5, 2500, "slurm").run(for_s=FOR_S)
    eventually(lambda: not slurm.jobs(), timeout_s=60)
    with capsys.disabled():
        print(f"\n{outcome}")  # noqa: T201  # the counts belong to the test's result
    assert (outcome.wrong, outcome.lost) == ([], 0)
    assert outcome.injected["jobs cancelled"] + outcome.injected["nodes down"] > 0
    assert outcome.checked >= 2500
