"""What `exadask doctor` makes of a probe job, and of the report that it sent from a node."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from exadask.pool import Pool
from exadask.runtime.checks import (
    Finding,
    check_cores,
    check_packages,
    check_python,
    check_shared_memory,
    listed,
)
from exadask.runtime.survey import Folder, MachineFacts, NodeReport
from exadask.units import render_bytes, render_seconds

_SAME_EVERYWHERE = ("exadask", "dask", "distributed", "cloudpickle")
_CLOCKS_APART_S = 5.0
_SLOW_ROUND_TRIP_S = 0.1
_FEW_FILES = 4096
_STATED_MEMORY = 0.8
_LITTLE_SPACE = 2**30
_TAIL_LINES = 40

# What the log of a job says, and which fact of the pool to change.
_CURES = (
    (r"line of the pool's (prologue|setup) failed", "Correct {0}=, and try the line on a node."),
    (r"scratch=.* cannot be made", "Correct scratch=: a folder that can be made on each node."),
    (
        r"No module named '?(exadask|distributed|dask)\b",
        "Install exadask for the python of the nodes, or choose another by python= or venv=.",
    ),
    (r"No module named '?(\w+)", "Install {0} for the python of the nodes."),
    (
        r"exec: \S+: (?:not found|cannot execute)|exec: \S+: No such|bad interpreter",
        "Correct python= (or venv=): no such interpreter on the node.",
    ),
    (
        r"(?:node\.sh|allocations/\S+): No such file",
        "Choose a run_folder= that the nodes see.",
    ),
    (r"orders in .* cannot be read", "Choose a run_folder= that the nodes see."),
    (r"gave \S+ no rank", "Choose another launcher=: this one numbers its processes otherwise."),
    (
        r"(srun|mpiexec|jsrun|pbsdsh|ibrun|blaunch|flux|ssh|oarsh): .*not found",
        "Load the module of {0} in prologue=, or choose another launcher=.",
    ),
)
_NO_CURE = "Read the log; then correct the pool or the site profile."


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOutcome:
    """What became of a probe job.

    Parameters
    ----------
    job : str
        What the batch system calls it; empty if it was not taken.
    report : NodeReport, optional
        What the probe found; None if it did not say.
    came_by : {"connection", "file", "nothing"}
        How the report came.
    waited_s : float
        Time from submission to the report, or to the end of patience [s].
    problem : str
        Why there is no report.
    advice : str
        What to do about it.
    log_tail : str
        The last lines of the job's log.
    """

    job: str = ""
    report: NodeReport | None = None
    came_by: Literal["connection", "file", "nothing"] = "nothing"
    waited_s: float = 0.0
    problem: str = ""
    advice: str = ""
    log_tail: str = ""


def check_outcome(pool: Pool, here: MachineFacts, outcome: ProbeOutcome) -> list[Finding]:
    """Judge a probe job, and the node that it saw.

    Parameters
    ----------
    pool : Pool
        The pool.
    here : MachineFacts
        The machine on which a scheduler would run.
    outcome : ProbeOutcome
        What became of the job.

    Returns
    -------
    list of Finding
        The job; and if it sent a report, everything on the node.
    """
    report = outcome.report
    if report is None:
        return [check_lost_job(outcome)]
    waited = render_seconds(outcome.waited_s)
    way = ", by a file" if outcome.came_by == "file" else ""
    found = f"job {outcome.job} reported from {report.machine.host} after {waited}{way}"
    return [
        Finding(check="job", ok=True, found=found),
        *check_connection(report),
        check_python(report.machine),
        *(one for one in (check_packages(report.machine),) if not one.ok),
        *check_versions(here, report.machine),
        *check_clock(report),
        *check_node_interface(report, pool),
        check_cores(report.machine),
        *check_node_shape(report, pool),
        *check_gpus(report, pool),
        *check_grant(report),
        check_node_folder("run folder", report.folder, "Choose a run_folder= the nodes can write."),
        check_node_folder("scratch", report.scratch, "Say scratch=: a fast folder of the nodes."),
        check_home(report),
        check_shared_memory(report.machine),
        check_node_files(report.machine),
        *check_node_launcher(report, pool),
        check_rank_launcher(report, pool),
    ]


def check_lost_job(outcome: ProbeOutcome) -> Finding:
    """Say why a job sent no report, and quote its log."""
    name = f"job {outcome.job} " if outcome.job else ""
    lines = [line for line in outcome.log_tail.splitlines() if line.strip()][-_TAIL_LINES:]
    found = "\n".join([f"{name}{outcome.problem}", *lines])
    advice = outcome.advice or cure_of(outcome.log_tail)
    return Finding(check="job", ok=False, found=found, advice=advice)


def cure_of(log: str) -> str:
    """Say which fact of the pool to change, from what the log of a job says.

    Examples
    --------
    >>> cure_of("/opt/bin/python: No module named 'exadask'")
    'Install exadask for the python of the nodes, or choose another by python= or venv=.'
    """
    for pattern, advice in _CURES:
        match = re.search(pattern, log)
        if match is not None:
            return advice.format(*match.groups())
    return _NO_CURE


def check_connection(report: NodeReport) -> list[Finding]:
    """Check the ways from the node to the scheduler's machine and back."""
    if report.connection_problem:
        found = f"the node cannot reach this machine: {report.connection_problem}"
        has = f"The node has {listed(report.machine.interfaces)}:"
        advice = f"{has} say scheduler_interface=, or use --inside; ask the site for a port range."
        if re.search("SSL|certificate", report.connection_problem):
            advice = "Keys or clock: do both machines see the same run folder, and the same time?"
        return [Finding(check="network", ok=False, found=found, advice=advice)]
    round_trip_s = report.round_trip_s or 0.0
    found = f"TLS to this machine works; a question and its answer: {_brief(round_trip_s)}"
    is_fast = round_trip_s < _SLOW_ROUND_TRIP_S
    advice = "" if is_fast else "Short tasks suffer; start the scheduler nearer: --inside."
    there = Finding(check="network", ok=is_fast or None, found=found, advice=advice)
    back = Finding(check="way back", ok=True, found=f"this machine reaches {report.own_address}")
    if report.callback_problem:
        problem = f"this machine cannot reach {report.own_address}: {report.callback_problem}"
        advice = "Say interface= of the nodes, one that this machine reaches; or use --inside."
        back = Finding(check="way back", ok=False, found=problem, advice=advice)
    return [there, back]


