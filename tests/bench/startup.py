"""What a short script costs: the time to its first result, and to the end of its process.

Each script is a process of its own that makes an executor, runs one task and closes the executor;
exadask and a peer take turns. Also `import exadask` (less what a bare Python takes) and
`exadask --help`, as a user feels them: from starting the process to its end.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from tests.bench import contest, measure, peers
from tests.bench.measure import Bar, Options, Report
from tests.bench.sandbox import Sandbox
from tests.bench.session import SubjectFailed, failed

IMPORT_LIMIT_S, HELP_LIMIT_S = 0.4, 0.3
IMPORT, HELP = "import exadask [s]", "exadask --help [s]"
BARE = "bare Python"
PATIENCE_S = 120.0
SCRIPT = """
import sys
from tests.bench import peers

if __name__ == "__main__":
    peer = getattr(peers, sys.argv[1])()
    peer.start()
    print(peer.submit(abs, -1).result(), flush=True)
    peer.close()
"""


def script(report: Report, peer: type[peers.Peer], _: int) -> contest.Figures:
    """Run the script with a peer."""
    with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".py") as file:
        file.write(SCRIPT)
        file.flush()
        first_s, end_s = first_and_end(report, peer.name, [file.name, peer.__name__])
    return {"first result [s]": [first_s], "end of the process [s]": [end_s]}


def first_and_end(report: Report, who: str, arguments: Sequence[str]) -> tuple[float, float]:
    """Start this Python with arguments; returns when its first line came, and when it ended [s].

    Raises
    ------
    SubjectFailed
        It ended with an error, or not in time.
    """
    sandbox = Sandbox()
    watchdog = threading.Timer(PATIENCE_S, sandbox.end_processes, [0.0])
    watchdog.start()
    environ = {**os.environ, **sandbox.environ}
    try:
        with tempfile.TemporaryFile("w+") as complaints:
            command = [sys.executable, *arguments]
            start = time.perf_counter()
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=complaints, env=environ
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                first_s = time.perf_counter() - start
                process.communicate()
            end_s = time.perf_counter() - start
            complaints.seek(0)
            trace = complaints.read()
    finally:
        watchdog.cancel()
        report.notes += [f"{who}: {complaint}" for complaint in sandbox.close()]
    if process.returncode:
        lines = trace.strip().splitlines() or [f"its process ended with {process.returncode}"]
        raise SubjectFailed(who, lines[-1], trace)
    return first_s, end_s


def python(report: Report, who: str, case: str, code: str, _: int) -> contest.Figures:
    """Run a line of Python to the end of its process."""
    return {case: [first_and_end(report, who, ["-c", code])[1]]}


def beside_bare_python(report: Report, case: str, code: str, rounds: int) -> None:
    """Compare a line of Python with one that does nothing."""
    pairs = measure.interleaved(
        functools.partial(python, report, "exadask", case, code),
        functools.partial(python, report, BARE, case, "pass"),
        rounds,
    )
    contest.paired(report, BARE, pairs)


def bench(options: Options) -> Report:
    """Compare with every peer that has single calls."""
    rounds = 1 if options.quick else 9
    report = Report(name="startup", title="from the start of a process")
    for peer in peers.chosen(options, report, "submit"):
        measure.progress(f"{report.name}: {peer.name} ...")
        try:
            pairs = measure.interleaved(
                functools.partial(script, report, peers.Exadask),
                functools.partial(script, report, peer),
                rounds,
            )
            contest.paired(report, peer.name, pairs)
        except SubjectFailed as failure:
            failed(report, failure)
    measure.progress(f"{report.name}: {BARE} ...")
    try:
        beside_bare_python(report, IMPORT, "import exadask", 2 * rounds)
        code = "from exadask.cli.main import main; main(['--help'])"
        beside_bare_python(report, HELP, code, 2 * rounds)
    except SubjectFailed as failure:
        failed(report, failure)
    require_quick_start(report)
    return report


def require_quick_start(report: Report) -> None:
    """State the bars for what was measured."""
    line = report.line(IMPORT, BARE)
    if line is not None:
        extra_s = [ours - theirs for ours, theirs in zip(line.ours, line.theirs, strict=True)]
        what = f"{IMPORT} more than {BARE}"
        report.bars.append(Bar(what=what, value=statistics.median(extra_s), limit=IMPORT_LIMIT_S))
    report.require(HELP, HELP_LIMIT_S)
