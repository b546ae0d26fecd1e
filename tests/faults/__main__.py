"""A soak of any length: ``python -m tests.faults [MINUTES [SEED [TASKS]]]``.

The last quarter of the time goes to rounds that show whether anything grows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.disk import small_disk
from tests.faults.injector import Injector

_SHARE_OF_ROUNDS = 0.25

parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
parser.add_argument("minutes", type=float, nargs="?", default=30)
parser.add_argument("seed", type=int, nargs="?", default=0)
parser.add_argument("tasks", type=int, nargs="?", default=50_000)
parser.add_argument("--on", default="embedded", help="embedded, pool, slurm, or a standing run")
parser.add_argument("--kills", type=int, help="only kill the driver, so often; no other faults")
given = parser.parse_args()


def soak(folder: Path) -> bool:
    """Do what the command line says; returns whether all went well."""
    injector = Injector(folder, given.seed, given.tasks, given.on)
    if given.kills is not None:
        outcome = injector.run_and_kill(given.kills)
    else:
        outcome = injector.run(for_s=60 * given.minutes * (1 - _SHARE_OF_ROUNDS))
    print(f"{given.on}, seed {given.seed}: {outcome}", flush=True)  # noqa: T201  # it is for that
    if outcome.wrong or outcome.lost or given.kills is not None:
        return not outcome.wrong and not outcome.lost
    steady = folder / "steady"
    steady.mkdir()
    injector = Injector(steady, given.seed, given.tasks, given.on)
    outcome, growth = injector.run_rounds(for_s=60 * given.minutes * _SHARE_OF_ROUNDS)
    print(f"{given.on}, one driver: {outcome}\n{growth}")  # noqa: T201
    return not outcome.wrong and not growth.grown


with (
    tempfile.TemporaryDirectory(prefix="exadask-soak-") as name,
    small_disk(Path(name), mib=64 + given.tasks // 100),
):
    is_well = soak(Path(name))
sys.exit(0 if is_well else 1)
