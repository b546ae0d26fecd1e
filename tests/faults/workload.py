"""A campaign whose results can be checked, driven by a process that may be killed at any time.

Run as ``python workload.py FOLDER N_TASKS SEED``: it goes on with the run in the folder, if there
is one, and prints a line of JSON when all is done.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import exadask as xd
from exadask.active import active_executor

HERE = Path(sys.argv[1]) if __name__ == "__main__" else Path()


def mark(name: str) -> None:
    """Leave a mark of this execution."""
    with (HERE / "marks" / name).open("a") as file:
        file.write("x")


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
    """Go on where an earlier attempt ended."""
    file = xd.checkpoint_dir() / "height"
    height = int(file.read_text() or 0) if file.exists() else 0
    while height < 20:
        time.sleep(0.005)
        height += 1
        draft = file.with_suffix(".draft")
        draft.write_text(str(height))
        draft.replace(file)
    mark(f"climb-{place}")
    return place + height


@xd.task(retries=100)
def total(*values: Any) -> int:
    """Add up what others have made."""
    return sum(len(one) if isinstance(one, bytes) else one for one in values)


def main(folder: Path, n_tasks: int, seed: int) -> None:
    """Drive the campaign to its end."""
    runs = folder / "runs"
    earlier = sorted(runs.glob("2*"))[-1:]
    options: dict[str, Any] = {"resume": earlier[0]} if earlier else {"keep_results": True}
    shape = xd.NodeShape.declare(cores=2)
    order = list(range(n_tasks))
    random.Random(seed).shuffle(order)
    with xd.Executor(
        nodes=[shape, shape], run_folder=runs, kill_grace_s=0.2, **options
    ) as executor:
        squares = {place: executor.submit(square, place) for place in order}
        blocks = {place: executor.submit(block, place) for place in order[: n_tasks // 40]}
        climbs = {place: executor.submit(climb, place) for place in order[: n_tasks // 100]}
        cubes = dict(
            zip(order, active_executor("map").map(cube, order[: n_tasks // 2]), strict=False)
        )
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
    sys.stdout.write(json.dumps({"checked": n_results, "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main(HERE, int(sys.argv[2]), int(sys.argv[3]))
