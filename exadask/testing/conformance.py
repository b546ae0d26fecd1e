r"""One suite for all batch systems: what `runtime.backends.Backend` promises, asked of them.

On a machine with a batch system, from a folder that its nodes see::

    pytest -p exadask.testing.plugin --pyargs exadask.testing.conformance \
        --batch slurm --batch-fact queue=debug --batch-fact account=abc123

It submits about twenty jobs of one node and a few of two (``--batch-fact nodes=1`` leaves those
out), each for some seconds, and cancels what it submitted. A test module that provides a fixture
`harness` of scope "module" and imports all names from here runs the suite with that.
"""

# ruff: noqa: D103  # the names of the tests say what they ask

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from exadask.batch.model import JobId
from exadask.errors import SubmissionRefused
from exadask.job_status import EndCause, JobState
from exadask.runtime.backends import tail_of
from exadask.testing.harness import Harness
from exadask.testing.waiting import eventually

__all__ = [
    "clean_up_after",
    "pytestmark",
    "test_agents_see_what_the_pool_says",
    "test_an_id_of_nobody_is_unknown",
    "test_an_impossible_request_does_not_wait_silently",
    "test_cancelling_also_what_has_ended",
    "test_cancelling_by_a_command",
    "test_cancelling_what_runs",
    "test_each_node_gets_one_agent",
    "test_failing_agents_fail_the_job",
    "test_failing_setup_fails_the_job",
    "test_it_ends_well",
    "test_it_loses_its_node",
    "test_it_loses_one_of_its_nodes",
    "test_it_may_know_its_nodes",
    "test_it_waits_while_the_machine_is_full_and_can_be_cancelled",
    "test_many_jobs_in_one_query",
    "test_one_that_is_held_says_so",
    "test_unknown_queues_are_refused",
    "test_walltime_ends_it",
]

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

_ENDED = JobState.ENDED


@pytest.fixture(autouse=True)
def clean_up_after(harness: Harness) -> Iterator[None]:
    """End what a test leaves, whether it passed or not."""
    yield
    harness.clean_up()


def test_it_ends_well(harness: Harness) -> None:
    before_s = time.time()
    job = harness.submit(harness.request(lasts_s=1))
    status = harness.end(job)
    assert (status.cause, status.exit_code or 0) == (EndCause.COMPLETED, 0)
    (agent,) = harness.agents(job)
    assert agent.rank == 0
    assert before_s - 60 < agent.began_s < time.time() + 60
    harness.said(job, "stand-in 0 ends with exit code 0")


def test_each_node_gets_one_agent(harness: Harness) -> None:
    if harness.can.nodes < 2:
        pytest.skip("one node per job")
    request = harness.request(nodes=harness.can.nodes, lasts_s=2)
    job = harness.submit(request)
    status = harness.end(job)
    assert status.cause is EndCause.COMPLETED
    agents = harness.begun(request)
    assert [agent.rank for agent in agents] == list(range(request.nodes))
    assert len({agent.node for agent in agents}) == request.nodes
    assert len({agent.began_s for agent in agents}) == 1
    harness.said(job, f"stand-in {request.nodes - 1} ends")


def test_agents_see_what_the_pool_says(harness: Harness) -> None:
    awkward = "spaces, 'quotes', \"more\" and $HOME"
    request = harness.request(
        lasts_s=0,
        env={"CONFORMANCE_ENV": awkward},
        setup=["export CONFORMANCE_SETUP='of the setup'"],
        prologue=["echo the prologue ran"],
    )
    job = harness.submit(request)
    harness.end(job)
    (agent,) = harness.agents(job)
    assert agent.facts["CONFORMANCE_ENV"] == awkward
    assert agent.facts["CONFORMANCE_SETUP"] == "of the setup"
    harness.said(job, "the prologue ran")


def test_it_waits_while_the_machine_is_full_and_can_be_cancelled(harness: Harness) -> None:
    waiting = _fill(harness)[-1]
    status = harness.status(waiting)
    assert status.state is JobState.PENDING
    assert not status.is_held
    assert not status.is_hopeless
    harness.cancel(waiting)
    assert harness.end(waiting).cause is EndCause.CANCELLED


def test_cancelling_what_runs(harness: Harness) -> None:
    job = harness.start(harness.request(nodes=harness.can.nodes))
    agents = harness.agents(job)
    harness.cancel(job)
    assert harness.end(job).cause is EndCause.CANCELLED
    _are_gone(harness, job)
    assert harness.agents(job) == agents


def test_cancelling_by_a_command(harness: Harness) -> None:
    job = harness.start(harness.request())
    command = harness.backend.cancel_argv([job])
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    harness.end(job)
    _are_gone(harness, job)


def test_cancelling_also_what_has_ended(harness: Harness) -> None:
    ended = harness.submit(harness.request(lasts_s=0))
    harness.end(ended)
    harness.cancel(ended)
    running = harness.start(harness.request())
    harness.cancel(ended, running)
    assert harness.end(running).cause is EndCause.CANCELLED
    assert harness.status(ended).cause in (EndCause.COMPLETED, None)


