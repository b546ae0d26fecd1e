"""Which nodes a gang gets: all of them at once, and of one allocation.

A gang asks for several parts (`exadask.resources.Resources.parts`). It is placed when all of them
find room at the same time, and never before: no gang holds some nodes and waits for others, so that
two can never wait for each other. What keeps streams of small tasks from starving it is the
reservation that `exadask.core.placement` makes for every class that is overtaken too long: here it
is of all the nodes at once. A gang may take such reservations from classes that have waited less;
those that have waited longer go first, and each of them only once. So it starts at the latest after
``reserve_after_s``, the turns of those that were urgent before it, and the time in which its nodes
drain.

**Choice.** Parts that must be apart go to the nodes where fewest cores stay free; others to as few
nodes as have room now. The first part is on the node that has most of the inputs.

**Cost.** Counts of bits say whether an allocation comes into question at all; only then its nodes
are asked one by one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from exadask.core.books import Books
from exadask.core.events import Offer, WaitingTask
from exadask.core.node import Node, Seat
from exadask.core.nodes import NodeIndex
from exadask.core.queue import TaskClass

__all__ = ["choose_seats", "gather_parts", "seats_to_reserve"]

_N_LOOKED_AT = 64
"""How many nodes more than it needs are looked at for a reservation, at least."""


def choose_seats(
    nodes: NodeIndex, cls: TaskClass, task: WaitingTask, now: float
) -> list[Seat] | None:
    """Choose nodes of one allocation where a gang can start now; None if it cannot.

    Returns
    -------
    list of Seat or None
        What it gets of each node, that of the first part first.
    """
    request = cls.request
    mask = nodes.runnable(cls) & nodes.with_room(cls, now) & nodes.with_cores(request.cores)
    if not mask:
        return None
    for allocation in nodes.allocations:
        here = mask & allocation
        if not _may_hold(nodes, cls, here):
            continue
        seats = _apart(nodes, cls, here, now) if cls.asked.is_apart else _few(nodes, cls, here, now)
        if seats is not None:
            seats.sort(key=lambda seat: -task.locality.get(seat.node.name, 0))
            return seats
    return None


def seats_to_reserve(
    nodes: NodeIndex, cls: TaskClass, now: float, urgent: Collection[TaskClass]
) -> list[Seat] | None:
    """Choose the nodes of one allocation where a gang can start soonest; None if there are none.

    Parameters
    ----------
    nodes : NodeIndex
        The nodes.
    cls : TaskClass
        Tasks that are gangs.
    now : float
        The time [s].
    urgent : collection of TaskClass
        The classes that have waited long, the longest first: what is reserved for those before
        this one is not taken.
    """
    before = set[TaskClass]()
    for one in urgent:
        if one is cls:
            break
        before.add(one)
    kept = 0
    for one in before:
        kept |= one.reserved_mask
    mask = nodes.runnable(cls) & nodes.takeable & ~kept & nodes.room.lasting(cls.request, now)
    best, best_start = None, math.inf
    for allocation in nodes.allocations:
        found = _soonest(nodes, cls, mask & allocation, now)
        if found is not None and (best is None or found[1] < best_start):
            best, best_start = found
    return best


def gather_parts(books: Books, offers: Sequence[Offer]) -> None:
    """Let the parts of gangs share a node, where there is one that has room for all."""
    is_known = bool(books.nodes.by_id or offers)
    for cls in books.queue.spread:
        whole = cls.asked.times(cls.asked.parts)
        on_one_node = not is_known or bool(
            books.nodes.fitting(whole, cls.pool)
            or any(offer.fits(whole, cls.pool) for offer in offers)
        )
        if cls.gather(on_one_node=on_one_node):
            books.drop_reservation(cls)
            books.queue.unsettle(cls)


def _may_hold(nodes: NodeIndex, cls: TaskClass, mask: int) -> bool:
    """Whether nodes have room for a gang as far as their numbers of free cores tell."""
    if cls.asked.is_apart:
        return mask.bit_count() >= cls.parts
    cores = cls.request.cores
    return cls.asked.is_held_by(
        (bucket & mask).bit_count() * (free // cores)
        for free, bucket in enumerate(nodes.buckets)
        if bucket & mask
    )


def _apart(nodes: NodeIndex, cls: TaskClass, mask: int, now: float) -> list[Seat] | None:
    """Take the nodes with fewest free cores, those without GPUs first for who needs none."""
    seats = list[Seat]()
    for node in _by_free_cores(nodes, cls, mask):
        if nodes.can_take(node, cls, now):
            seats.append(Seat(node, cls.request))
            if len(seats) == cls.parts:
                return seats
    return None


def _few(nodes: NodeIndex, cls: TaskClass, mask: int, now: float) -> list[Seat] | None:
    """Take the nodes with most room, and so as few as possible."""
    room = [
        (node.room_for(cls.request), node)
        for node in _by_free_cores(nodes, cls, mask)
        if nodes.can_take(node, cls, now)
    ]
    return _filled(cls, sorted(room, key=lambda one: -one[0]))


def _filled(cls: TaskClass, room: list[tuple[int, Node]]) -> list[Seat] | None:
    seats, left = list[Seat](), cls.parts
    for n_parts, node in room:
        parts = min(left, 1 if cls.asked.is_apart else n_parts)
        seats.append(Seat(node, cls.request.times(parts)))
        left -= parts
        if not left:
            return seats
    return None


def _by_free_cores(nodes: NodeIndex, cls: TaskClass, mask: int) -> Iterator[Node]:
    for part in (mask,) if cls.request.gpu_units else (mask & ~nodes.gpu, mask & nodes.gpu):
        for bucket in nodes.buckets:
            yield from nodes.members(bucket & part)


def _soonest(
    nodes: NodeIndex, cls: TaskClass, mask: int, now: float
) -> tuple[list[Seat], float] | None:
    """Choose those where it can start soonest, of the nodes with most free cores."""
    if cls.asked.is_apart and mask.bit_count() < cls.parts:
        return None
    able = (
        node
        for bucket in reversed(nodes.buckets)
        for node in nodes.members(bucket & mask)
        if node.could_ever_start(cls.request, now)
    )
    found = list[tuple[float, int, Node]]()
    for node in islice(able, cls.parts + _N_LOOKED_AT):
        parts = 1 if cls.asked.is_apart else node.shape.holds(cls.request)
        seat = cls.request.times(min(parts, cls.parts))
        found.append((node.earliest_start(seat, now, alone=cls.alone), parts, node))
    found.sort(key=lambda one: one[0])
    seats = _filled(cls, [(parts, node) for _, parts, node in found])
    if seats is None:
        return None
    start = found[len(seats) - 1][0]
    is_in_time = all(seat.node.has_time(cls.request, start) for seat in seats)
    return (seats, start) if start == math.inf or is_in_time else None
