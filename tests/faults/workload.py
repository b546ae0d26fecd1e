"""A campaign whose results can be checked, driven by a process that may be killed at any time.

Run as ``python workload.py FOLDER N_TASKS SEED MACHINE``: it goes on with the run in the folder, if
there is one, and prints a line of JSON when all is done. With ``--rounds SECONDS`` it computes for
so long instead, the same in each round, and prints what it has grown to.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import exadask as xd
from exadask.active import active_executor
from exadask.runtime.dask_parts import NETWORK_SETTINGS

HERE = Path(sys.argv[1]) if __name__ == "__main__" else Path()
DRIVER = "FAULTS_DRIVER"
_ROUND = 200


def mark(name: str) -> None:
    """Leave a mark: what was done, when by a clock that all processes share, and for whom."""
    fd = os.open(HERE / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{name} {time.monotonic():.3f} {os.environ[DRIVER]}\n".encode())
    os.close(fd)


@xd.task(retries=100)
def square(place: int) -> int:
    """Do a short piece of work."""
    time.sleep(0.002 + 0.004 * (place % 3))
    mark(f"square-{place}")
    return place * place


@xd.task(retries=100, bundle=False)
def block(place: int) -> bytes:
    """Make a result that is too large to travel with the news."""
    mark(f"block-{place}")
    return bytes([place % 251]) * 200_000


@xd.task(retries=100, memo=True)
def cube(place: int) -> int:
    """Do what need not be done twice, ever."""
    time.sleep(0.005)
    mark(f"cube-{place}")
    return place**3


@xd.task(retries=100, checkpoint=True)
def climb(place: int) -> int:
    """Go on where an earlier attempt ended; what cannot be written now is written later."""
    height = 0
    with contextlib.suppress(OSError):
        height = int((xd.checkpoint_dir() / "height").read_text())
    while height < 20:
        time.sleep(0.005)
        height += 1
        with contextlib.suppress(OSError):
            draft = xd.checkpoint_dir() / "draft"
            draft.write_text(str(height))
            draft.replace(draft.with_name("height"))
    mark(f"climb-{place}")
    return place + height


@xd.task(retries=100)
def total(*values: Any) -> int:
    """Add up what others have made."""
    return sum(len(one) if isinstance(one, bytes) else one for one in values)


def machine(name: str) -> dict[str, Any]:
    """Say where it runs: in this process, or on agents of their own."""
    if name == "embedded":
        shape = xd.NodeShape.declare(cores=2)
        return {"nodes": [shape, shape]}
    if name == "slurm":
        facts: dict[str, Any] = {"queue": "cpu", "nodes": [1, 2], "walltime": "5m"}
        return {"pools": [xd.Pool.declare("cpu", batch="slurm", interface="lo", **facts)]}
    if name != "pool":
        return {"attach": name}
    # Five minutes of silence are much in a test: an agent that says nothing is given up sooner.
    NETWORK_SETTINGS["distributed.scheduler.worker-ttl"] = "8s"
    facts = {"interface": "lo", "exclusive": False, "cores": 2, "walltime": "5m"}
    facts |= {"batch": "local", "scratch": str(HERE / "scratch")}
    library, clock = HERE / "skew.so", HERE / "clock"
    wrong = {"LD_PRELOAD": str(library), "SKEW_FILE": str(clock)} if library.exists() else {}
    return {
        "pools": [xd.Pool.declare("true", **facts), xd.Pool.declare("wrong", env=wrong, **facts)]
    }


def campaign(options: dict[str, Any], n_tasks: int, seed: int) -> dict[str, Any]:
    """Drive the campaign to its end."""
    runs = HERE / "runs"
    earlier = sorted(runs.glob("2*"))[-1:]
    options |= {"resume": earlier[0]} if earlier else {"keep_results": True}
    order = list(range(n_tasks))
    random.Random(seed).shuffle(order)
    with xd.Executor(run_folder=runs, kill_grace_s=0.2, **options) as executor:
        cubed = active_executor("map").map(cube, order[: n_tasks // 2])
        squares = {place: executor.submit(square, place) for place in order}
        blocks = {place: executor.submit(block, place) for place in order[: n_tasks // 40]}
        climbs = {place: executor.submit(climb, place) for place in order[: n_tasks // 100]}
        cubes = dict(zip(order, cubed, strict=False))
        sums = [
            executor.submit(total, squares[place], blocks.get(place, 0)) for place in order[::10]
        ]
        wrong = [place for place, one in squares.items() if one.result() != place * place]
        wrong += [
            place for place, one in blocks.items() if one.result() != bytes([place % 251]) * 200_000
        ]
        wrong += [place for place, one in climbs.items() if one.result() != place + 20]
        wrong += [place for place, value in cubes.items() if value != place**3]
        expected = [place**2 + (200_000 if place in blocks else 0) for place in order[::10]]
        wrong += [place for place, one in zip(expected, sums, strict=True) if one.result() != place]
        n_results = len(squares) + len(blocks) + len(climbs) + len(cubes) + len(sums)
    return {"checked": n_results, "wrong": wrong}


def rounds(options: dict[str, Any], for_s: float) -> dict[str, Any]:
    """Do the same again and again in one process, and look at its size after each round."""
    sizes, wrong, n_results = list[dict[str, int]](), list[int](), 0
    end_s = time.monotonic() + for_s
    with xd.Executor(run_folder=HERE / "runs", kill_grace_s=0.2, **options) as executor:
        assert executor.run_folder is not None
        while time.monotonic() < end_s:
            first = len(sizes) * _ROUND
            places = range(first, first + _ROUND)
            squares = [executor.submit(square, place) for place in places]
            blocks = [executor.submit(block, place) for place in places[::20]]
            climbs = [executor.submit(climb, place) for place in places[::50]]
            sums = [executor.submit(total, one, 1) for one in squares[::10]]
            values = [one.result() for one in [*squares, *climbs, *sums]]
            expected = [place**2 for place in places]
            expected += [place + 20 for place in places[::50]]
            expected += [place**2 + 1 for place in places[::10]]
            wrong += [one for one, value in zip(expected, values, strict=True) if one != value]
            wrong += [
                place
                for place, one in zip(places[::20], blocks, strict=True)
                if one.result() != bytes([place % 251]) * 200_000
            ]
            n_results += len(values) + len(blocks)
            del squares, blocks, climbs, sums
            sizes.append(size(executor.run_folder))
    return {"checked": n_results, "wrong": wrong, "sizes": sizes}


def size(run_folder: Path) -> dict[str, int]:
    """Look at what this process has taken, after a round whose futures are gone."""
    gc.collect()
    me = psutil.Process()
    temporary = Path(tempfile.gettempdir()).glob(f"exadask-{os.getpid()}-*")
    folders = [run_folder, HERE / "scratch", *temporary]
    # An allocation keeps its log and its scripts.
    found = [
        name
        for folder in folders
        for parent, _, names in os.walk(folder)  # files may go meanwhile
        for name in names
        if not Path(parent).is_relative_to(run_folder / "allocations")
    ]
    return {
        "memory [MiB]": me.memory_info().rss // 2**20,
        "descriptors": me.num_fds(),
        "threads": me.num_threads(),
        "processes": len(me.children(recursive=True)),
        "files": len(found),
    }


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("n_tasks", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("machine")
    parser.add_argument("--rounds", type=float, metavar="SECONDS")
    given = parser.parse_args()
    os.environ[DRIVER] = str(os.getpid())  # agents and children get it
    options = machine(given.machine)
    if given.rounds is None:
        told = campaign(options, given.n_tasks, given.seed)
    else:
        told = rounds(options, given.rounds)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