def check_versions(here: MachineFacts, node: MachineFacts) -> list[Finding]:
    """Compare interpreters and packages: functions and results travel between them."""
    differing = []
    if here.python.split(".")[:2] != node.python.split(".")[:2]:
        differing.append(f"python {node.python} ({here.python} here)")
    harmless = []
    for name, ours in here.packages.items():
        theirs = node.packages.get(name)
        if ours != theirs and name in _SAME_EVERYWHERE:
            differing.append(f"{name} {theirs} ({ours} here)")
        elif ours != theirs and name == "numpy":
            harmless.append(f"{name} {theirs} ({ours} here)")
    advice = "Use one environment for both: python=, or venv=, on a path that all nodes see."
    if differing:
        found = ", ".join([*differing, *harmless])
        return [Finding(check="versions", ok=False, found=found, advice=advice)]
    if harmless:
        return [Finding(check="versions", ok=None, found=", ".join(harmless), advice=advice)]
    return [Finding(check="versions", ok=True, found="the same as here")]


def check_clock(report: NodeReport) -> list[Finding]:
    """Check that the clocks agree; known only if the connection works."""
    ahead_s = report.clock_ahead_s
    if ahead_s is None:
        return []
    way = "ahead of" if ahead_s > 0 else "behind"
    found = f"the node's is {_brief(abs(ahead_s))} {way} this machine's"
    if abs(ahead_s) <= _CLOCKS_APART_S:
        return [Finding(check="clock", ok=True, found=found)]
    advice = "Times in logs will not fit together; tell the site (a day apart: no TLS at all)."
    return [Finding(check="clock", ok=None, found=found, advice=advice)]


def check_node_interface(report: NodeReport, pool: Pool) -> list[Finding]:
    """Check the network interface that the profile names."""
    if pool.interface is None:
        return []
    if not report.interface_problem:
        found = f"{pool.interface} ({report.own_address})"
        return [Finding(check="interface", ok=True, found=found)]
    found = f"no {pool.interface!r} on {report.machine.host}"
    advice = f"Say interface=, one of {listed(report.machine.interfaces)}; or leave it out."
    return [Finding(check="interface", ok=False, found=found, advice=advice)]


def check_node_shape(report: NodeReport, pool: Pool) -> list[Finding]:
    """Compare cores and memory with what the profile or the batch system says."""
    shape, stated = report.machine.shape, pool.shape
    if stated is None:
        return [Finding(check="offers", ok=True, found=str(shape))]
    findings = []
    if shape.cores < stated.cores:
        found = f"{shape.cores} cores, but {stated.cores} were expected"
        advice = f"Say cores={shape.cores}, or correct exclusive=, directives=, blocked_cores=."
        findings.append(Finding(check="offers", ok=False, found=found, advice=advice))
    is_stated = stated.is_memory_stated
    if is_stated and shape.memory_bytes < _STATED_MEMORY * stated.memory_bytes:
        there, said = render_bytes(shape.memory_bytes), render_bytes(stated.memory_bytes)
        found = f"{there} of memory for tasks, but {said} were expected"
        advice = "Correct memory=, or ask for it: memory_option=."
        findings.append(Finding(check="offers", ok=None, found=found, advice=advice))
    return findings or [Finding(check="offers", ok=True, found=str(shape))]


