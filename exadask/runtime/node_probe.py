"""The program that a probe job runs on a node: it looks around, tells what it saw, and ends.

It does what an agent would do, short of taking tasks: reads its orders in the run folder, finds
out what it may use, connects to the scheduler's machine and lets itself be called from there. What
it saw goes over that connection, or into a file of the allocation's folder if there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from distributed.comm import Comm, connect, listen
from distributed.security import Security

from exadask.errors import ExadaskError, InvalidRequest
from exadask.runtime.certificates import load_certificates
from exadask.runtime.gpus import detect_gpus
from exadask.runtime.granted import read_grant
from exadask.runtime.node_facts import (
    flux_resources,
    own_address,
    scratch_parent,
    shape_of_node,
)
from exadask.runtime.posting import POSTING, Posting
from exadask.runtime.ranks import starter_of_ranks
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.survey import Folder, NodeReport, survey_folder, survey_machine

REPORT = "report.json"
CONNECT_TIMEOUT_S = 15.0
CALL_TIMEOUT_S = 10.0
"""Shorter than `CONNECT_TIMEOUT_S`, so that the answer to "call me" comes in time."""

_CLOCK_QUESTIONS = 5
_CANNOT_LOOK = 3


def main(arguments: list[str] | None = None) -> int:
    """Look around once; return the exit code."""
    parser = argparse.ArgumentParser(prog="exadask probe", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("allocation")
    parser.add_argument("--launcher", help="program that would start agents on several nodes")
    parser.add_argument("--began", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--rank", type=int, required=True, help="of this node in the allocation")
    chosen = parser.parse_args(arguments)
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if chosen.rank != 0:  # one node tells enough
        return 0
    try:
        asyncio.run(_probe(RunFolder(chosen.folder), chosen.allocation, chosen.launcher))
    except ExadaskError as error:
        sys.stderr.write(f"exadask probe on {socket.gethostname()}: {error}\n")
        return _CANNOT_LOOK
    return 0


async def _probe(run: RunFolder, allocation: str, launcher: str | None) -> None:
    posting = Posting.read(run.allocation(allocation) / POSTING)
    seen = await _seen(run, posting, launcher)
    try:
        await _knock(posting.address)
        security = load_certificates(run.tls)
        comm = await connect(
            posting.address,
            timeout=CONNECT_TIMEOUT_S,
            **security.get_connection_args("worker"),
        )
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        _leave_in_file(run, allocation, replace(seen, connection_problem=_brief(error)))
        return
    try:
        await _tell(comm, security, allocation, seen)
    except (OSError, asyncio.TimeoutError) as error:  # it broke in the middle
        _leave_in_file(run, allocation, replace(seen, connection_problem=_brief(error)))
    finally:
        comm.abort()


async def _knock(address: str) -> None:
    """Try the way without keys first: what Dask says of a closed way is long, and comes late."""
    there = urlsplit(address)
    _, writer = await asyncio.wait_for(
        asyncio.open_connection(there.hostname, there.port), CONNECT_TIMEOUT_S
    )
    writer.close()


async def _seen(run: RunFolder, posting: Posting, launcher: str | None) -> NodeReport:
    """Look at everything that needs no connection."""
    flux_r = await flux_resources(os.environ)
    address, problem = _own_address(posting)
    scratch = scratch_parent(os.environ)
    machine = survey_machine(await shape_of_node(posting, os.environ))
    rank_launcher, rank_problem, rank_advice = _starter_of_ranks(posting)
    return NodeReport(
        machine=machine,
        n_driver_gpus=len(detect_gpus(Path("/"), os.environ).ids),
        n_granted=read_grant(os.environ, flux_r=flux_r).cores,
        folder=replace(
            survey_folder(run.allocation(posting.allocation)), path=str(run.path.parent)
        ),
        scratch=survey_folder(Path(scratch)) if scratch else machine.temporary,
        home=_home(),
        launcher=launcher,
        launcher_path=shutil.which(launcher) if launcher else None,
        own_address=address,
        interface_problem=problem,
        rank_launcher=rank_launcher,
        rank_problem=rank_problem,
        rank_advice=rank_advice,
    )


def _starter_of_ranks(posting: Posting) -> tuple[str, str, str]:
    """Find out what would start the ranks of an MPI program; or why nothing, and what to do."""
    try:
        return starter_of_ranks(posting.hints.rank_launcher), "", ""
    except InvalidRequest as error:
        return "", error.what, error.advice


def _own_address(posting: Posting) -> tuple[str, str]:
    """Choose this node's address as an agent does; say what is wrong with the interface."""
    try:
        return own_address(posting), ""
    except InvalidRequest as error:
        return own_address(replace(posting, interface=None)), error.what


def _home() -> Folder:
    path = Path(os.environ.get("HOME") or Path.home())
    return Folder(path=str(path), problem="" if path.is_dir() else "not visible on the node")


async def _tell(comm: Comm, security: Security, allocation: str, seen: NodeReport) -> None:
    """Ask for the time, be called back, and report."""
    questions = [await _ask_time(comm) for _ in range(_CLOCK_QUESTIONS)]
    round_trip_s, ahead_s = min(questions)
    report = replace(
        seen,
        round_trip_s=round_trip_s,
        clock_ahead_s=ahead_s,
        callback_problem=await _be_called(comm, security, seen.own_address),
    )
    await _ask(comm, op="report", allocation=allocation, report=report.as_json())


async def _ask_time(comm: Comm) -> tuple[float, float]:
    """Give the time of a question and its answer, and by how much our clock is ahead [s].

    The other clock was read in between: half of that time is the error.
    """
    asked_s, began_s = time.time(), time.monotonic()
    theirs_s = await _ask(comm, op="time")
    round_trip_s = time.monotonic() - began_s
    return round_trip_s, asked_s + round_trip_s / 2 - float(theirs_s)


async def _be_called(comm: Comm, security: Security, own_address: str) -> str:
    """Listen as an agent does, and let the other side connect; say why it cannot."""
    try:
        listener = await listen(
            f"tls://{own_address}:0", _answer_call, **security.get_listen_args("worker")
        )
    except OSError as error:
        return f"cannot listen there: {_brief(error)}"
    try:
        return str(await _ask(comm, op="call", address=listener.contact_address))
    finally:
        listener.stop()


async def _answer_call(comm: Comm) -> None:
    await comm.read()
    await comm.write("yes")


async def _ask(comm: Comm, **question: str) -> str:
    await comm.write(question)
    return str(await asyncio.wait_for(comm.read(), CONNECT_TIMEOUT_S))


def _leave_in_file(run: RunFolder, allocation: str, report: NodeReport) -> None:
    """Write what was seen where the other side looks if nothing comes over the network."""
    path = run.allocation(allocation) / REPORT
    draft = path.with_suffix(".draft")
    draft.write_text(report.as_json())
    draft.replace(path)


def _brief(error: BaseException) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return f"no answer in {CONNECT_TIMEOUT_S:g} s"
    words = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return words[:200]


if __name__ == "__main__":
    sys.exit(main())
