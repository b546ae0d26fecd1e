"""Pools and their allocations, as lines of text."""

from __future__ import annotations

from exadask.core.fleet_report import AllocationSummary, FleetSummary, PoolSummary
from exadask.units import render_seconds

_HOUR_S = 3600.0


def summary_lines(summary: FleetSummary) -> list[str]:
    """Describe all pools, their allocations and the budget, a line each."""
    lines = [line for pool in summary.pools for line in _pool_lines(pool)]
    cost = f"spent: {summary.spent_node_s / _HOUR_S:.2f} node-hours"
    if summary.booked_node_s:
        cost += f"; booked until the walltimes: {summary.booked_node_s / _HOUR_S:.2f}"
    if summary.budget_node_s is not None:
        cost += f"; budget: {summary.budget_node_s / _HOUR_S:.2f}"
    return [*lines, cost]


def _pool_lines(pool: PoolSummary) -> list[str]:
    state = f"{pool.nodes} nodes"
    if pool.coming:
        state += f", {pool.coming} asked for"
    if pool.closed_reason is not None:
        state += f"; closed: {pool.closed_reason}"
    elif pool.retry_in_s > 0:
        state += f"; next attempt in {render_seconds(pool.retry_in_s)}: {pool.last_failure}"
    living = [_allocation_line(one) for one in pool.allocations]
    ended = [_allocation_line(one) for one in pool.ended]
    return [f"pool {pool.name}: {state}", *living, *ended]


def _allocation_line(one: AllocationSummary) -> str:
    job = f" (job {one.job_id})" if one.job_id is not None else ""
    line = f"  {one.name}{job}: {one.state} since {render_seconds(one.since_s)}"
    if one.state == "live":
        line += f", {one.joined} of {one.nodes} nodes"
    else:
        line += f", {one.nodes} nodes"
    if one.left_s is not None and one.state != "ended":
        line += f", {render_seconds(one.left_s)} left"
    if one.is_held:
        line += ", held"
    return f"{line}: {one.reason}" if one.reason else line
