"""A process that goes on with what a session has left, until another session takes it.

Started by a standing scheduler, see `exadask.runtime.deputies`, as
``python -m exadask.deputy RUN NAME``.
"""

from __future__ import annotations

import logging
import sys

from exadask.executor import Executor

logger = logging.getLogger(__name__)


def main(run: str, name: str) -> int:
    """Take what was left, and hold it; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("distributed").setLevel(logging.ERROR)
    executor = Executor(attach=run)
    handover = executor.handover("hold")
    handover.take(name, is_deputy=True)
    logger.info("took %s", name)
    error = handover.wait_until_given()
    logger.info("ends: %s", error or "another session has taken it")
    executor.let_go()
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
