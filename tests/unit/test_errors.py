"""Every error survives pickling and says what it knows."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest

from exadask import errors
from exadask.runtime.parcel import Packer

_EXAMPLES: list[errors.ExadaskError] = [
    errors.ExadaskError("something"),
    errors.AllocationFailed("gpu", "its job was rejected.", "no such partition"),
    errors.ClusterLost("relax", "connection closed"),
    errors.ClusterUnreachable("tls://10.0.0.1:4711", "refused", "Is it running?"),
    errors.CommandFailed("xtb mol.xyz", 127, "/tmp/there", "not found"),
    errors.DependencyFailed("report", ("energy", "relax"), "ValueError: no such molecule"),
    errors.Detached("relax", "/scratch/run", "mine"),
    errors.ExecutorClosed("submit a task"),
    errors.FileChanged("/scratch/in.h5", "it had 5 bytes, and has 7"),
    errors.ImpossibleRequest("train", "9 GPUs", "4 cores, 1 GPU"),
    errors.ImpossibleRequest("train", "1 core, 3h", "2h", "time"),
    errors.ImpossibleRequest("train", "1 core in pool 'cqu'", "open are: cpu", "pool"),
    errors.InvalidQuantity("memory", "12 parsecs", "an amount"),
    errors.InvalidRequest("unknown option 'core'.", "Did you mean 'cores'?"),
    errors.InvalidTransition("share 7", "release", "held, released"),
    errors.MemoryExceeded("relax", 2**30, 2**31, "node-3"),
    errors.NoActiveExecutor("relax"),
    errors.NoNodeLeft("relax", "the budget is spent"),
    errors.NodeLost("relax", ("node-1", "node-2")),
    errors.NotSerializable("the function", "closure variable 'lock'", "cannot pickle"),
    errors.OutputMissing("lmp -in x", "log='*.log'", "/scratch/x", ("stderr", "stdout")),
    errors.QueryFailed("squeue -j 7", "timed out"),
    errors.RanksFailed("solve", 4, 9, "Killed"),
    errors.RecipeError("no recipe 'g3'.", "Did you mean 'g2'?"),
    errors.RemoteError("relax", "mod.Strange", "odd", "Traceback ..."),
    errors.RunFolderError("/scratch/run", "no space left", "Choose another."),
    errors.ServiceFailed("vllm", "it ended by itself with code 1", "no GPU"),
    errors.SiteError("frontier", "has no pool 'gpu'.", "It has: batch."),
    errors.SubmissionRefused("sbatch job.sh", "invalid partition", True, "Give queue=."),
    errors.TaskCrashed("relax", "SIGSEGV", None, "Fatal", "node-3"),
    errors.TimeExceeded("relax", 60.0, "node-3"),
    errors.UnhashableValue("relax", "argument 1 (a lock)", "cannot pickle it"),
]


def test_every_error_has_an_example() -> None:
    assert {type(one).__name__ for one in _EXAMPLES} == set(errors.__all__)


@pytest.mark.parametrize("error", _EXAMPLES, ids=lambda one: type(one).__name__)
def test_error_survives_pickling(error: errors.ExadaskError) -> None:
    for rebuilt in (
        pickle.loads(pickle.dumps(error)),
        pickle.loads(cloudpickle.dumps(error)),
        Packer().pack(error).load(),
    ):
        assert type(rebuilt) is type(error)
        assert rebuilt.args == error.args
        assert str(rebuilt) == str(error)


@pytest.mark.parametrize("error", _EXAMPLES, ids=lambda one: type(one).__name__)
def test_message_holds_the_names(error: errors.ExadaskError) -> None:
    for value in error.args:
        if isinstance(value, str) and " " not in value:
            assert value in str(error)


def test_crash_says_how() -> None:
    assert "SIGSEGV" in str(errors.TaskCrashed("f", "SIGSEGV", None, "", "n"))
    assert "exit code 3" in str(errors.TaskCrashed("f", None, 3, "", "n"))
    assert "memory=" in str(errors.TaskCrashed("f", "SIGKILL", None, "", "n"))
