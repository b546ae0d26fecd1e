"""The process of a scheduler that outlives sessions, see `exadask.runtime.standing`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from exadask.errors import ExadaskError
from exadask.journal.fleet import FleetJournal
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.scheduler_host import SchedulerHost
from exadask.runtime.standing import read_orders


def main(folder: str) -> int:
    """Stand until SIGTERM; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("distributed").setLevel(logging.ERROR)
    run = RunFolder(Path(folder))
    pools, config = read_orders(run)
    try:
        asyncio.run(_stand(SchedulerHost(pools, config, run), is_told=config.journal))
    except ExadaskError as error:
        logging.getLogger(__name__).error("%s", error)
        return 1
    return 0


async def _stand(host: SchedulerHost, *, is_told: bool) -> None:
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    journal = None
    try:
        await host.start()
        if is_told:
            journal = FleetJournal.opened(host.run, host.allocator.summary, loop)
        await told.wait()
    finally:
        if journal is not None:
            journal.stop()
        await host.close()
        if journal is not None:
            await asyncio.to_thread(journal.close)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
