"""Answers of batch systems, and garbage.

Those of Slurm and Grid Engine were captured whole; those of PBS and Flux were put together from
what real ones were seen to say; those of LSF, OAR and HTCondor follow their manuals.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exadask.batch.model import BatchSystem, JobId, Reply
from exadask.batch.registry import batch_system
from exadask.errors import QueryFailed, SubmissionRefused
from exadask.job_status import EndCause, JobState, JobStatus
from exadask.pool import BATCH_SYSTEMS, Pool

_DATA = Path(__file__).parent.parent / "data"
_VERSIONS = {"slurm": "22.05.8", "sge": "8.1.9", "flux": "0.88.0", "pbs": "23.06.06"}
PENDING, RUNNING, ENDED, UNKNOWN = JobState


def captured(system: str) -> dict[str, Reply]:
    text = (_DATA / system / f"{_VERSIONS[system]}.json").read_text()
    return {
        key: Reply(**fields | {"argv": tuple(fields["argv"])})
        for key, fields in json.loads(text).items()
    }


def reply(stdout: str = "", *, exit_code: int = 0, stderr: str = "") -> Reply:
    return Reply(argv=("x",), exit_code=exit_code, stdout=stdout, stderr=stderr)


def named_ids(system: str) -> dict[str, JobId]:
    pairs = (word.split("=") for word in captured(system)["ids"].argv[1:])
    return {name: JobId(number) for name, number in pairs}


def ids(*names: str) -> list[JobId]:
    return [JobId(name) for name in names]


def refusal(system: str, key: str) -> SubmissionRefused:
    with pytest.raises(SubmissionRefused) as caught:
        batch_system(system).parse_submit(captured(system)[key])
    return caught.value


# -- submitting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "key", "job"),
    [
        ("slurm", "submit: taken", str(named_ids("slurm")["running"])),
        ("sge", "submit: taken", "8"),
        ("flux", "submit: taken", "ƒBiLi1B5"),
        ("flux", "submit: taken, in ASCII", "fBiLi1B5"),
        ("pbs", "submit: taken", "0.vm"),
    ],
)
def test_a_job_that_was_taken_has_an_id(system: str, key: str, job: str) -> None:
    assert batch_system(system).parse_submit(captured(system)[key]) == job


@pytest.mark.parametrize(
    ("system", "text", "job"),
    [
        ("lsf", "Job <42> is submitted to default queue <normal>.\n", "42"),
        ("oar", "[ADMISSION RULE] 1 core\nOAR_JOB_ID=42\n", "42"),
        ("htcondor", "Submitting job(s).\n1 job(s) submitted to cluster 42.\n", "42"),
        ("slurm", "Welcome to node 7\nNo. of jobs: 3\nSubmitted batch job 42\n", "42"),
    ],
)
def test_ids_are_found_in_other_words(system: str, text: str, job: str) -> None:
    assert batch_system(system).parse_submit(reply(text)) == job


@pytest.mark.parametrize(
    ("system", "key", "is_permanent", "advice"),
    [
        ("slurm", "submit: wrong partition", True, "queue="),
        ("slurm", "submit: too much memory", True, "memory="),
        ("slurm", "submit: too many GPUs", True, "gpus="),
        ("slurm", "submit: wrong gres", True, "gpu_option="),
        ("slurm", "submit: wrong constraint", True, "directives="),
        ("slurm", "submit: wrong time", True, "walltime="),
        ("slurm", "submit: wrong option", True, "directives="),
        ("slurm", "submit: no controller", False, ""),
        ("sge", "submit: wrong queue", True, "queue="),
        ("sge", "submit: without enough slots", True, "cores="),
        ("sge", "submit: wrong parallel environment", True, "select="),
        ("sge", "submit: wrong project", True, "account="),
        ("sge", "submit: wrong resource", True, "directives="),
        ("sge", "submit: no master", False, ""),
        ("flux", "submit: wrong queue", True, "queue="),
        ("flux", "submit: no broker", False, ""),
        ("pbs", "submit: wrong queue", True, "queue="),
        ("pbs", "submit: wrong resource", True, "select="),
        ("pbs", "submit: no server", False, ""),
    ],
)
def test_a_refusal_says_what_to_change(
    system: str, key: str, is_permanent: bool, advice: str
) -> None:
    error = refusal(system, key)
    assert (error.is_permanent, advice in error.advice) == (is_permanent, True)
    assert error.answer
    assert error.command


@pytest.mark.parametrize(
    ("system", "stderr", "is_permanent", "advice"),
    [
        (
            "slurm",
            "sbatch: error: Batch job submission failed: Invalid account or account/partition "
            "combination specified",
            True,
            "account=",
        ),
        (
            "slurm",
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission "
            "failed: Job violates accounting/QOS policy (job submit limit, user's size and/or "
            "time limits)",
            False,
            "",
        ),
        (
            "slurm",
            "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission "
            "failed: Job violates accounting/QOS policy (job submit limit, user's size and/or "
            "time limits)",
            True,
            "walltime=",
        ),
        (
            "slurm",
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            False,
            "",
        ),
        (
            "slurm",
            "sbatch: error: Batch job submission failed: Invalid qos specification",
            True,
            "qos=",
        ),
        (
            "slurm",
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing "
            "or exceeds some limit)",
            True,
            "walltime=",
        ),
        (
            "slurm",
            "sbatch: error: Batch job submission failed: Node count specification invalid",
            True,
            "nodes=",
        ),
        ("pbs", "qsub: Job violates queue and/or server resource limits", True, "walltime="),
        ("pbs", "qsub: would exceed queue generic's per-user limit of jobs", False, ""),
        ("lsf", "nope: No such queue. Job not submitted.", True, "queue="),
        ("lsf", "User <me>: Pending job threshold reached. Retrying in 60 seconds...", False, ""),
    ],
)
def test_refusals_in_the_words_of_manuals(
    system: str, stderr: str, is_permanent: bool, advice: str
) -> None:
    with pytest.raises(SubmissionRefused) as caught:
        batch_system(system).parse_submit(reply(exit_code=1, stderr=stderr))
    assert caught.value.is_permanent is is_permanent
    assert advice in caught.value.advice


def test_an_answer_without_an_id_is_not_tried_again() -> None:
    with pytest.raises(SubmissionRefused) as caught:
        batch_system("slurm").parse_submit(reply("Thank you.\n"))
    assert caught.value.is_permanent


# -- asking -----------------------------------------------------------------------------------


def test_slurm_tells_why_jobs_wait_and_how_they_ended() -> None:
    system, names = batch_system("slurm"), named_ids("slurm")
    found = system.parse_status(captured("slurm")["status: all"], list(names.values()))
    status = {name: found[job] for name, job in names.items()}
    assert {name for name, one in status.items() if one.is_held} == {"held"}
    hopeless = {"time limit", "node limit", "config", "never"}
    assert {name for name, one in status.items() if one.is_hopeless} == hopeless
    waiting = hopeless | {"held", "resources", "priority", "begin", "dependency"}
    assert {name for name, one in status.items() if one.state is PENDING} == waiting
    assert status["running"].left_s == 563
    assert status["completed"].cause is EndCause.COMPLETED
    assert status["failed"].cause is EndCause.FAILED
    assert status["cancelled running"].cause is EndCause.CANCELLED
    assert status["cancelled pending"].cause is EndCause.CANCELLED
    later = system.parse_status(captured("slurm")["status: later"], list(names.values()))
    assert later[names["timeout"]].cause is EndCause.TIMEOUT


def test_slurm_accounting() -> None:
    text = (
        "1|COMPLETED|0:0|None\n2|CANCELLED by 1000|0:0|None\n3|NODE_FAIL|1:0|None\n"
        "4|OUT_OF_MEMORY|0:125|None\n5|FAILED|3:0|NonZeroExitCode\n6|PENDING|0:0|None\n"
    )
    names = ids("1", "2", "3", "4", "5", "6", "7")
    found = batch_system("slurm").parse_history(reply(text), names)
    assert [found[job].cause for job in names] == [
        EndCause.COMPLETED,
        EndCause.CANCELLED,
        EndCause.NODE_FAILURE,
        EndCause.FAILED,
        EndCause.FAILED,
        None,
        None,
    ]
    assert found[names[4]].exit_code == 3
    with pytest.raises(QueryFailed):
        batch_system("slurm").parse_history(captured("slurm")["history: no accounting"], names)


@pytest.mark.parametrize("reason", ["QOSMaxNodePerJobLimit", "AssocMaxCpuPerJobLimit"])
def test_slurm_limits_of_one_job_are_hopeless(reason: str) -> None:
    found = batch_system("slurm").parse_status(reply(f"1|PENDING|1:00|{reason}\n"), ids("1"))
    assert found[JobId("1")].is_hopeless


@pytest.mark.parametrize(
    "reason", ["QOSMaxJobsPerUserLimit", "AssocGrpNodeLimit", "Resources", "ReqNodeNotAvail, x"]
)
def test_slurm_limits_of_all_jobs_pass(reason: str) -> None:
    found = batch_system("slurm").parse_status(reply(f"1|PENDING|1:00|{reason}\n"), ids("1"))
    assert not found[JobId("1")].is_hopeless


def test_grid_engine_states() -> None:
    system, names = batch_system("sge"), named_ids("sge")
    found = system.parse_status(captured("sge")["status: some have ended"], list(names.values()))
    status = {name: found[job] for name, job in names.items()}
    assert status["running"].state is RUNNING
    assert status["waits"] == JobStatus(state=PENDING, reason="qw")
    assert status["held"].is_held
    assert status["error"].is_hopeless
    assert status["timeout"].state is UNKNOWN
    past = system.parse_history(captured("sge")["history: several"], list(names.values()))
    causes = {name: past[job].cause for name, job in names.items() if past[job].cause}
    assert causes == {
        "completed": EndCause.COMPLETED,
        "failed": EndCause.FAILED,
        "timeout": EndCause.TIMEOUT,
        "cancelled": EndCause.CANCELLED,
    }
    assert past[names["failed"]].exit_code == 3


def test_flux_states() -> None:
    system = batch_system("flux")
    (one,) = system.parse_status(captured("flux")["status: one"], ids("fNsuWJUw")).values()
    assert one.state is PENDING
    names = ids("ƒNsuWJUw", "fA1", "fA2", "fA3", "fA4", "fA5", "fA6")
    found = system.parse_status(captured("flux")["status: several"], names)
    assert [found[job].state for job in names] == [PENDING, *[ENDED] * 4, RUNNING, UNKNOWN]
    assert [found[job].cause for job in names[1:5]] == [
        EndCause.FAILED,
        EndCause.CANCELLED,
        EndCause.TIMEOUT,
        EndCause.FAILED,
    ]
    assert found[names[1]].exit_code == 3
    assert found[names[4]].is_hopeless
    assert "only 4 eligible" in found[names[4]].reason
    assert found[names[5]].left_s == 280


def test_pbs_states() -> None:
    system = batch_system("pbs")
    names = ids(*(f"{index}.vm" for index in range(10)))
    found = system.parse_history(captured("pbs")["history: all"], names)
    assert found[names[0]].reason.startswith("Not Running")
    assert [job for job in names if found[job].is_hopeless] == ids("2.vm")
    assert [job for job in names if found[job].is_held] == ids("3.vm")
    assert [found[job].cause for job in (*ids("1.vm"), *names[4:8])] == [
        EndCause.FAILED,
        EndCause.CANCELLED,
        EndCause.TIMEOUT,
        EndCause.CANCELLED,
        EndCause.COMPLETED,
    ]
    assert found[names[8]].state is RUNNING
    assert found[names[9]].state is UNKNOWN
    (one,) = system.parse_status(captured("pbs")["status: all"], ids("0.vm")).values()
    assert one.left_s == 540


def test_pbs_with_json_that_is_none() -> None:
    text = captured("pbs")["history: all"].stdout.replace('"pbs_server"', '"x": 01, "pbs_server"')
    found = batch_system("pbs").parse_history(reply(text), ids("1.vm", "2.vm"))
    assert [one.state for one in found.values()] == [ENDED, PENDING]
    assert found[JobId("1.vm")].exit_code == 7


def test_lsf_states() -> None:
    rows: list[dict[str, Any]] = [
        {"JOBID": "1", "STAT": "RUN", "EXIT_CODE": "", "TIME_LEFT": "0:57 L"},
        {"JOBID": "2", "STAT": "PEND", "PEND_REASON": "Job slot limit reached;"},
        {"JOBID": "3", "STAT": "PSUSP"},
        {"JOBID": "4", "STAT": "DONE"},
        {"JOBID": "5", "STAT": "EXIT", "EXIT_CODE": "3", "EXIT_REASON": ""},
        {"JOBID": "6", "STAT": "EXIT", "EXIT_CODE": "140", "EXIT_REASON": "TERM_RUNLIMIT: x"},
        {"JOBID": "7", "STAT": "EXIT", "EXIT_CODE": "130", "EXIT_REASON": "TERM_OWNER: x"},
        {"JOBID": "8", "ERROR": "Job <8> is not found"},
    ]
    text = json.dumps({"COMMAND": "bjobs", "JOBS": 8, "RECORDS": rows})
    names = ids(*"12345678")
    found = batch_system("lsf").parse_status(reply(text, exit_code=255), names)
    states = [RUNNING, PENDING, PENDING, ENDED, ENDED, ENDED, ENDED, UNKNOWN]
    assert [found[job].state for job in names] == states
    assert found[names[0]].left_s == 57 * 60
    assert found[names[2]].is_held
    assert [found[job].cause for job in names[3:7]] == [
        EndCause.COMPLETED,
        EndCause.FAILED,
        EndCause.TIMEOUT,
        EndCause.CANCELLED,
    ]


def test_oar_states() -> None:
    jobs = {
        "1": {"state": "Waiting", "message": "FIFO scheduling OK"},
        "2": {"state": "Hold"},
        "3": {"state": "Running"},
        "4": {"state": "Terminated", "exit_code": 768},
        "5": {"state": "Error", "events": [{"type": "WALLTIME"}]},
        "6": {"state": "Error", "events": [{"type": "FRAG_JOB_REQUEST"}]},
    }
    names = ids(*"123456")
    found = batch_system("oar").parse_status(reply(json.dumps(jobs)), names)
    assert [one.state for one in found.values()] == [PENDING, PENDING, RUNNING, ENDED, ENDED, ENDED]
    assert found[names[1]].is_held
    assert found[names[3]].exit_code == 3
    assert found[names[4]].cause is EndCause.TIMEOUT
    assert found[names[5]].cause is EndCause.CANCELLED


def test_htcondor_states() -> None:
    jobs = [
        {"ClusterId": 1, "JobStatus": 1},
        {
            "ClusterId": 2,
            "JobStatus": 2,
            "ServerTime": 1100,
            "JobCurrentStartDate": 1000,
            "ExadaskWalltime": 600,
        },
        {"ClusterId": 3, "JobStatus": 5, "HoldReason": "x"},
        {"ClusterId": 4, "JobStatus": 4, "ExitCode": 3},
        {"ClusterId": 5, "JobStatus": 3, "RemoveReason": "via condor_rm (by user me)"},
        {"ClusterId": 6, "JobStatus": 3, "RemoveReason": "The job attribute PeriodicRemove ..."},
    ]
    names = ids(*"1234567")
    found = batch_system("htcondor").parse_status(reply(json.dumps(jobs)), names)
    states = [PENDING, RUNNING, PENDING, ENDED, ENDED, ENDED, UNKNOWN]
    assert [found[job].state for job in names] == states
    assert found[names[1]].left_s == 500
    assert found[names[2]].is_held
    assert found[names[3]].exit_code == 3
    assert found[names[4]].cause is EndCause.CANCELLED
    assert found[names[5]].cause is EndCause.TIMEOUT


@pytest.mark.parametrize(
    ("system", "key"),
    [
        ("slurm", "status: unknown"),
        ("flux", "status: unknown"),
        ("pbs", "status: unknown"),
        ("pbs", "status: finished"),
    ],
)
def test_a_job_nobody_knows_is_no_failure(system: str, key: str) -> None:
    found = batch_system(system).parse_status(captured(system)[key], ids("99"))
    assert found[JobId("99")].state is UNKNOWN


@pytest.mark.parametrize(
    ("system", "key"),
    [
        ("slurm", "status: no controller"),
        ("flux", "status: no broker"),
        ("pbs", "status: no server"),
        ("sge", "status: no master"),
    ],
)
def test_no_answer_says_nothing_of_jobs(system: str, key: str) -> None:
    with pytest.raises(QueryFailed):
        batch_system(system).parse_status(captured(system)[key], ids("1"))


# -- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "key", "facts", "shape"),
    [
        ("slurm", "shape: all", {}, (4, 0, 4000 << 20)),
        ("slurm", "shape: gpu", {"queue": "gpu"}, (8, 4, 8000 << 20)),
        ("slurm", "shape: wrong partition", {"queue": "nope"}, None),
        ("sge", "shape", {"queue": "all.q"}, (2, 0, int(23.5 * 2**30))),
        ("sge", "shape", {"queue": "nope"}, None),
        ("flux", "shape: four nodes", {}, (4, 2, 2**40)),
        ("pbs", "shape", {}, (2, 0, 2**30)),
        ("pbs", "shape", {"queue": "workq"}, (4, 2, 2**32)),
        ("pbs", "shape", {"select": "system=big"}, (4, 2, 2**32)),
    ],
)
def test_the_smallest_node(
    system: str, key: str, facts: dict[str, str], shape: tuple[int, int, int] | None
) -> None:
    pool = Pool.declare("p", batch=system, **facts)
    found = batch_system(system).parse_shape(captured(system)[key], pool)
    assert (found and (found.cores, found.gpus, found.memory_bytes)) == shape


def test_slurm_counts_gpus_of_all_kinds() -> None:
    text = "x*|64|256000|gpu:a100:3(S:0-1),gpu:v100:1,nvme:2\nx*|128+|256000+|gpu:a100:4(S:0)\n"
    found = batch_system("slurm").parse_shape(reply(text), Pool.declare("p", batch="slurm"))
    assert found is not None
    assert (found.cores, found.gpus) == (64, 4)


# -- garbage ----------------------------------------------------------------------------------

_WORDS = [
    *("|", "\n", "{", "}", "[", "]", '"', ":", ",", "1", "99999999999999999999", "RUNNING", "None"),
    *('{"jobs": [{"jobid": 1, "state": {}}]}', '{"Jobs": {"1": []}}', '{"RECORDS": [{"STAT": 1}]}'),
    *('"1": {"Job_Name"', '"job_state": "F"', "<?xml version='1.0'?><a>", "<job_list>", "nodes"),
    *("jobnumber 1\n", "=" * 30 + "\n", "failed x\n", '[{"ClusterId": 1, "JobStatus": "x"}]'),
    *('{"nodes": {"n": {"resources_available": {"ncpus": 1e400, "mem": "9"}}}}', "-1:-1", "1:1:1"),
]
_GARBAGE = st.lists(st.sampled_from(_WORDS) | st.text(max_size=8), max_size=12).map("".join)


def read_all(system: BatchSystem, answer: Reply, jobs: Sequence[JobId]) -> None:
    for parse in (system.parse_status, system.parse_history):
        with contextlib.suppress(QueryFailed):
            assert list(parse(answer, jobs)) == list(jobs)
    system.parse_shape(answer, Pool.declare("p", batch="local", queue="x", select="a=b"))


@pytest.mark.parametrize("name", BATCH_SYSTEMS)
@settings(max_examples=30, deadline=None)
@given(stdout=_GARBAGE, stderr=_GARBAGE, exit_code=st.sampled_from([0, 1, 255]))
def test_garbage_is_survived(name: str, stdout: str, stderr: str, exit_code: int) -> None:
    read_all(batch_system(name), reply(stdout, exit_code=exit_code, stderr=stderr), ids("1", "2"))


@pytest.mark.parametrize("name", sorted(_VERSIONS))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_mutilated_answers_are_survived(name: str, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(list(captured(name).values()))).stdout
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    read_all(batch_system(name), reply(whole[:start] + whole[end:]), ids("1"))
