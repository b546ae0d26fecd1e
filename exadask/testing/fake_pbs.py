"""The commands of OpenPBS for `exadask.testing.fake_batch`: qsub, qstat, qdel, pbsdsh, pbsnodes.

After OpenPBS 23.06.06: its answers as captured, and its sources (qstat.c, qdel.c, pbsdsh.c,
svr_jobfunc.c) for what was not.
"""

from __future__ import annotations

import json
import os
import re
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
    spool_of,
    spread,
    this_machine,
)

_SERVER = "vm"
_QUEUES = ("workq",)
_UNKNOWN_QUEUE, _UNKNOWN_JOB, _FINISHED, _NOT_IMITATED = 170, 153, 35, 2
_TERMINATED, _KILLED_BY_WALLTIME = 271, -29
_FLAGS = "hVIfzX"  # of qsub, without a value


def job_environment(machine: Machine, job: FakeJob) -> dict[str, str]:
    """Give what the mom of the first node gives."""
    nodes = machine.folder / f"{job.number}.nodes"
    nodes.write_text("".join(f"n{host + 1}\n" for host in job.hosts))
    return {
        "PBS_JOBID": _id(job.number),
        "PBS_JOBNAME": job.name,
        "PBS_QUEUE": job.queue,
        "PBS_NODEFILE": str(nodes),
        "PBS_NODENUM": "0",
        "PBS_TASKNUM": "1",
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "ENVIRONMENT": "BATCH",
        NODE: f"n{job.hosts[0] + 1}",
    }


def job_folder(job: FakeJob) -> str:
    """Start in the home directory."""
    return job.environment["HOME"]


def qsub(arguments: Sequence[str]) -> int:
    """Take a job."""
    script = arguments[-1]
    directives = [
        line.removeprefix("#PBS").strip()
        for line in Path(script).read_text().splitlines()
        if line.startswith("#PBS ")
    ]
    options = [*_options(directives), *_options([" ".join(arguments[:-1])])]
    asked = dict(options)
    resources = dict(
        part.partition("=")[::2]
        for flag, value in options
        if flag == "l"
        for part in value.split(",")
    )
    if asked.get("q", _QUEUES[0]) not in _QUEUES:
        return _complain("qsub: Unknown queue", _UNKNOWN_QUEUE)
    home, name = os.environ.get("HOME", "/"), asked.get("N", Path(script).name)
    machine = this_machine()
    environment = {
        "HOME": home,
        "PATH": f"{machine.folder / 'bin'}:/bin:/usr/bin",
        "PBS_O_WORKDIR": str(Path.cwd()),
        "PBS_O_HOME": home,
        "PBS_O_QUEUE": asked.get("q", _QUEUES[0]),
    }
    if "V" in asked:
        environment = dict(os.environ) | environment
    job = machine.submit(
        FakeJob(
            number=0,
            name=name,
            script=script,
            arguments=[],
            folder=str(Path.cwd()),
            environment=environment,
            nodes=_chunks(resources.get("select", "1")),
            walltime_s=_seconds(resources.get("walltime", "1:00:00")),
            queue=asked.get("q", _QUEUES[0]),
            output=asked.get("o", "").rpartition(":")[2],
            is_direct="d" in asked.get("k", ""),
            state="held" if "h" in asked else "pending",
        )
    )
    sys.stdout.write(_id(job.number) + "\n")
    return 0


def qstat(arguments: Sequence[str]) -> int:
    """Say in JSON how jobs are."""
    options = [word for word in arguments if word.startswith("-") or word in ("json",)]
    if "-f" not in options or "json" not in options:
        return _complain(f"qstat: {' '.join(options)}: not imitated", _NOT_IMITATED)
    jobs, found, code = this_machine().look(), {}, 0
    for name in [word for word in arguments if word not in options] or map(_id, jobs):
        job = jobs.get(_number(name))
        if job is None:
            code = _complain(f"qstat: Unknown Job Id {_full(name)}", _UNKNOWN_JOB)
        elif job.state == "ended" and "-x" not in options:
            advice = "Job has finished, use -x or -H to obtain historical job information"
            code = _complain(f"qstat: {_full(name)} {advice}", _FINISHED)
        else:
            found[_id(job.number)] = _described(job)
    head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": _SERVER}
    json.dump(head | ({"Jobs": found} if found else {}), sys.stdout, indent=4)
    return code


def qdel(arguments: Sequence[str]) -> int:
    """End jobs."""
    code, machine = 0, this_machine()
    for name in [word for word in arguments if word[:1].isdigit()]:
        job = machine.cancel(_number(name))
        if job is None:
            code = _complain(f"qdel: Unknown Job Id {_full(name)}", _UNKNOWN_JOB)
        elif job.state == "ended":
            code = _complain(f"qdel: Job has finished {_full(name)}", _FINISHED)
        elif job.state == "held":
            with machine.jobs() as jobs:
                jobs[job.number].state = "ended"
    return code


