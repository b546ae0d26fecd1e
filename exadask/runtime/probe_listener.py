"""Where probes on nodes report: a listener as the scheduler's, with its address and its keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distributed.comm import Comm, CommClosedError, connect, listen
from distributed.security import Security
from distributed.utils import get_ip

from exadask.errors import InvalidRequest
from exadask.pool import Pool
from exadask.runtime.checks import Door
from exadask.runtime.node_probe import CALL_TIMEOUT_S
from exadask.runtime.scheduler_host import own_host


def survey_door(pools: Sequence[Pool]) -> Door:
    """Find out where a scheduler for these pools would listen."""
    try:
        return Door(host=own_host(pools) or get_ip())
    except InvalidRequest as error:
        return Door(problem=error.what)


class ProbeListener:
    """Takes the reports of probes; one event loop owns it.

    Parameters
    ----------
    security : Security
        Keys, as `create_certificates` makes them.
    """

    def __init__(self, security: Security) -> None:
        self._security = security
        self._reports: dict[str, asyncio.Future[str]] = {}
        self._listener: Any = None

    async def start(self, pools: Sequence[Pool]) -> None:
        """Listen where the scheduler of these pools would.

        Raises
        ------
        InvalidRequest
            There is no such network interface.
        OSError
            Nobody may listen there.
        """
        self._listener = await listen(
            f"tls://{own_host(pools) or ''}:0",
            self._serve,
            **self._security.get_listen_args("scheduler"),
        )

    def stop(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.stop()

    @property
    def address(self) -> str:
        """Where nodes connect to."""
        return str(self._listener.contact_address)

    def report_of(self, allocation: str) -> asyncio.Future[str]:
        """Give the report of an allocation, as soon as it comes."""
        new: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return self._reports.setdefault(allocation, new)

    async def _serve(self, comm: Comm) -> None:
        try:
            while True:
                await comm.write(await self._answer(await comm.read()))
        except CommClosedError:  # the probe has ended
            pass
        finally:
            comm.abort()

    async def _answer(self, question: Mapping[str, str]) -> str:
        match question:
            case {"op": "time"}:
                return repr(time.time())
            case {"op": "call", "address": address}:
                return await self._call(address)
            case {"op": "report", "allocation": allocation, "report": report}:
                awaited = self.report_of(allocation)
                if not awaited.done():
                    awaited.set_result(report)
                return "thanks"
            case _:
                return "what?"

    async def _call(self, address: str) -> str:
        """Connect to a node as the scheduler does; say why that is not possible."""
        try:
            comm = await connect(
                address,
                timeout=CALL_TIMEOUT_S,
                **self._security.get_connection_args("scheduler"),
            )
            await comm.write("are you there?")
            await asyncio.wait_for(comm.read(), CALL_TIMEOUT_S)
            await comm.close()
        except (OSError, asyncio.TimeoutError) as error:
            return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        return ""