def check_gpus(report: NodeReport, pool: Pool) -> list[Finding]:
    """Compare GPUs with the profile, and with what their driver shows."""
    shape = report.machine.shape
    stated = pool.shape.gpus if pool.shape is not None else shape.gpus
    vendor = pool.hints.gpu_vendor
    origin = shape.origin.get("gpus", "")
    there = f"{shape.gpus} ({shape.gpu_vendor})" if shape.gpus else "none"
    cure = "Correct gpus=, gpu_option= or queue=."
    if shape.gpus > report.n_driver_gpus == 0 and _is_mere_belief(origin):
        found = f"no driver shows one, but an agent would offer {there}, since they were asked for"
        return [Finding(check="GPUs", ok=False, found=found, advice=cure)]
    if shape.gpus < stated:
        found = f"{there}, but {stated} were expected"
        return [Finding(check="GPUs", ok=False, found=found, advice=cure)]
    if shape.gpus and vendor is not None and shape.gpu_vendor != vendor:
        found = f"{there}, but the profile says {vendor}"
        return [Finding(check="GPUs", ok=False, found=found, advice="Correct gpu_vendor=.")]
    if shape.gpus > report.n_driver_gpus:
        found = f"{there} [{origin}]; their driver shows {report.n_driver_gpus}"
        advice = "If a GPU task fails, look at the driver, or correct gpus=, gpu_vendor=, gpu_ids=."
        return [Finding(check="GPUs", ok=None, found=found, advice=advice)]
    if shape.gpus > stated:
        found = f"{there}, but {stated} were expected"
        return [Finding(check="GPUs", ok=None, found=found, advice=f"Say gpus={shape.gpus}.")]
    return [Finding(check="GPUs", ok=True, found=f"{there} [{origin}]" if shape.gpus else there)]


def check_grant(report: NodeReport) -> list[Finding]:
    """Compare the cores that the batch system says it gave with those that may be used."""
    granted, usable = report.n_granted, report.machine.n_affinity
    if granted is None:
        return []
    if granted == usable or granted == report.machine.shape.cores:
        found = f"{granted} cores by the batch system, {usable} by the kernel"
        return [Finding(check="granted", ok=True, found=found)]
    found = f"{granted} cores by the batch system, but {usable} by the kernel's affinity"
    advice = "The job is not confined to its cores; ask for whole nodes: exclusive=true."
    if usable < granted:
        advice = "The launcher binds agents to fewer cores: correct launcher_options=."
    return [Finding(check="granted", ok=None, found=found, advice=advice)]


def check_node_folder(check: str, folder: Folder, advice: str) -> Finding:
    """Check that a folder can be written from the node."""
    if folder.problem:
        found = f"{folder.path}: {folder.problem}"
        return Finding(check=check, ok=False, found=found, advice=advice)
    kind = f", {folder.file_system}" if folder.file_system else ""
    free = f", {render_bytes(folder.free_bytes)} free" if folder.free_bytes is not None else ""
    is_much = folder.free_bytes is None or folder.free_bytes >= _LITTLE_SPACE
    found = f"{folder.path}{kind}{free}"
    return Finding(check=check, ok=is_much or None, found=found, advice="" if is_much else advice)


def check_home(report: NodeReport) -> Finding:
    """Check that the home is there; at some sites it is not."""
    if not report.home.problem:
        return Finding(check="home", ok=True, found=report.home.path)
    found = f"{report.home.path}: {report.home.problem}"
    advice = "Keep environments, data and run_folder= elsewhere, and set HOME in env= if needed."
    return Finding(check="home", ok=None, found=found, advice=advice)


def check_node_files(machine: MachineFacts) -> Finding:
    """Check how many files an agent may have open: large results and tasks need them."""
    found = f"{machine.open_files} may be open"
    if machine.open_files >= _FEW_FILES:
        return Finding(check="open files", ok=True, found=found)
    advice = (
        "Many large results at once will fail; raise it in setup= (ulimit -n), or ask the site."
    )
    return Finding(check="open files", ok=None, found=found, advice=advice)


def check_node_launcher(report: NodeReport, pool: Pool) -> list[Finding]:
    """Check that what starts agents on several nodes is there."""
    if report.launcher is None:
        return []
    if report.launcher_path is not None:
        found = f"{report.launcher}: {report.launcher_path}"
        return [Finding(check="launcher", ok=True, found=found)]
    found = f"no {report.launcher} on PATH of the node"
    advice = "Load its module in prologue=, or choose another launcher=."
    is_needed = pool.max_nodes > 1
    return [Finding(check="launcher", ok=False if is_needed else None, found=found, advice=advice)]


def check_rank_launcher(report: NodeReport, pool: Pool) -> Finding:
    """Check that something starts the ranks of MPI programs, at least if the pool says what."""
    if report.rank_launcher:
        return Finding(check="MPI", ok=True, found=f"{report.rank_launcher} starts ranks")
    if pool.hints.rank_launcher is not None:
        advice = report.rank_advice
        return Finding(check="MPI", ok=False, found=report.rank_problem, advice=advice)
    found = f"{report.rank_problem} Only programs with ranks need one. {report.rank_advice}"
    return Finding(check="MPI", ok=True, found=found)


def _is_mere_belief(origin: str) -> bool:
    """Whether GPUs are believed in only because they were asked for."""
    return "asked of the batch system" in origin


def _brief(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 1 else render_seconds(seconds)
