"""PSI/J: the runtime gives its library a specification; scripts carry no directives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from exadask.batch import answers
from exadask.batch.directives import Dialect, Directive
from exadask.batch.model import AllocationRequest, JobId, Reply, Scripts
from exadask.batch.scripts import job_body, node_script
from exadask.errors import InvalidRequest
from exadask.job_status import JobStatus
from exadask.pool import Pool
from exadask.resources import NodeShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PsijSpec:
    """What PSI/J is asked for; the names are close to those of its `JobSpec`.

    Parameters
    ----------
    executor : str
        Which of its executors: ``slurm``, ``pbs``, ``lsf``, ``flux``, ``local``, ...
    name : str
        The job's name.
    executable : str
        What runs, once: PSI/J's launcher is to be ``single``.
    arguments : tuple of str
        Its arguments.
    directory : str
        Where it starts.
    node_count : int
        Nodes [nodes].
    processes_per_node : int
        Always 1.
    is_exclusive : bool
        Whether nodes are asked for whole.
    cores_per_process, gpus_per_process : int, optional
        What of a node is asked for. None: not said.
    memory_bytes : int, optional
        Memory of all nodes together [bytes], as PSI/J counts it. None: not said.
    walltime_s : float
        How long it may last [s].
    queue, account : str, optional
        Where it waits, and who pays.
    attributes : tuple of (str, str)
        Custom attributes, such as ``("slurm.constraint", "nvme")``.
    stdout_path : str
        Where its output and errors go.
    """

    executor: str
    name: str
    executable: str
    arguments: tuple[str, ...]
    directory: str
    node_count: int
    processes_per_node: int = 1
    is_exclusive: bool
    cores_per_process: int | None = None
    gpus_per_process: int | None = None
    memory_bytes: int | None = None
    walltime_s: float
    queue: str | None = None
    account: str | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    stdout_path: str


class Psij:
    """PSI/J: only `render` has a meaning, and `psij_spec`; its library runs no commands of ours."""

    name = "psij"
    environment: Mapping[str, str] = MappingProxyType({})

    def render(self, request: AllocationRequest) -> Scripts:
        """Write the scripts of an allocation."""
        job = f"#!/bin/bash\n{job_body(request)}"
        return Scripts(job=job, node=node_script(request))

    def submit_argv(self, request: AllocationRequest) -> list[str]:
        """Refuse.

        Raises
        ------
        InvalidRequest
            Always.
        """
        raise _no_command("submits")

    def parse_submit(self, reply: Reply) -> JobId:
        """Refuse.

        Raises
        ------
        InvalidRequest
            Always.
        """
        raise _no_command("submits")

    def status_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Refuse.

        Raises
        ------
        InvalidRequest
            Always.
        """
        raise _no_command("asks for jobs")

    def parse_status(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known."""
        return answers.complete({}, ids)

    def history_argv(self, ids: Sequence[JobId]) -> list[str] | None:
        """Nothing: PSI/J has no history."""
        return None

    def parse_history(self, reply: Reply, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Say that nothing is known."""
        return answers.complete({}, ids)

    def cancel_argv(self, ids: Sequence[JobId]) -> list[str]:
        """Refuse.

        Raises
        ------
        InvalidRequest
            Always.
        """
        raise _no_command("ends jobs")

    def shape_argv(self, pool: Pool) -> list[str] | None:
        """Nothing: PSI/J does not ask what nodes have."""
        return None

    def parse_shape(self, reply: Reply, pool: Pool) -> NodeShape | None:
        """Say that nothing is known."""
        return None


def psij_spec(request: AllocationRequest) -> PsijSpec:
    """Say what PSI/J is to be asked for, once the scripts have been written.

    Parameters
    ----------
    request : AllocationRequest
        The allocation; its pool names an executor.

    Returns
    -------
    PsijSpec
        The specification.
    """
    pool, shape = request.pool, request.pool.shape
    assert pool.psij_executor is not None, "checked by Pool"
    is_part = shape is not None and not pool.exclusive
    has_gpus = shape is not None and shape.gpus > 0 and pool.gpu_option != "none"
    memory = pool.memory_asked_bytes
    return PsijSpec(
        executor=pool.psij_executor,
        name=request.name,
        executable="/bin/bash",
        arguments=(str(request.job_script),),
        directory=str(request.folder),
        node_count=request.nodes,
        is_exclusive=pool.exclusive,
        cores_per_process=shape.cores if shape and is_part else None,
        gpus_per_process=shape.gpus if shape and has_gpus else None,
        memory_bytes=None if memory is None else request.nodes * memory,
        walltime_s=request.walltime_s,
        queue=pool.queue,
        account=pool.account,
        attributes=_attributes(pool, pool.psij_executor),
        stdout_path=str(request.log),
    )


def _attributes(pool: Pool, executor: str) -> tuple[tuple[str, str], ...]:
    """Turn directives into PSI/J's custom attributes, which need the long names of Slurm's flags.

    A flag without a value cannot be written so that every batch system takes it; it is given an
    empty one, as PSI/J has no other way.
    """
    dialect = _dialect(executor)
    own = [Directive("--qos", pool.qos)] if pool.qos and executor == "slurm" else []
    return tuple(
        (f"{executor}.{flag.lstrip('-')}", value)
        for flag, value in (_parted(text, dialect) for text in dialect.asked(own, pool))
    )


def _parted(text: str, dialect: Dialect) -> tuple[str, str]:
    """Split a directive into its flag, long where it has a long name, and its value."""
    (written,) = dialect.flags(text)
    value = text.removeprefix(written).lstrip("= ").strip("\"'")
    return dialect.aliases.get(written, written), value


def _dialect(executor: str) -> Dialect:
    if executor == "slurm":
        from exadask.batch.slurm import DIALECT

        return DIALECT
    from exadask.batch.directives import word_flags

    return Dialect(prefix=f"#{executor}", flags=word_flags, aliases={})


def _no_command(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"PSI/J has no command that {what}: its library does.", "This is a bug of exadask."
    )