def pbsdsh(arguments: Sequence[str]) -> int:
    """Start a program on each node, or one; its output is the job's, its exit code not ours."""
    chosen, words = None, list(arguments)
    if words[0] == "-n":
        chosen, words = int(words[1]), words[2:]
    command = words[1:] if words[0] == "--" else words
    machine = this_machine()
    job = machine.current()
    common = job.environment | job_environment(machine, job) | machine.mark(job)
    common.pop("PATH")
    ranks = range(job.nodes) if chosen is None else [chosen]
    places = [
        common
        | {"PBS_NODENUM": str(rank), "PBS_TASKNUM": str(rank + 2)}
        | {NODE: f"n{job.hosts[rank] + 1}"}
        for rank in ranks
    ]
    codes = spread(
        [command] * len(places),
        places,
        folder=common["HOME"],
        output=spool_of(machine, job),
    )
    for index, code in enumerate(codes):
        status = code if code >= 0 else 256 - code
        if status:
            sys.stdout.write(f"pbsdsh: task 0x{index:08X} exit status {status}\n")
    return 0


def pbsnodes(arguments: Sequence[str]) -> int:
    """Say in JSON what the nodes have."""
    if "json" not in arguments:
        return _complain("pbsnodes: not imitated", _NOT_IMITATED)
    has = {"arch": "linux", "host": "vm", "mem": "8388608kb", "ncpus": 4, "ngpus": 2}
    nodes = {
        f"n{index}": {"Mom": "vm", "state": "free", "pcpus": 4, "resources_available": has}
        for index in range(1, 5)
    }
    head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": _SERVER}
    json.dump(head | {"nodes": nodes}, sys.stdout, indent=4)
    return 0


def _described(job: FakeJob) -> dict[str, Any]:
    began = time.strftime("%a %b %d at %H:%M", time.localtime(job.began_s))
    where = "+".join(f"(n{host + 1}:ncpus=4)" for host in job.hosts)
    ran = f"Job run at {began} on {where}"
    facts: dict[str, Any] = {"Job_Name": job.name, "Job_Owner": "hpcuser@localhost"}
    facts |= {"queue": job.queue, "server": _SERVER}
    if job.state == "held":
        facts |= {"job_state": "H", "substate": 20, "Hold_Types": "u"}
    elif job.state == "pending":
        kind = "Not Running" if is_possible(job) else "Can Never Run"
        why = "Insufficient amount of resource: ncpus"
        why = why if is_possible(job) else "Not enough total nodes available"
        facts |= {"job_state": "Q", "substate": 10, "comment": f"{kind}: {why}"}
    elif job.state == "running":
        used = time.strftime("%H:%M:%S", time.gmtime(time.time() - job.began_s))
        facts |= {"job_state": "R", "substate": 42, "comment": ran}
        facts |= {"resources_used": {"walltime": used}}
    else:
        facts |= _described_end(job, ran)
    walltime = time.strftime("%H:%M:%S", time.gmtime(job.walltime_s))
    return facts | {"Resource_List": {"walltime": walltime, "nodect": job.nodes}}


def _described_end(job: FakeJob, ran: str) -> dict[str, Any]:
    code = job.exit_code
    if code is not None:
        code = _KILLED_BY_WALLTIME if job.is_late else 256 - code if code < 0 else code
    if job.is_cancelled:
        substate, how = 91, "terminated"
    else:
        substate, how = (93, "failed") if code else (92, "finished")
    comment = f"{ran} and {how}" if job.hosts else "Not Running: and terminated"
    facts = {"job_state": "F", "substate": substate, "comment": comment}
    return facts if code is None else facts | {"Exit_status": code}


def _options(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Take directives apart, such as ``-l select=1 -q debug -h``."""
    found = []
    for line in lines:
        words = line.split()
        while words:
            flag = words.pop(0).lstrip("-")
            value = flag[1:]
            if not value and flag not in _FLAGS:
                value = words.pop(0)
            found.append((flag[0], value.strip('"')))
    return found


def _chunks(select: str) -> int:
    counts = [part.partition(":")[0] for part in select.split("+")]
    return sum(int(count) if count.isdigit() else 1 for count in counts)


def _seconds(walltime: str) -> float:
    seconds = 0
    for part in walltime.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def _id(number: int) -> str:
    return f"{number}.{_SERVER}"


def _full(name: str) -> str:
    return name if "." in name else f"{name}.{_SERVER}"


def _number(name: str) -> int:
    return int(re.match(r"\d*", name)[0] or 0)  # type: ignore[index]  # it always matches


def _complain(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    sys.exit(globals()[command](rest))
