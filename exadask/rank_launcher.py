"""The command that starts the ranks of a program inside a task: what may be written of it."""

from __future__ import annotations

from exadask.errors import InvalidRequest, shown


def check_launcher(launcher: object) -> None:
    """Check that a launcher is a command with no other holes than there are values for.

    Raises
    ------
    InvalidRequest
        It is not.
    """
    if launcher is None:
        return
    try:
        if not isinstance(launcher, str) or not launcher.format(ranks=1, cores=1, node="x").split():
            raise ValueError("it is no command")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise InvalidRequest(
            f"launcher={shown(launcher)} is not valid ({error}).",
            'Give a command, such as "srun --overlap --exact -w {node} -n {ranks} -c {cores}".',
        ) from error
