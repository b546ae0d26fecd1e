"""What counts as growth, and as done again."""

from __future__ import annotations

from pathlib import Path

from tests.faults.outcome import Growth, Outcome

SIZE = {"memory [MiB]": 90, "descriptors": 30, "threads": 4, "processes": 6, "files": 17}


def test_what_grows_with_each_round_is_found() -> None:
    steady = [SIZE | {"memory [MiB]": 90 + index % 7} for index in range(40)]
    assert Growth(steady).grown == []
    leaking = [one | {"descriptors": 30 + index} for index, one in enumerate(steady)]
    assert Growth(leaking).grown == ["descriptors"]


def test_what_fills_up_in_the_first_rounds_is_no_growth() -> None:
    assert Growth([SIZE | {"memory [MiB]": min(50 + 10 * i, 120)} for i in range(60)]).grown == []


def test_what_is_done_after_the_end_of_its_driver_was_not_written_down(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.write_text("a 9.5 1\nb 2.0 1\na 12.0 2\nc 10.1 1\nc 11.0 2\n")
    outcome = Outcome()
    outcome.note_repeats(marks, killed_at={1: 10.0})
    assert outcome.repeated_s == [0.5, 0.0]
