"""A checked workload under faults at random: nothing is wrong, nothing is lost, nothing grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disk import small_disk
from tests.faults.injector import Injector

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where all is kept; the runs on a small disk of their own, where that can be had."""
    with small_disk(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(("machine", "seed", "for_s"), [("embedded", 1, 30), ("pool", 2, 75)])
def test_nothing_is_wrong_and_nothing_is_lost(
    folder: Path, machine: str, seed: int, for_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Injector(folder, seed, 2500, machine).run(for_s=for_s)
    with capsys.disabled():
        print(f"\n{machine}, seed {seed}: {outcome}")  # noqa: T201  # it belongs to the result
    assert outcome.wrong == []
    assert outcome.lost == 0
    assert sum(outcome.injected.values()) >= 5
    assert outcome.checked >= 2500


@pytest.mark.parametrize("machine", ["embedded", "pool"])
def test_nothing_grows(folder: Path, machine: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome, growth = Injector(folder, 3, 1, machine).run_rounds(for_s=25)
    with capsys.disabled():
        print(f"\n{machine}: {outcome}\n{growth}")  # noqa: T201  # it belongs to the result
    assert outcome.wrong == []
    assert growth.grown == []
