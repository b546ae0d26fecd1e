"""The benchmarks run and print what they promise; their figures are not looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


def _output(name: str, *options: str) -> str:
    command = [sys.executable, str(BENCH / f"{name}.py"), "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("latency", "exadask / peer", ["dask"]),
        ("throughput", "exadask / peer", ["processes"]),
        ("startup", "until", ["dask", "bare Python"]),
        ("packing", "exadask / offline", ["1, 2 and 4 cores", "3 and 1 in turns", "1 of 4"]),
    ],
)
def test_prints_a_table(name: str, column: str, rows: list[str]) -> None:
    lines = _output(name, "--peers", ",".join({*rows} & {"dask", "processes"})).splitlines()
    assert column in lines[3]
    for row in rows:
        assert any(line.startswith(row) for line in lines[5:]), row


def test_prints_json() -> None:
    report = json.loads(_output("memory", "--json"))
    assert [row["who"].split()[0] for row in report["rows"]] == ["exadask", "dask"]
    assert report["rows"][0]["rise [arrays]"]["median"] >= 0
    assert {bar["what"] for bar in report["bars"]} >= {"time per task [memcpy]"}
