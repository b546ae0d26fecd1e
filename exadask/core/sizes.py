"""How large an allocation may be, and how long it may last then, by the rules of its pool."""

from __future__ import annotations

import math
from typing import NamedTuple

from exadask.pool import Pool

__all__ = ["Size", "choose_size", "largest_size", "longest_walltime_s"]


class Size(NamedTuple):
    """An allocation that the pool's rules allow."""

    nodes: int
    walltime_s: float

    @property
    def cost(self) -> float:
        """What it costs if it lasts to its end [node-seconds]."""
        return self.nodes * self.walltime_s


def choose_size(
    pool: Pool, wanted: int, *, time_s: float = 0.0, affordable: float = math.inf
) -> Size | None:
    """Choose the smallest allocation that has the wanted nodes, or else the largest.

    Parameters
    ----------
    pool : Pool
        Its rules: least and most nodes, walltime, and the site's bins.
    wanted : int
        Nodes [nodes].
    time_s : float
        How long it must last at least [s].
    affordable : float
        What it may cost at most [node-seconds].

    Returns
    -------
    Size or None
        Nodes and walltime; None if no allocation is allowed that lasts so long and costs no more.

    Examples
    --------
    >>> site = [{"nodes": [1, 91], "walltime": "2h"}, {"nodes": [92, 183], "walltime": "6h"}]
    >>> pool = Pool.declare("batch", nodes=[1, 183], walltime="6h", bins=site)
    >>> choose_size(pool, 5)
    Size(nodes=5, walltime_s=7200.0)
    >>> choose_size(pool, 5, time_s=3 * 3600.0)
    Size(nodes=92, walltime_s=21600.0)
    """
    found = []
    for least, most in _ranges(pool):
        size = _within(pool, wanted, least, most, affordable)
        if size is not None and size.walltime_s >= time_s:
            found.append(size)
    enough = [size for size in found if size.nodes >= wanted]
    if enough:
        return min(enough, key=lambda size: (size.nodes, -size.walltime_s))
    return max(found, key=lambda size: (size.nodes, size.walltime_s), default=None)


def largest_size(pool: Pool, *, affordable: float = math.inf) -> Size | None:
    """Return the allocation with most nodes that the rules allow; None if there is none."""
    return choose_size(pool, pool.max_nodes, affordable=affordable)


def longest_walltime_s(pool: Pool, *, affordable: float = math.inf) -> float | None:
    """Return how long an allocation may last at most [s]; None if none is allowed."""
    sizes = (
        _within(pool, pool.min_nodes, least, most, affordable) for least, most in _ranges(pool)
    )
    return max((size.walltime_s for size in sizes if size is not None), default=None)


def _ranges(pool: Pool) -> list[tuple[int, int]]:
    """Return the allowed numbers of nodes, as ranges with both ends included."""
    if not pool.limits.bins:
        return [(pool.min_nodes, pool.max_nodes)]
    ranges = (
        (max(one.least, pool.min_nodes), min(one.most, pool.max_nodes)) for one in pool.limits.bins
    )
    return [(least, most) for least, most in ranges if least <= most]


def _within(pool: Pool, wanted: int, least: int, most: int, affordable: float) -> Size | None:
    """Choose the size next to the wanted one in a range, if it can be paid for."""
    nodes = min(max(wanted, least), most)
    walltime_s = _walltime_s(pool, nodes)
    if nodes * walltime_s > affordable:
        nodes = int(affordable // walltime_s)
        walltime_s = _walltime_s(pool, nodes)
    if nodes < least or nodes * walltime_s > affordable:
        return None
    return Size(nodes, walltime_s)


def _walltime_s(pool: Pool, nodes: int) -> float:
    longest_s = pool.limits.longest_s(nodes)
    return pool.walltime_s if not longest_s else min(pool.walltime_s, longest_s)
