"""A soak of any length: ``python -m tests.faults [MINUTES [SEED [TASKS]]]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.faults.injector import Injector

minutes, seed, n_tasks = (*map(int, sys.argv[1:]), *(30, 0, 50_000)[len(sys.argv) - 1 :])
with tempfile.TemporaryDirectory(prefix="exadask-soak-") as folder:
    outcome = Injector(Path(folder), seed, n_tasks).run(for_s=60.0 * minutes)
print(outcome)  # noqa: T201  # that is what it is for
sys.exit(1 if outcome.wrong or outcome.lost else 0)