def test_failing_agents_fail_the_job(harness: Harness) -> None:
    request = harness.request(nodes=harness.can.nodes, lasts_s=0, exit_code=3)
    job = harness.submit(request)
    status = harness.end(job)
    assert (status.cause, status.exit_code) == (EndCause.FAILED, 3)
    harness.said(job, "stand-in 0 ends with exit code 3")
    assert "stand-in 0 ends with exit code 3" in tail_of(request.log)


def test_failing_setup_fails_the_job(harness: Harness) -> None:
    request = harness.request(setup=["no-such-command-of-this-site --quiet"])
    job = harness.submit(request)
    status = harness.end(job)
    assert status.cause is EndCause.FAILED
    assert status.exit_code
    assert harness.begun(request) == []
    harness.said(job, "no-such-command-of-this-site")


def test_unknown_queues_are_refused(harness: Harness) -> None:
    if not harness.can.has_queues:
        pytest.skip("no queues")
    with pytest.raises(SubmissionRefused) as caught:
        harness.submit(harness.request(queue="exadask-no-such-queue"))
    assert caught.value.is_permanent
    assert caught.value.answer
    assert caught.value.advice


def test_an_impossible_request_does_not_wait_silently(harness: Harness) -> None:
    if not harness.can.impossible:
        pytest.skip("every request can be fulfilled")
    try:
        job = harness.submit(harness.request(**harness.can.impossible))
    except SubmissionRefused as error:
        assert error.answer  # noqa: PT017  # also an answer
        return
    status = harness.until(job, lambda one: one.is_hopeless or one.state is _ENDED)
    assert status.is_hopeless or status.cause is EndCause.FAILED
    assert status.reason


def test_one_that_is_held_says_so(harness: Harness) -> None:
    if not harness.can.held:
        pytest.skip("jobs cannot be submitted on hold")
    directives = (*harness.pool.directives, *harness.can.held)
    job = harness.submit(harness.request(directives=directives))
    status = harness.until(job, lambda one: one.is_held)
    assert status.state is JobState.PENDING


def test_an_id_of_nobody_is_unknown(harness: Harness) -> None:
    nobody = JobId(harness.can.unknown_id)
    assert harness.status(nobody).state is JobState.UNKNOWN


def test_many_jobs_in_one_query(harness: Harness) -> None:
    nobody = JobId(harness.can.unknown_id)
    ended = harness.submit(harness.request(lasts_s=0, exit_code=5))
    harness.end(ended)
    running = harness.start(harness.request())
    found = harness.statuses([nobody, ended, running])
    assert list(found) == [nobody, ended, running]
    assert [one.state for one in found.values()] == [JobState.UNKNOWN, _ENDED, JobState.RUNNING]
    assert found[ended].exit_code == 5
    assert harness.statuses([]) == {}


def test_it_may_know_its_nodes(harness: Harness) -> None:
    shape = harness.node_shape()
    if shape is None:
        pytest.skip("does not say what its nodes have")
    assert shape.cores >= 1
    assert shape.memory_bytes > 0


def test_it_loses_its_node(harness: Harness) -> None:
    if harness.kill_node is None:
        pytest.skip("nobody here can take a node away")
    job = harness.start(harness.request())
    with harness.kill_node(harness.agents(job)[0]):
        assert harness.end(job).cause is EndCause.NODE_FAILURE
        _are_gone(harness, job)


def test_it_loses_one_of_its_nodes(harness: Harness) -> None:
    if harness.kill_node is None or harness.can.nodes < 2:
        pytest.skip("nobody here can take a node away, or there is only one")
    job = harness.start(harness.request(nodes=harness.can.nodes))
    first, *_, last = harness.agents(job)
    with harness.kill_node(last):
        eventually(last.is_gone, timeout_s=harness.can.patience_s)
        if first.is_gone():
            assert harness.end(job).cause is EndCause.NODE_FAILURE
        else:
            assert harness.status(job).state is JobState.RUNNING


def test_walltime_ends_it(harness: Harness) -> None:
    walltime_s = harness.can.walltime_s
    if walltime_s is None:
        pytest.skip("walltimes are kept by something else here")
    job = harness.with_walltime(walltime_s)
    left_s = harness.status(job).left_s
    assert left_s is None or left_s <= walltime_s
    status = harness.end(job, timeout_s=walltime_s + harness.can.overtime_s)
    assert status.cause is EndCause.TIMEOUT
    _are_gone(harness, job)


def _fill(harness: Harness) -> list[JobId]:
    """Submit jobs until one must wait."""
    if not harness.can.most_jobs:
        pytest.skip("no queue")
    jobs = []
    for _ in range(harness.can.most_jobs):
        jobs.append(harness.submit(harness.request()))
        if harness.must_wait(jobs[-1]):
            return jobs
    pytest.skip(f"{len(jobs)} jobs run at once: the machine is not full")


def _are_gone(harness: Harness, job: JobId) -> None:
    agents = harness.agents(job)
    eventually(lambda: all(agent.is_gone() for agent in agents), timeout_s=harness.can.patience_s)
