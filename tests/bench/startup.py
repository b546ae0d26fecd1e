"""Measure what a short script costs: the time to its first result, and to the end of its process.

    python tests/bench/startup.py [--json] [--quick] [--peers dask,ray]

Each script is a process of its own that makes an executor, runs one task and closes the executor;
exadask and a peer take turns. Also `import exadask` (less what a bare Python takes) and
`exadask --help`, as a user feels them: from starting the process to its end.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import measure, peers

IMPORT_LIMIT_S, HELP_LIMIT_S = 0.4, 0.3
CLI = "exadask.cli.main"
SCRIPT = """
import sys
from tests.bench import peers

if __name__ == "__main__":
    peer = getattr(peers, sys.argv[1])()
    peer.start()
    print(peer.submit(abs, -1).result(), flush=True)
    peer.close()
"""


class ScriptFailed(Exception):
    """A script ended with an error."""


def first_and_end(command: list[str]) -> tuple[float, float]:
    """Start a process; returns when its first line came, and when it ended [s]."""
    environ = {**os.environ, "PYTHONPATH": python_path()}
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first_s = time.perf_counter() - start
        _, complaints = process.communicate()
    end_s = time.perf_counter() - start
    if process.returncode:
        raise ScriptFailed(f"{' '.join(command)} ended with {process.returncode}:\n{complaints}")
    return first_s, end_s


def python_path() -> str:
    """Give the path under which a process finds this checkout."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(peers.ROOT), *([before] if before else [])])


def compare(peer: type[peers.Peer], rounds: int) -> dict[str, measure.Pairs]:
    """Run the scripts of exadask and of a peer in turns; returns the times of both [s]."""
    found: dict[str, measure.Pairs] = {"first result": [], "end": []}
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        script = Path(folder) / "script.py"
        script.write_text(SCRIPT)

        def once(subject: type[peers.Peer]) -> tuple[float, float]:
            return first_and_end([sys.executable, str(script), subject.__name__])

        for turn in range(rounds):
            if turn % 2:
                theirs, ours = once(peer), once(peers.Exadask)
            else:
                ours, theirs = once(peers.Exadask), once(peer)
            found["first result"].append((ours[0], theirs[0]))
            found["end"].append((ours[1], theirs[1]))
    return found


def duration(*arguments: str) -> float:
    """Start this Python with arguments; returns the time to its end [s]."""
    return first_and_end([sys.executable, *arguments])[1]


def bare(report: measure.Report, rounds: int) -> None:
    """Measure the import and the command line against a Python that does nothing."""
    pairs = measure.interleaved(
        lambda: duration("-c", "import exadask"), lambda: duration("-c", "pass"), rounds
    )
    report.rows.append(row("bare Python", "import exadask", pairs))
    extra = statistics.median([ours - theirs for ours, theirs in pairs])
    report.bars.append(measure.Bar(what="import exadask [s]", value=extra, limit=IMPORT_LIMIT_S))
    if importlib.util.find_spec(CLI) is None:
        report.notes.append(f"exadask --help: {CLI} is absent, so not measured")
        return
    pairs = measure.interleaved(
        lambda: duration("-c", f"from {CLI} import main; main(['--help'])"),
        lambda: duration("-c", "pass"),
        rounds,
    )
    report.rows.append(row("bare Python", "exadask --help", pairs))
    whole = statistics.median([ours for ours, _ in pairs])
    report.bars.append(measure.Bar(what="exadask --help [s]", value=whole, limit=HELP_LIMIT_S))


def row(peer: str, what: str, pairs: measure.Pairs) -> dict[str, measure.Cell]:
    """Make a line of the table."""
    return {
        "peer": peer,
        "until": what,
        "exadask": measure.Spread.of([ours for ours, _ in pairs]),
        "peer's": measure.Spread.of([theirs for _, theirs in pairs]),
        "exadask / peer": measure.ratio(pairs),
    }


def bench(options: measure.Options) -> measure.Report:
    """Compare with every peer."""
    rounds = 1 if options.quick else 9
    found, notes = peers.chosen(options)
    report = measure.Report(title="from the start of the process [s]: median [p5 p95]", notes=notes)
    for peer in found:
        times = compare(peer, rounds)
        for what, pairs in times.items():
            report.rows.append(row(peers.title_of(peer), what, pairs))
    bare(report, 2 * rounds)
    return report


if __name__ == "__main__":
    measure.run(__doc__, bench)
