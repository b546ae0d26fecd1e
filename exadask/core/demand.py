"""How many nodes of which pool would help: the waiting tasks, placed on imagined nodes.

The policy: so many nodes that all waiting tasks could run at once, as far as there is room. The
tasks are placed by `exadask.core.placement` itself, so that what is asked for is what will be used.

The imagined nodes first stand for allocations that have been asked for already, so that nothing is
asked for twice; only then for new ones. A task looks for its node in the pools that fit it, in the
order in which they are given. If it needs no GPU, pools with GPUs come into question only where no
open pool without GPUs fits it, even one that has no room left.

**Cost.** At most `_N_SAMPLED` tasks are placed. Up to that number the answer is exact. Of more,
each kind is represented in proportion to its size, apart for tasks that fit other pools so that
none are forgotten; a sampled task, and the node that it is on, stands for ``weight`` of them. Tasks
that exceed the room of their pools anyway are left out before the sample is drawn. So a plan takes
some tens of milliseconds whatever waits, and errs by a few per cent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from exadask.core.events import Demand, Offer, WaitingTask
from exadask.core.ledger import NodeId, TaskId
from exadask.core.node import Node
from exadask.core.placement import Place, Placement
from exadask.resources import GPU_UNIT, NodeShape, Resources
from exadask.units import render_bytes

__all__ = ["Candidate", "Coming", "Wish", "candidates_of", "wishes"]

_N_SAMPLED = 512
_LEAST_SAMPLED = 32
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """An allocation that has been asked for, and whose nodes have not all joined.

    Parameters
    ----------
    allocation : str
        Its name.
    nodes : int
        Nodes that have not joined yet [nodes].
    left_s : float
        How long they will stay at least [s].
    joined : int
        Nodes of it that have joined [nodes].
    """

    allocation: str
    nodes: int
    left_s: float
    joined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pool, as far as waiting tasks are concerned.

    Parameters
    ----------
    pool : str
        Its name.
    shape : NodeShape, optional
        What its nodes have. None: not known yet.
    walltime_s : float
        How long a new allocation may last at most [s].
    coming : tuple of Coming
        What has been asked for, that which comes soonest first.
    room : int
        Nodes that may still be asked for [nodes].
    most : int
        How many nodes one allocation may have [nodes].
    is_open : bool
        Whether the pool is open.
    """

    pool: str
    shape: NodeShape | None
    walltime_s: float
    coming: tuple[Coming, ...] = ()
    room: int = 0
    most: int = 1
    is_open: bool = True

    @property
    def offer(self) -> Offer:
        """The nodes that may still join."""
        return Offer(pool=self.pool, shape=self.shape, walltime_s=self.walltime_s, nodes=self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What would help of one pool.

    Parameters
    ----------
    pool : str
        The pool.
    needed : mapping of str to int
        How many of the coming nodes the waiting tasks would use, by allocation [nodes].
    more : int
        Further nodes that should be asked for, within the room [nodes].
    least : int
        How many nodes the largest gang on those needs, so that no allocation may have fewer
        [nodes].
    beyond : int
        Further nodes that would help but for which there is no room [nodes].
    time_s : float
        The longest time that one of the tasks on those nodes states [s].
    reason : str
        Why, in words.
    """

    pool: str
    needed: Mapping[str, int] = field(default_factory=dict)
    more: int = 0
    least: int = 1
    beyond: int = 0
    time_s: float = 0.0
    reason: str = ""


def candidates_of(demand: Demand, candidates: Sequence[Candidate]) -> list[int]:
    """Return the indices of the pools from which nodes for these tasks may be asked, best first."""
    if demand.is_bound:
        return []
    fitting = [
        index
        for index, one in enumerate(candidates)
        if (one.is_open or one.coming) and one.offer.fits(demand.request, demand.pool)
    ]
    if demand.request.gpu_units:
        return fitting
    plain = [index for index in fitting if not _has_gpus(candidates[index])]
    return plain if any(candidates[index].is_open for index in plain) else fitting


def wishes(
    demand: Sequence[Demand],
    candidates: Sequence[Candidate],
    *,
    ripe: Collection[Demand] | None = None,
) -> list[Wish]:
    """Say how many nodes of each pool would help.

    Parameters
    ----------
    demand : sequence of Demand
        What waits, in the order of service.
    candidates : sequence of Candidate
        The pools, in the order in which they are to be used.
    ripe : collection of Demand, optional
        Those of `demand` for which new nodes may be asked; the others only use what is coming.
        None: all.

    Returns
    -------
    list of Wish
        One for each candidate, in the same order.

    Examples
    --------
    >>> node = NodeShape.declare(cores=8, gpus=4)
    >>> pool = Candidate(pool="gpu", shape=node, walltime_s=3600.0, room=10)
    >>> (wish,) = wishes([Demand(request=Resources.parse(gpus=1), count=12)], [pool])
    >>> wish.more, wish.reason
    (3, '12 tasks of 1 GPU wait; 3 nodes of 4 GPUs would run them at once')
    """
    samples, left_out = _draw(demand, candidates, set(demand if ripe is None else ripe))
    pools = [_ImaginedPool(candidate) for candidate in candidates]
    for use in (_ImaginedPool.use_coming, _ImaginedPool.use_new):
        for index, pool in enumerate(pools):
            tried = [one for one in samples if index in one.indices]
            left = set(map(id, use(pool, tried)))
            samples = [one for one in samples if index not in one.indices or id(one) in left]
    left_out += [(one, one.weight) for one in samples]
    for sample, n_tasks in left_out:
        at = next((index for index in sample.indices if candidates[index].is_open), None)
        if at is not None and sample.is_ripe:
            pools[at].leave_out(sample.demand, n_tasks)
    return [pool.wish() for pool in pools]


# -- the sample -------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class _Sample:
    """One of the waiting tasks, that stands for `weight` of them."""

    demand: Demand
    rank: int
    indices: tuple[int, ...]
    is_ripe: bool
    weight: float = 1.0


def _draw(
    demand: Sequence[Demand], candidates: Sequence[Candidate], ripe: set[Demand]
) -> tuple[list[_Sample], list[tuple[_Sample, float]]]:
    """Draw the sample; return also how many tasks of which kind exceed all room."""
    groups: dict[tuple[tuple[int, ...], bool], list[_Sample]] = {}
    for rank, one in enumerate(demand):
        indices = tuple(candidates_of(one, candidates))
        if indices and one.count:
            kind = _Sample(demand=one, rank=rank, indices=indices, is_ripe=one in ripe)
            groups.setdefault((indices, kind.is_ripe), []).append(kind)
    drawn, left_out = list[_Sample](), list[tuple[_Sample, float]]()
    n_tasks = sum(kind.demand.count for kinds in groups.values() for kind in kinds)
    for kinds in groups.values():
        counts = _within_room(kinds, candidates)
        for kind, count in zip(kinds, counts, strict=True):
            if count < kind.demand.count:
                left_out.append((kind, kind.demand.count - count))
        at_most = max(_LEAST_SAMPLED, _N_SAMPLED // len(groups))
        weight = 1.0 if n_tasks <= _N_SAMPLED else max(1.0, sum(counts) / at_most)
        so_far = 0
        for kind, count in zip(kinds, counts, strict=True):
            before, so_far = so_far, so_far + count
            n_drawn = math.ceil(so_far / weight) - math.ceil(before / weight)
            drawn += [_weighted(kind, weight) for _ in range(n_drawn)]
    return sorted(drawn, key=lambda one: one.rank), left_out


def _weighted(kind: _Sample, weight: float) -> _Sample:
    return _Sample(
        demand=kind.demand,
        rank=kind.rank,
        indices=kind.indices,
        is_ripe=kind.is_ripe,
        weight=weight,
    )


def _within_room(kinds: Sequence[_Sample], candidates: Sequence[Candidate]) -> list[int]:
    """Cut the counts of kinds so that they fill the room of their pools and little more."""
    pools = [candidates[index] for index in kinds[0].indices]
    if any(pool.shape is None for pool in pools):
        return [kind.demand.count for kind in kinds]
    room = 1.0 + sum(pool.room + sum(one.nodes for one in pool.coming) for pool in pools)
    counts = []
    for kind in kinds:
        share = min(_share(kind.demand, pool.shape) for pool in pools)
        count = min(kind.demand.count, math.ceil(max(0.0, room) / share))
        room -= count * share
        counts.append(count)
    return counts


# -- imagined nodes ---------------------------------------------------------------------------


class _ImaginedPool:
    """Imagined nodes of one pool, and the sampled tasks on them."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._placement = Placement()
        self._nodes: list[tuple[NodeId, str | None]] = []  # and whose they are, if they are coming
        self._on: dict[NodeId, list[_Sample]] = {}
        self._n_tasks = 0
        self._serves_all: list[_Sample] = []  # a pool whose shape is not known yet
        self._n_unknown_new = 0
        self._filling: dict[str, int] = {}  # allocations that gangs wait for, and their nodes
        self._left_out: dict[Demand, float] = {}

    @property
    def _n_coming(self) -> int:
        return sum(one.nodes for one in self._candidate.coming)

    def use_coming(self, samples: Sequence[_Sample]) -> list[_Sample]:
        """Place tasks on what is coming; return those that find no room."""
        if self._candidate.shape is None:
            return self._believe(samples, has_nodes=bool(self._candidate.coming))
        samples = self._await_rest(samples)
        n_nodes = self._n_nodes(samples)
        ends = (
            (one.allocation, one.left_s)
            for one in self._candidate.coming
            for _ in range(min(one.nodes, n_nodes))
        )
        for allocation, left_s in islice(ends, n_nodes):
            self._add_node(allocation, left_s)
        # Those that ask for more go first: others must not push them to ask again and again.
        left = self._place([one for one in samples if one.is_ripe])
        left += self._place([one for one in samples if not one.is_ripe])
        return left + self._evict(self._coming_nodes(), self._n_coming)

    def use_new(self, samples: Sequence[_Sample]) -> list[_Sample]:
        """Place tasks on new nodes; return those that find no room."""
        ripe = [one for one in samples if one.is_ripe]
        others = [one for one in samples if not one.is_ripe]
        if self._candidate.shape is None:
            has_nodes = self._candidate.room > 0 and not self._candidate.coming
            if ripe and has_nodes:
                self._n_unknown_new = max(map(self._least, ripe))
            return others + self._believe(ripe, has_nodes=has_nodes)
        for _ in range(min(self._candidate.room, self._n_nodes(ripe))):
            self._add_node(None, self._candidate.walltime_s)
        left = self._place(ripe)
        return others + left + self._evict(self._new_nodes(), self._candidate.room)

    def leave_out(self, demand: Demand, n_tasks: float) -> None:
        """Note tasks for which there is no room anywhere, and that would be sought here."""
        self._left_out[demand] = self._left_out.get(demand, 0.0) + n_tasks

    def wish(self) -> Wish:
        """Say what was used."""
        new = [one for node in self._new_nodes() for one in self._on.get(node, ())]
        if self._n_unknown_new:
            new = self._serves_all
        n_coming = min(self._n_coming, self._used(self._coming_nodes()))
        more = min(self._candidate.room, self._used(self._new_nodes())) + self._n_unknown_new
        shape = self._candidate.shape
        parts = (n_tasks * _share(demand, shape) for demand, n_tasks in self._left_out.items())
        beyond = math.ceil(sum(parts) - _EPSILON)
        counts = dict(self._left_out)
        for one in new:
            counts[one.demand] = counts.get(one.demand, 0.0) + one.weight
        return Wish(
            pool=self._candidate.pool,
            needed=self._needed(n_coming),
            more=more,
            least=max(map(self._least, new), default=1),
            beyond=beyond,
            time_s=max((one.demand.request.time_s or 0.0 for one in new), default=0.0),
            reason=_reason(counts, more + beyond, shape) if counts else "",
        )

    def _believe(self, samples: Sequence[_Sample], *, has_nodes: bool) -> list[_Sample]:
        """Suppose that a pool of unknown shape will do, until it is known."""
        if not has_nodes:
            return list(samples)
        self._serves_all += samples
        return []

    def _add_node(self, allocation: str | None, left_s: float) -> None:
        assert self._candidate.shape is not None
        node = NodeId(str(len(self._nodes)))
        self._nodes.append((node, allocation))
        self._placement.add_node(node, self._candidate.shape, ends_at=left_s, allocation=allocation)

    def _coming_nodes(self) -> list[NodeId]:
        return [node for node, allocation in self._nodes if allocation is not None]

    def _new_nodes(self) -> list[NodeId]:
        return [node for node, allocation in self._nodes if allocation is None]

    def _place(self, samples: Sequence[_Sample]) -> list[_Sample]:
        """Place what finds room; return the others."""
        if not self._placement.nodes:
            return list(samples)
        self._placement.offers = (self._candidate.offer,)
        by_task = dict[TaskId, _Sample]()
        for one in samples:
            task = TaskId(str(self._n_tasks))
            self._n_tasks += 1
            by_task[task] = one
            waiting = WaitingTask(
                task=task,
                request=one.demand.request,
                priority=(one.rank,),
                alone=one.demand.alone,
            )
            self._placement.submit(waiting, 0.0)
        for command in self._placement.dispatch(0.0):
            assert isinstance(command, Place), "nothing has been lent, and nobody is asked to yield"
            sample = by_task.pop(command.task)
            for share in (command.share, *command.mates):
                self._on.setdefault(share.node, []).append(sample)
        for task in by_task:
            self._placement.withdraw(task)
        return list(by_task.values())

    def _evict(self, nodes: Sequence[NodeId], n_real: int) -> list[_Sample]:
        """Take away what stands for more nodes than there are; return the tasks there."""
        free, evicted = float(n_real), list[_Sample]()
        for node, stands_for in self._real(nodes):
            here = self._on.get(node, [])
            n_kept = math.ceil(len(here) * min(1.0, free / stands_for) - _EPSILON)
            evicted += (gone := here[n_kept:])
            for where in nodes if any(one.demand.request.parts > 1 for one in gone) else (node,):
                self._leave(where, gone)
            free = max(0.0, free - stands_for)
        return evicted

    def _leave(self, node: NodeId, gone: Sequence[_Sample]) -> None:
        """Take tasks away from a node, and the node if that leaves it empty."""
        if node in self._on:
            named = set(map(id, gone))
            self._on[node] = [one for one in self._on[node] if id(one) not in named]
            if not self._on[node]:
                self._placement.remove_node(node)
                del self._on[node]

    def _await_rest(self, samples: Sequence[_Sample]) -> list[_Sample]:
        """Let gangs wait for an allocation of which some nodes have joined; return the others.

        What runs on those nodes is not known here. That they come one after the other is no reason
        to ask for more.
        """
        left = list[_Sample]()
        for sample in samples:
            rest = next((one for one in self._candidate.coming if self._awaits(sample, one)), None)
            if rest is None:
                left.append(sample)
            else:
                self._filling[rest.allocation] = rest.nodes
        return left

    def _awaits(self, sample: _Sample, coming: Coming) -> bool:
        request, shape = sample.demand.request, self._candidate.shape
        if request.parts == 1 or not coming.joined or shape is None:
            return False
        n_parts = [shape.holds(request)] * (coming.nodes + coming.joined)
        return (request.time_s or 0.0) <= coming.left_s and request.is_held_by(n_parts)

    def _least(self, sample: _Sample) -> int:
        """Say how many nodes a task needs at least."""
        request, shape = sample.demand.request, self._candidate.shape
        if request.is_apart or request.parts == 1:
            return request.parts
        return 1 if shape is None else -(-request.parts // max(1, shape.holds(request)))

    def _n_nodes(self, samples: Sequence[_Sample]) -> int:
        return sum(map(self._least, samples))

    def _real(self, nodes: Sequence[NodeId]) -> list[tuple[NodeId, float]]:
        """Say for how many real nodes those stand that have tasks."""
        used = [node for node in nodes if node in self._on]
        found = []
        for node in used:
            weight = max(one.weight for one in self._on[node])
            if node == used[-1] and weight > 1.0:  # it may be almost empty, and stand for many
                weight = max(1.0, weight * _filled(self._placement.nodes[node]))
            found.append((node, weight))
        return found

    def _used(self, nodes: Sequence[NodeId]) -> int:
        """Count the real nodes for which those stand that have tasks."""
        return math.ceil(sum(stands_for for _, stands_for in self._real(nodes)) - _EPSILON)

    def _needed(self, n_used: int) -> dict[str, int]:
        """Say how many nodes of each coming allocation are used, out of so many in all."""
        needed = {one.allocation: 0 for one in self._candidate.coming}
        if self._serves_all and self._candidate.shape is None:
            return {one.allocation: one.nodes for one in self._candidate.coming}
        needed |= self._filling
        for node, allocation in self._nodes:
            if allocation is not None and allocation not in self._filling and node in self._on:
                needed[allocation] += 1
        n_more = n_used - sum(needed.values())  # those for which a node stands beside itself
        for one in self._candidate.coming:
            n_here = min(max(0, n_more), one.nodes - needed[one.allocation])
            needed[one.allocation] += n_here
            n_more -= n_here
        return needed


# -- measures and words -----------------------------------------------------------------------


def _has_gpus(candidate: Candidate) -> bool:
    return candidate.shape is not None and bool(candidate.shape.gpu_ids)


def _share(demand: Demand, shape: NodeShape | None) -> float:
    """Return the part of an empty node that one of these tasks takes, all in all."""
    request = demand.request
    if shape is None or demand.alone:
        return float(request.parts)
    return request.parts / max(1, shape.holds(request))


def _filled(node: Node) -> float:
    """Return the largest part that is used of any resource of a node."""
    shape, ledger = node.shape, node.ledger
    parts = [1 - ledger.free_cores / shape.cores]
    parts.append(1 - ledger.free_memory_bytes / shape.memory_bytes)
    if shape.gpus:
        parts.append(1 - sum(ledger.free_gpu_units) / (shape.gpus * GPU_UNIT))
    return 1.0 if node.alone is not None else max(parts)


def _reason(estimated: Mapping[Demand, float], n_nodes: int, shape: NodeShape | None) -> str:
    counts = {demand: min(demand.count, round(n_tasks)) for demand, n_tasks in estimated.items()}
    first = max(counts, key=lambda demand: counts[demand] * _share(demand, shape))
    n_first = counts[first]
    n_others = sum(counts.values()) - n_first
    asked, has = _scarcest(first.request, shape)
    tasks = f"{_number(n_first, 'task')} of {asked}"
    if n_others > 0:
        tasks += f" and {_number(n_others, 'other')}"
    is_one = n_first + max(0, n_others) == 1
    nodes = _number(n_nodes, "node") + (f" of {has}" if has else "")
    would = f"would run {'it' if is_one else 'them'} at once"
    return f"{tasks} {'waits' if is_one else 'wait'}; {nodes} {would}"


def _scarcest(request: Resources, shape: NodeShape | None) -> tuple[str, str]:
    """Name the resource of which a request takes the largest part, and what a node has of it."""
    if shape is None:
        return str(request), ""
    if request.parts > 1:
        return str(replace(request, time_s=None)), _number(shape.cores, "core")
    if request.gpu_units:
        gpus = f"{request.gpus:g} {'GPU' if request.gpus <= 1 else 'GPUs'}"
        return gpus, _number(shape.gpus, "GPU")
    memory = request.memory_bytes or 0
    if memory * shape.cores > request.cores * shape.memory_bytes:
        return f"{render_bytes(memory)} of memory", f"{render_bytes(shape.memory_bytes)}"
    return _number(request.cores, "core"), _number(shape.cores, "core")


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
