"""The two scripts of an allocation: what runs once, and what runs on each node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from exadask.batch.launchers import launch_lines, rank_expression
from exadask.batch.model import AllocationRequest

_MODULE_LINE = re.compile(r"\s*(?:module|ml)\s+[\w\s./+:-]+")
_MENTIONS_MODULES = re.compile(r"\b(?:module|ml)\s")
# Lines of users are written as they are, so that blocks of several lines work. The trap fires for a
# command that fails at the top, not inside what it sources: there a failing command is normal.
_GUARD = """\
exadask_errors= exadask_depth=${{#BASH_SOURCE[@]}}
exadask_failed() {{
    [ "$3" -le "$exadask_depth" ] || return 0
    [ -z "$exadask_errors" ] || {{ exec 2>&3; cat "$exadask_errors" >&2; rm -f "$exadask_errors"; }}
    echo "exadask: a line of the pool's {part} failed on $(hostname) with exit code $1: $2" >&2
    exit "$1"
}}
trap 'exadask_failed "$?" "$BASH_COMMAND" "${{#BASH_SOURCE[@]}}"' ERR
"""
# Old module systems print an error and return 0.
_MODULE_GUARD = """\
type module >/dev/null 2>&1 || [ ! -r /etc/profile ] || . /etc/profile
exadask_listen() {
    exadask_errors=$(mktemp) && exec 3>&2 2>"$exadask_errors"
}
exadask_heard() {
    [ -n "$exadask_errors" ] || return 0
    exec 2>&3 3>&-
    cat "$exadask_errors" >&2
    if grep -qE 'ModuleCmd_|:ERROR:|Unable to locate a modulefile' "$exadask_errors"; then
        rm -f "$exadask_errors"
        exadask_errors=
        exadask_failed 1 "$1" 0
    fi
    rm -f "$exadask_errors"
    exadask_errors=
}
"""


def job_body(request: AllocationRequest) -> str:
    """Write what runs once, without directives: it starts the agents and records how it ended.

    Parameters
    ----------
    request : AllocationRequest
        The allocation.

    Returns
    -------
    str
        Lines of Bash.

    Raises
    ------
    InvalidRequest
        There are several nodes, and nothing to start agents on them.

    Notes
    -----
    A signal that ends the job is passed on to the launcher, and waited for: an agent that is asked
    to end says goodbye to the scheduler. LSF warns with SIGUSR2 of the end of the walltime.
    """
    launch = "\n".join(f"    {line}" for line in launch_lines(request))
    return f"""\
exadask_began=$(date +%s)
exadask_record={shlex.quote(str(request.exit_record))}
trap 'echo "$?" >"$exadask_record"' EXIT
{_entered(request)}
{_guarded(request.pool.prologue, "prologue")}\
exadask_launch() {{
{launch}
}}
exadask_launch &
exadask_child=$!
trap 'kill -TERM "$exadask_child" 2>/dev/null' TERM INT USR2
wait "$exadask_child"
exadask_code=$?
while kill -0 "$exadask_child" 2>/dev/null; do # a signal ended the waiting, not the agents
    wait "$exadask_child"
    exadask_code=$?
done
exit "$exadask_code"
"""


def node_script(request: AllocationRequest) -> str:
    """Write the script that runs on each node: it prepares the environment and becomes the agent.

    Parameters
    ----------
    request : AllocationRequest
        The allocation.

    Returns
    -------
    str
        A Bash script. Its arguments: seconds since the epoch at which the allocation began, and
        the node's rank where the launcher gives no variable for it.
    """
    return f"#!/bin/bash\n{node_body(request)}"


def node_body(request: AllocationRequest) -> str:
    """Write the lines of `node_script`."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in request.pool.env)
    agent = shlex.join(request.agent_argv)
    return f"""\
exadask_began=$1
exadask_rank={rank_expression(request)}
set -- # sourced files must not see these arguments
{_entered(request)}
[ -n "$exadask_rank" ] || {{ echo "exadask: the launcher gave $(hostname) no rank" >&2; exit 1; }}
{exports}{_guarded(request.pool.setup, "setup")}{_scratch(request.pool.scratch)}\
exec {agent} --began "$exadask_began" --rank "$exadask_rank"
"""


def _entered(request: AllocationRequest) -> str:
    """Enter the allocation's folder: batch systems start in different places."""
    return f"cd {shlex.quote(str(request.folder))} || exit 1"


def _guarded(lines: Sequence[str], part: str) -> str:
    """Write a user's lines so that the first that fails ends the script, and is named."""
    if not lines:
        return ""
    guard = _GUARD.format(part=part)
    if not any(_MENTIONS_MODULES.search(line) for line in lines):
        return f"{guard}{_joined(lines)}trap - ERR\n"
    written, before = list[str](), ""
    for line in lines:
        goes_on, before = before.rstrip().endswith(("\\", "&&", "|")), line
        if _MODULE_LINE.fullmatch(line) and not goes_on:
            line = f"exadask_listen\n{line}\nexadask_heard {shlex.quote(line.strip())}"
        written.append(line)
    return f"{_MODULE_GUARD}{guard}{_joined(written)}trap - ERR\n"


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _scratch(path: str | None) -> str:
    """Make the fast local folder, whose shell variables are those of the node."""
    if path is None:
        return ""
    text = re.sub(r'([\\"`])', r"\\\1", path)
    text = re.sub(r"^~(?=/|$)", "$HOME", text)
    return f"""\
export EXADASK_SCRATCH="{text}"
mkdir -p -- "$EXADASK_SCRATCH" || {{
    echo "exadask: scratch="{shlex.quote(path)}" cannot be made on $(hostname)" >&2
    exit 1
}}
"""
