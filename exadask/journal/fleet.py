"""The history of allocations, from looks at how they are."""

from __future__ import annotations

from collections.abc import Iterator

from exadask.core.fleet_report import AllocationSummary, FleetSummary
from exadask.journal.rows import AllocationRow


class FleetHistory:
    """Makes rows of what has changed since the last look."""

    def __init__(self) -> None:
        self._known: dict[str, AllocationRow] = {}

    def rows(self, summary: FleetSummary, now: float) -> Iterator[AllocationRow]:
        """Give the rows of the allocations that are new, or not as they were.

        Parameters
        ----------
        summary : FleetSummary
            How they are.
        now : float
            The time [s since the epoch].
        """
        for pool in summary.pools:
            for one in (*pool.allocations, *pool.ended):
                row = self._row(one, now)
                if row != self._known.get(one.name):
                    self._known[one.name] = row
                    yield row

    def _row(self, one: AllocationSummary, now: float) -> AllocationRow:
        known = self._known.get(one.name)
        since = now - one.since_s
        asked = known.asked if known is not None else since
        began = known.began if known is not None else None
        ended = known.ended if known is not None else None
        if one.state in ("starting", "live", "ending") and began is None and one.joined:
            began = since
        if one.state == "ended" and ended is None:
            ended = since
        cost = None if began is None or ended is None else one.nodes * (ended - began)
        return AllocationRow(
            one.name,
            one.pool,
            one.job_id,
            one.state,
            one.nodes,
            asked,
            began,
            ended,
            cost,
            one.reason,
        )
