"""A checked workload under faults at random: nothing is wrong, and nothing is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injector import Injector

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where all is kept; the runs on a small disk of their own, where that can be had."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "exadask-test", str(runs)]
    is_mounted = False
    try:
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    yield tmp_path
    if is_mounted:
        subprocess.run(["umount", "-l", str(runs)], check=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_wrong_and_nothing_is_lost(
    folder: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Injector(folder, seed, n_tasks=2500).run(for_s=60)
    with capsys.disabled():
        print(f"\nseed {seed}: {outcome}")  # noqa: T201  # the counts belong to the test's result
    assert outcome.wrong == []
    assert outcome.lost == 0
    assert sum(outcome.injected.values()) >= 5
    assert outcome.checked >= 2500
