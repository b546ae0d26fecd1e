"""The commands of LSF for `exadask.testing.fake_batch`: bsub, bjobs, bkill, blaunch.

After the manual of LSF 10.1; nothing here was captured.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from exadask.testing.fake_batch import NODE, FakeJob, Machine, is_possible, spread, this_machine

_QUEUES = ("normal",)
_REFUSED = 255
_BY_OWNER, _BY_RUN_LIMIT = 130, 140
_WITHOUT_VALUE = ("-H", "-x", "-rn", "-r")


def job_environment(machine: Machine, job: FakeJob) -> dict[str, str]:
    """Give what LSF gives to a job."""
    hosts = [_host(host) for host in job.hosts]
    file = machine.folder / f"{job.number}.hosts"
    file.write_text("".join(f"{host}\n" for host in hosts))
    return {
        "LSB_JOBID": str(job.number),
        "LSB_JOBNAME": job.name,
        "LSB_QUEUE": job.queue,
        "LSB_HOSTS": " ".join(hosts),
        "LSB_DJOB_HOSTFILE": str(file),
        NODE: hosts[0],
    }


def job_folder(job: FakeJob) -> str:
    """Start where the job was submitted."""
    return job.folder


def bsub(arguments: Sequence[str]) -> int:
    """Take the job on standard input."""
    text = sys.stdin.read()
    words = list(arguments)
    for line in text.splitlines():
        if line.startswith("#BSUB "):
            words += shlex.split(line.removeprefix("#BSUB "))
    asked = _options(words)
    queue = asked.get("-q", _QUEUES[0])
    if queue not in _QUEUES:
        return _complain(f"{queue}: No such queue. Job not submitted.", _REFUSED)
    span = re.search(r"ptile=(\d+)", asked.get("-R", ""))
    slots = int(span[1]) if span else 1
    machine = this_machine()
    hours, _, minutes = asked.get("-W", "60").rpartition(":")
    script = machine.folder / f"{os.getpid()}.stdin"
    script.write_text(text)
    job = FakeJob(
        number=0,
        name=asked.get("-J", ""),
        script=str(script),
        arguments=[],
        folder=str(Path.cwd()),
        environment=dict(os.environ),
        nodes=int(asked.get("-nnodes", math.ceil(int(asked.get("-n", 1)) / slots))),
        walltime_s=(60 * int(hours or 0) + int(minutes)) * machine.minute_s,
        queue=queue,
        output=asked.get("-o", ""),
        state="held" if "-H" in asked else "pending",
    )
    if not is_possible(job):
        return _complain("Too many processors requested. Job not submitted.", _REFUSED)
    machine.submit(job)
    kind = "queue" if "-q" in asked else "default queue"
    sys.stdout.write(f"Job <{job.number}> is submitted to {kind} <{queue}>.\n")
    return 0


def bjobs(arguments: Sequence[str]) -> int:
    """Say in JSON how jobs are."""
    words = list(arguments)
    fields = words.pop(words.index("-o") + 1).split()
    jobs, rows, code = this_machine().look(), [], 0
    for name in [word for word in words if word.isdigit()]:
        job = jobs.get(int(name))
        if job is None:
            rows.append({"ERROR": f"Job <{name}> is not found"})
            code = _REFUSED
        else:
            described = _described(job, this_machine().minute_s)
            rows.append({field.upper(): described.get(field, "") for field in fields})
    json.dump({"COMMAND": "bjobs", "JOBS": len(rows), "RECORDS": rows}, sys.stdout, indent=2)
    return code


def bkill(arguments: Sequence[str]) -> int:
    """End jobs."""
    code, machine = 0, this_machine()
    for name in arguments:
        job = machine.cancel(int(name)) if name.isdigit() else None
        if job is None:
            code = _complain(f"Job <{name}>: No matching job found", _REFUSED)
        elif job.state == "ended":
            code = _complain(f"Job <{name}>: Job has already finished", _REFUSED)
        else:
            sys.stdout.write(f"Job <{name}> is being terminated\n")
    return code


def blaunch(arguments: Sequence[str]) -> int:
    """Start a program on a host of this job, with its output and exit code ours."""
    host, *command = arguments
    (code,) = spread([command], [dict(os.environ) | {NODE: host}])
    return code if code >= 0 else 128 - code


def _described(job: FakeJob, minute_s: float) -> dict[str, str]:
    facts = {"jobid": str(job.number)}
    if job.state == "held":
        why = "The job was suspended by the user while pending;"
        return facts | {"stat": "PSUSP", "pend_reason": why}
    if job.state == "pending":
        why = "Job slot limit reached: 4 hosts;"
        return facts | {"stat": "PEND", "pend_reason": why}
    if job.state == "running":
        left = max(0, int((job.began_s + job.walltime_s - time.time()) / minute_s))
        return facts | {"stat": "RUN", "time_left": f"{left // 60}:{left % 60} L"}
    if job.is_late:
        why = "TERM_RUNLIMIT: job killed after reaching LSF run time limit"
        return facts | {"stat": "EXIT", "exit_code": str(_BY_RUN_LIMIT), "exit_reason": why}
    if job.is_cancelled and job.exit_code != 0:
        why = "TERM_OWNER: job killed by owner"
        return facts | {"stat": "EXIT", "exit_code": str(_BY_OWNER), "exit_reason": why}
    code = job.exit_code or 0
    if code:
        shown = code if code > 0 else 128 - code
        why = f"Exited with exit code {shown}"
        return facts | {"stat": "EXIT", "exit_code": str(shown), "exit_reason": why}
    return facts | {"stat": "DONE", "exit_code": ""}


def _options(words: Sequence[str]) -> dict[str, str]:
    found, left = {}, list(words)
    while left:
        flag = left.pop(0)
        found[flag] = "" if flag in _WITHOUT_VALUE else left.pop(0)
    return found


def _host(index: int) -> str:
    return f"h{index + 1}"


def _complain(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    sys.exit(globals()[command](rest))
