"""The command of Flux for `exadask.testing.fake_batch`, with some of its subcommands.

After flux-core 0.88: its answers as captured, and its sources (flux-jobs.py, flux-cancel.py) for
what was not. The ids are F58 as Flux writes them, with the florin sign where it would.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exadask.testing.fake_batch import (
    NODE,
    FakeJob,
    Machine,
    is_possible,
    spread,
    this_machine,
)

_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_QUEUES = ("batch",)
_WITHOUT_VALUE = ("--exclusive", "-x")
_CANCELLED, _CANCELLED_BEFORE, _LATE, _REFUSED = 143, -128, 142, 1


def job_environment(machine: Machine, job: FakeJob) -> dict[str, str]:
    """Give what a batch script sees: an instance of its own."""
    return {
        "FLUX_ENCLOSING_ID": _id(job.number),
        "FLUX_URI": _uri(job, 0),
        NODE: _host(job.hosts[0]),
    }


def job_folder(job: FakeJob) -> str:
    """Start where the job was submitted."""
    return job.folder


def flux_batch(arguments: Sequence[str]) -> int:
    """Take a job; what can never run too."""
    script = arguments[-1]
    words = list(arguments[:-1])
    for line in Path(script).read_text().splitlines():
        if line.startswith("#flux:"):
            words += shlex.split(line.removeprefix("#flux:"))
    asked = _options(words)
    queue = asked.get("--queue", _QUEUES[0])
    if queue not in _QUEUES:
        return _complain(f"flux-batch: ERROR: [Errno 22] Invalid queue '{queue}' specified")
    output = asked.get("--output", "")
    job = FakeJob(
        number=0,
        name=asked.get("--job-name", Path(script).name),
        script=script,
        arguments=[],
        folder=str(Path.cwd()),
        environment=dict(os.environ),
        nodes=int(asked.get("-N", 1)),
        walltime_s=_seconds(asked.get("-t", "1h")),
        queue=queue,
        output=output,
        is_direct=bool(output),
        state="held" if asked.get("--urgency") == "0" else "pending",
    )
    machine = this_machine()
    machine.submit(job)
    if not is_possible(job):
        machine.cancel(job.number)
    sys.stdout.write(_id(job.number) + "\n")
    return 0


def flux_jobs(arguments: Sequence[str]) -> int:
    """Say in JSON how jobs are: one bare object for one id."""
    names = [word for word in arguments if not word.startswith("-")]
    if "--json" not in arguments or not names:
        return _complain("flux-jobs: not imitated")
    jobs, found = this_machine().look(), []
    for name in names:
        job = jobs.get(_number(name))
        if job is None:
            _complain(f"flux-jobs: ERROR: JobID {name} unknown")
        else:
            found.append(_described(job))
    if not found:
        return _REFUSED
    sys.stdout.write(json.dumps(found[0] if len(names) == 1 else {"jobs": found}) + "\n")
    return 0


def flux_cancel(arguments: Sequence[str]) -> int:
    """End jobs; those that have ended are an error, but do not keep others alive."""
    code, machine = 0, this_machine()
    for name in arguments:
        job = machine.cancel(_number(name))
        if job is None:
            code = _complain(f"flux-cancel: ERROR: {name}: unknown job id")
        elif job.state == "ended":
            code = _complain(f"flux-cancel: ERROR: {name}: job is inactive")
    return code


def flux_run(arguments: Sequence[str]) -> int:
    """Start a program on each node of the instance; the largest exit code is ours."""
    words, options = list(arguments), dict[str, str]()
    while words[0].startswith("-"):
        flag = words.pop(0)
        options[flag] = "" if flag in _WITHOUT_VALUE else words.pop(0)
    machine = this_machine()
    job = machine.current()
    nodes = int(options.get("-N", 1))
    if nodes > job.nodes:
        return _complain(f"flux-run: ERROR: unsatisfiable request: need {nodes} nodes")
    places = [
        dict(os.environ)
        | {"FLUX_JOB_ID": _id(1), "FLUX_JOB_NNODES": str(nodes), "FLUX_JOB_SIZE": str(nodes)}
        | {"FLUX_TASK_RANK": str(rank), "FLUX_TASK_LOCAL_ID": "0"}
        | {"FLUX_URI": _uri(job, rank), NODE: _host(job.hosts[rank])}
        for rank in range(nodes)
    ]
    codes = spread([words] * nodes, places)
    return max(code if code >= 0 else 128 - code for code in codes)


def flux_hostlist(arguments: Sequence[str]) -> int:
    """Name the hosts of the instance."""
    sys.stdout.write(" ".join(_host(host) for host in this_machine().current().hosts) + "\n")
    return 0


def flux_resource(arguments: Sequence[str]) -> int:
    """Count nodes, cores and GPUs together."""
    sys.stdout.write("4 16 8\n")
    return 0


def _described(job: FakeJob) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": job.number << 24, "jobid": _id(job.number), "name": job.name}
    facts |= {"urgency": 0 if job.state == "held" else 16, "duration": job.walltime_s}
    facts |= {"t_submit": job.submitted_s, "nnodes": job.nodes, "ntasks": job.nodes}
    if job.state in ("held", "pending"):
        nothing = {"annotations": {}, "exception": {"occurred": False}}
        return facts | {"state": "SCHED", "status": "SCHED"} | nothing
    if job.state == "running":
        facts |= {"t_run": job.began_s, "runtime": time.time() - job.began_s}
        return facts | {"state": "RUN", "status": "RUN", "exception": {"occurred": False}}
    result, code, kind, note = _end(job)
    exception = {"occurred": bool(kind), "severity": 0, "type": kind, "note": note}
    facts |= {"state": "INACTIVE", "status": result, "result": result, "returncode": code}
    return facts | {"success": code == 0, "exception": exception if kind else {"occurred": False}}


def _end(job: FakeJob) -> tuple[str, int, str, str]:
    """Give result, return code, and type and note of the exception."""
    if not is_possible(job):
        return "FAILED", 1, "alloc", f"need {job.nodes} exclusive node(s), only 4 eligible"
    if job.is_late:
        return "TIMEOUT", _LATE, "timeout", f"resource allocation expired ({job.walltime_s:g}s)"
    if job.is_cancelled and job.exit_code != 0:
        code = _CANCELLED if job.hosts else _CANCELLED_BEFORE
        return "CANCELED", code, "cancel", ""
    code = job.exit_code or 0
    code = code if code >= 0 else 128 - code
    return "FAILED" if code else "COMPLETED", code, "", ""


def _options(words: Sequence[str]) -> dict[str, str]:
    found, left = {}, list(words)
    while left:
        flag, is_joined, value = left.pop(0).partition("=")
        if not is_joined and flag not in _WITHOUT_VALUE:
            value = left.pop(0)
        found[flag] = value
    return found


def _seconds(duration: str) -> float:
    unit = _UNITS.get(duration[-1])
    return float(duration) if unit is None else float(duration[:-1]) * unit


def _id(number: int) -> str:
    value, digits = number << 24, ""
    while value:
        value, digit = divmod(value, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return ("f" if os.environ.get("FLUX_F58_FORCE_ASCII") else "\u0192") + digits


def _number(name: str) -> int:
    value = 0
    for digit in name[1:]:
        value = value * len(_DIGITS) + _DIGITS.index(digit)
    return value >> 24


def _uri(job: FakeJob, rank: int) -> str:
    return f"local:///tmp/flux-{job.number}/local-{rank}"


def _host(index: int) -> str:
    return f"flux{index}"


def _complain(text: str) -> int:
    sys.stderr.write(text + "\n")
    return _REFUSED


if __name__ == "__main__":
    _, verb, *rest = sys.argv[1:]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # it is a file here
    sys.exit(globals()[f"flux_{verb}"](rest))
