"""The command that starts the ranks of a program inside a task: what may be written of it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping

from exadask.errors import InvalidRequest, shown

VARIABLE = "EXADASK_RANK_LAUNCHER"
"""Tells the processes of tasks what the pool of their node says; empty: nothing."""

SRUN = "srun"
"""Stands for Slurm's, with all that it needs here, on one node and on several."""

_OF_SEVERAL = ("{hostfile}", "{nodes}", "{n_nodes}")
# It shares the nodes with the agents, binds nothing (ranks do that themselves; -c would imply
# --exact), and ends all ranks when one dies.
_SRUN = "srun --overlap --overcommit --cpu-bind=none -K"
_SRUN_ON_ONE = f"{_SRUN} -N 1 -w {{node}} -n {{ranks}}"
_SRUN_ON_SEVERAL = f"{_SRUN} -m arbitrary -N {{n_nodes}} -n {{ranks}}"


def check_launcher(launcher: object, name: str = "launcher") -> None:
    """Check that a launcher is a command with no other holes than there are values for.

    Parameters
    ----------
    launcher : object
        What was said; None is fine.
    name : str
        What it was said as.

    Raises
    ------
    InvalidRequest
        It is not.

    Examples
    --------
    >>> check_launcher("srun -n {ranks}")
    >>> check_launcher("srun -n {rank}", "rank_launcher")
    Traceback (most recent call last):
    exadask.errors.InvalidRequest: rank_launcher='srun -n {rank}' is not valid ('rank'). Give ...
    """
    if launcher is None:
        return
    try:
        holes = {"ranks": 1, "cores": 1, "node": "x", "nodes": "x", "n_nodes": 1, "hostfile": "x"}
        if not isinstance(launcher, str) or not shlex.split(launcher.format(**holes)):
            raise ValueError("it is no command")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise InvalidRequest(
            f"{name}={shown(launcher)} is not valid ({error}).",
            'Give "srun", or a command, such as "mpiexec.hydra -f {hostfile} -n {ranks}".',
        ) from error


def takes_several_nodes(launcher: str) -> bool:
    """Whether a launcher is told where the ranks of a task on several nodes go.

    Examples
    --------
    >>> takes_several_nodes("srun -w {nodes} -n {ranks}"), takes_several_nodes("srun -n {ranks}")
    (True, False)
    >>> takes_several_nodes("srun")
    True
    """
    return launcher == SRUN or any(one in launcher for one in _OF_SEVERAL)


def launcher_here(
    said: str | None, environ: Mapping[str, str], *, is_gang: bool = False
) -> str | None:
    """Choose a launcher on this node: what the task says wins over what its pool says.

    Parameters
    ----------
    said : str, optional
        What the task says.
    environ : mapping
        Environment variables, which tell what the pool says.
    is_gang : bool
        Whether the ranks are on several nodes: then the pool's counts only if it takes them.

    Returns
    -------
    str or None
        The command; None: nobody says anything.

    Raises
    ------
    InvalidRequest
        The pool says a program that is not on this node.

    Examples
    --------
    >>> launcher_here(None, {VARIABLE: "env mpiexec -n {ranks}"})
    'env mpiexec -n {ranks}'
    >>> launcher_here("mpiexec.mpich -n {ranks}", {VARIABLE: "env mpiexec -n {ranks}"})
    'mpiexec.mpich -n {ranks}'
    >>> launcher_here(None, {VARIABLE: "env mpiexec -n {ranks}"}, is_gang=True) is None
    True
    >>> launcher_here("srun", {}, is_gang=True)
    'srun --overlap --overcommit --cpu-bind=none -K -m arbitrary -N {n_nodes} -n {ranks}'
    """
    told = environ.get(VARIABLE)
    if said is not None or not told or (is_gang and not takes_several_nodes(told)):
        return None if said is None else _spelled_out(said, is_gang=is_gang)
    program = shlex.split(told)[0]
    if shutil.which(program) is None:
        raise InvalidRequest(
            f"rank_launcher={told!r} of this node's pool: there is no {program!r} here.",
            "Load the module that has it where the job begins (setup= of the pool), or say another "
            "rank_launcher=, or launcher= of the task.",
        )
    return _spelled_out(told, is_gang=is_gang)


def _spelled_out(launcher: str, *, is_gang: bool) -> str:
    """Give the command that is meant."""
    if launcher != SRUN:
        return launcher
    return _SRUN_ON_SEVERAL if is_gang else _SRUN_ON_ONE
