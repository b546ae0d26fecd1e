"""The benchmarks run and print what they promise; their figures are not looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench import contest
from tests.bench.__main__ import SCENARIOS, parsed
from tests.bench.measure import Bar, Report
from tests.bench.sandbox import ROOT, Sandbox

BESIDE_DASK = {"mixed", "memory", "latency"}
FAILING = """
class Failing:
    name = "failing"

    def start(self):
        pass

    def close(self):
        raise RuntimeError("cannot close")


def fail(subject):
    raise ValueError("too bad\\nin detail")


class Unable:
    name = "unable"

    def start(self):
        raise RuntimeError("cannot start")
"""


def _run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--out", str(folder), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def beside_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run what can be compared with the peer that starts fastest: the folder, what was printed."""
    folder = tmp_path_factory.mktemp("bench")
    return folder, _run(folder, *sorted({*SCENARIOS} - BESIDE_DASK), "--peers", "processes")


@pytest.fixture(scope="module")
def beside_dask(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the others; what was printed as JSON."""
    folder = tmp_path_factory.mktemp("bench")
    printed = _run(folder, *sorted(BESIDE_DASK), "--peers", "dask", "--json")
    scenarios: list[dict[str, Any]] = json.loads(printed)["scenarios"]
    return scenarios


def test_reports_beside_processes(beside_processes: tuple[Path, str]) -> None:
    folder, printed = beside_processes
    everything = json.loads((folder / "results.json").read_text())
    for report in everything["scenarios"]:
        assert f"\n{report['name']}: " in printed
        _check(report)
    assert everything["facts"]["cpu"]
    assert everything["facts"]["memory_bytes"] > 2**28
    assert {"exadask", "dask"} <= {*everything["facts"]["versions"]}


def test_draws(beside_processes: tuple[Path, str]) -> None:
    pytest.importorskip("matplotlib")
    names = {path.stem for path in beside_processes[0].glob("*.png")}
    assert names == {*SCENARIOS} - BESIDE_DASK


def test_reports_beside_dask(beside_dask: list[dict[str, Any]]) -> None:
    peers = {one["name"]: {line["peer"] for line in one["lines"]} for one in beside_dask}
    assert peers == {
        "latency": {"dask", ""},
        "memory": {"dask"},
        "mixed": {"dask", "offline schedule"},
    }
    bars = {bar["what"] for one in beside_dask for bar in one["bars"]}
    assert {"warm call [ms]: exadask / dask", "hand over [memcpy]"} <= bars
    for report in beside_dask:
        _check(report)


def _check(report: dict[str, Any]) -> None:
    """Check that a scenario has figures, and that nothing failed or was left behind."""
    assert report["lines"], report["name"]
    assert all("median" in line["exadask"] for line in report["lines"])
    told = ("the caller waits", "decisions per second")
    assert all(any(text in note for text in told) for note in report["notes"])


def test_prints_markdown(tmp_path: Path) -> None:
    table = _run(tmp_path, "submit", "--peers", "processes", "--markdown").splitlines()
    assert table[0] == "|  | better | exadask | processes | other |"
    assert table[2].startswith("| submit [calls/s] | more | ")


@pytest.mark.parametrize("arguments", [["nothing"], ["--peers", "nobody"]])
def test_complains(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(arguments)
    assert "choose from" in capsys.readouterr().err


def test_bars_have_a_side() -> None:
    assert Bar(what="time", value=2.0, limit=2.0).is_met
    assert not Bar(what="rate", value=1.0, limit=2.0, side="at least").is_met
    assert str(Bar(what="rate", value=3.0, limit=2.0, side="at least")) == (
        "bar met: rate: 3, at least 2"
    )


def test_failures_become_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing_peers.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    peers: Any = __import__("failing_peers")
    report = Report(name="test", title="failures")
    block = contest.Block(name="block", work=peers.fail, arguments=lambda *_: (), rounds=1)
    contest.hold(report, [block], [peers.Unable], ours=peers.Failing)
    assert report.notes == [
        "unable: failed (start): RuntimeError: cannot start",
        "failing: failed to close: RuntimeError: cannot close",
    ]
    report = Report(name="test", title="failures")
    contest.hold(report, [block], [], ours=peers.Failing)
    assert report.notes == [
        "failing: failed to close: RuntimeError: cannot close",
        "failing: failed: ValueError: too bad",
    ]
    assert "in detail" in capsys.readouterr().err


def test_a_sandbox_ends_what_is_left() -> None:
    sandbox = Sandbox()
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=sandbox.environ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [one.pid for one in sandbox.processes()] == [process.pid]
        name = psutil.Process(process.pid).name()
        assert sandbox.end_processes(0.0) == [name]
        assert sandbox.close() == []
        assert not Path(sandbox.environ["TMPDIR"]).exists()
