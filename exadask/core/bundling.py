"""Which waiting calls travel together: one queue for each lane, and how much of it is sent when.

A *lane* is a queue of calls that any slot treats alike: they ask for the same, at the same
priority, in the same environment. From its front the lane makes *bundles*, each of which becomes
one task of the cluster.

**How long a bundle lasts.** A function whose calls have never been measured travels one call at a
time, so that the first is not held back and a long one delays nobody. Otherwise a bundle is to last
a part of the lane's backlog that leaves two bundles for each slot (guided self-scheduling;
Polychronopoulos and Kuck, IEEE Trans. Comput. C-36 (1987) 1425), at most ``bound_s``, and at least
``least_s``, below which the way to the slot costs more than it gains.

**Many slots.** Bundles are sent one after the other, and each takes ``send_s``. Were there always a
free slot, a backlog that takes B would be done first if all bundles ended together, each shorter
than the one before by ``send_s``; so the next should last sqrt(2 B send_s). A bundle lasts at
least so long, or at least 2 ``send_s`` for each slot if that is less: then the sender is idle half
of the time. For a large backlog these 2 ``send_s`` for each slot may exceed ``bound_s``, which then
gives way. While it is not known how many slots there are, bundles last as if there were always a
free one.

**How many bundles wait in the cluster.** As many as keep the slots busy: two, or as many as run
already while there may be more slots, so that a new machine is filled at a doubling rate. What is
not sent yet can still be dropped, or join others, for nothing.

**Where durations are not what was expected.** A bundle that has lasted twice as long as it should
begins no other call (`Lane.limit_s`). So where the estimate is far too low, the last calls are not
left to few slots while the others are idle.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

__all__ = ["Estimate", "Estimates", "Lane", "Pace", "Queued"]

_FEW = 4
_MEMORY = 8
_FAR = 4
_HEAVY = 0.1
_FADING = 0.8
_LEAST_LIMIT_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The bounds of all bundles.

    Parameters
    ----------
    bound_s : float
        How long a bundle may last, by what is known of its calls [s]; longer on many slots.
    least_s : float
        How long it should last where there are enough calls [s].
    send_s : float
        How long it takes to send one, before the next can be sent [s].
    most_calls : int
        How many calls it may have [calls].
    most_bytes : int
        How large its arguments may be together [bytes].
    ahead : int
        How many bundles wait in the cluster at least [bundles].
    ahead_unknown : int
        The same for calls that have never been measured [calls].
    """

    bound_s: float = 0.5
    least_s: float = 0.01
    send_s: float = 0.0015
    most_calls: int = 8192
    most_bytes: int = 2**22
    ahead: int = 2
    ahead_unknown: int = 4


class Queued(Protocol):
    """A call, as far as its lane looks at it."""

    @property
    def function(self) -> Hashable:
        """What it has in common with calls that last as long."""

    @property
    def is_single(self) -> bool:
        """Whether it must travel alone."""

    @property
    def nbytes(self) -> int:
        """Size of its arguments [bytes]; 0 if they are tiny."""

    @property
    def bundle(self) -> int | None:
        """How many calls its user wants in a bundle [calls]; None leaves it to the lane."""

    @property
    def most_together(self) -> int | None:
        """How many calls may be in its bundle at most [calls]; None: as many as suit."""

    @property
    def is_dropped(self) -> bool:
        """Whether nobody wants it any more."""


C = TypeVar("C", bound=Queued)
_function_of = attrgetter("function")


class Estimate:
    """What is known about the calls of one function.

    Attributes
    ----------
    mean_s : float
        How long one lasts; nan before the first has ended [s].
    """

    __slots__ = ("_heaviness", "_n_measured", "mean_s")

    def __init__(self) -> None:
        self.mean_s = math.nan
        self._n_measured = 0
        self._heaviness = 0.0

    @property
    def is_known(self) -> bool:
        """Whether any has been measured."""
        return self._n_measured > 0

    @property
    def is_heavy(self) -> bool:
        """Whether many of their results are so large that they stay where they were made."""
        return self._heaviness > _HEAVY

    def measured(self, wall_s: float, *, count: int = 1) -> None:
        """Note how long some calls took together [s].

        The first calls of a function import modules and fill caches: of a few, the shortest counts.
        On many slots there are many first ones: what is far shorter than the mean counts more.
        """
        mean_s = wall_s / count
        if not self._n_measured:
            self.mean_s = mean_s
        elif self._n_measured < _FEW:
            self.mean_s = min(self.mean_s, mean_s)
        else:
            memory = 1 if mean_s < self.mean_s / _FAR else _MEMORY
            self.mean_s += (mean_s - self.mean_s) * min(0.9, count / (count + memory))
        self._n_measured += count

    def weighed(self, *, is_heavy: bool) -> None:
        """Note whether a result was so large that it stayed in the cluster."""
        self._heaviness = 1.0 if is_heavy else self._heaviness * _FADING


class Estimates:
    """The estimates of all functions."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Estimate] = {}

    def of(self, function: Hashable) -> Estimate:
        """Look a function up."""
        found = self._known.get(function)
        if found is None:
            found = self._known[function] = Estimate()
        return found

    def learn(self, others: Estimates) -> None:
        """Take what others know of functions that are new here."""
        self._known = others._known | self._known


class Lane(Generic[C]):
    """The calls that wait for one kind of share.

    Parameters
    ----------
    pace : Pace
        The bounds of bundles.
    estimates : Estimates
        What is known about durations.

    Attributes
    ----------
    n_slots : int
        How many bundles the cluster could run at once, as far as is known; 0 if it is not.
    n_waiting, n_running : int
        Bundles that were sent, and wait in the cluster or run there.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> lane = Lane(Pace(), estimates := Estimates())
    >>> for number in range(100):
    ...     lane.add(SimpleNamespace(function="f", number=number, is_single=False, nbytes=0,
    ...                              bundle=None, most_together=None, is_dropped=False))
    >>> len(lane.next_bundle())  # nothing is known yet
    1
    >>> estimates.of("f").measured(0.01)
    >>> lane.n_slots = 2
    >>> [len(lane.next_bundle()) for _ in range(1)]
    [24]
    """

    def __init__(self, pace: Pace, estimates: Estimates) -> None:
        self._pace, self._estimates = pace, estimates
        self._queue: deque[C] = deque()
        self.n_slots = self.n_waiting = self.n_running = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, call: C) -> None:
        """Queue a call."""
        self._queue.append(call)

    def add_all(self, calls: Iterable[C]) -> None:
        """Queue several calls."""
        self._queue.extend(calls)

    def give_back(self, calls: Iterable[C]) -> None:
        """Queue calls again that were sent and did not run, before all others."""
        self._queue.extendleft(reversed(list(calls)))

    def next_bundle(self) -> list[C] | None:
        """Take the calls of the next bundle; None if enough bundles wait.

        The bundle counts as waiting from now on: say when it is `placed` and when it `ended`.
        """
        self._skip_dropped()
        if not self._queue or self.n_waiting >= self._n_ahead():
            return None
        self.n_waiting += 1
        return self._take()

    def joined(self, *, is_placed: bool) -> None:
        """Note a bundle that was sent before, elsewhere."""
        if is_placed:
            self.n_running += 1
        else:
            self.n_waiting += 1

    def placed(self) -> None:
        """Note that a bundle that waited runs."""
        self.n_waiting -= 1
        self.n_running += 1

    def ended(self, *, was_placed: bool) -> None:
        """Note that a bundle is gone."""
        if was_placed:
            self.n_running -= 1
        else:
            self.n_waiting -= 1

    def position(self, call: C) -> int:
        """Count the calls that go before one that waits here; O(calls)."""
        return next(n for n, one in enumerate(self._queue) if one is call)

    def n_bundles(self) -> int:
        """Say how many bundles the queue would make, were all of it sent now [bundles]."""
        self._skip_dropped()
        if not self._queue:
            return 0
        head = self._queue[0]
        estimate = self._estimates.of(head.function)
        if self._travels_alone(head, estimate):
            return len(self._queue)
        if head.bundle is None:
            calls = max(1.0, self._bound_s() / max(estimate.mean_s, 1e-9))
        else:
            calls = head.bundle
        most = min(head.most_together or math.inf, self._pace.most_calls)
        return math.ceil(len(self._queue) / min(calls, most))

    def limit_s(self, bundle: Sequence[C]) -> float:
        """Say after how long a bundle should begin no other call [s]."""
        if bundle[0].bundle is not None:
            return math.inf
        counts = Counter(map(_function_of, bundle))
        expected_s = sum(n * self._estimates.of(one).mean_s for one, n in counts.items())
        return max(_LEAST_LIMIT_S, 2 * expected_s)

    def _skip_dropped(self) -> None:
        while self._queue and self._queue[0].is_dropped:
            self._queue.popleft()

    def _n_ahead(self) -> int:
        """Say how many bundles should wait in the cluster."""
        head = self._queue[0]
        is_known = self._estimates.of(head.function).is_known
        least = self._pace.ahead if is_known else self._pace.ahead_unknown
        if self.n_running > self.n_slots:  # there are more slots than is known
            return max(least, self.n_running)
        free = self.n_slots - self.n_running + self.n_slots // 8
        return max(least, min(self.n_running, free))

    def _travels_alone(self, call: C, estimate: Estimate) -> bool:
        if call.is_single:
            return True
        return call.bundle is None and (not estimate.is_known or estimate.is_heavy)

    def _take(self) -> list[C]:
        queue, estimates, pace = self._queue, self._estimates, self._pace
        first = queue.popleft()
        estimate = estimates.of(first.function)
        bundle = [first]
        if self._travels_alone(first, estimate):
            return bundle
        function, size, together = first.function, first.bundle, first.most_together
        is_loner = False
        mean_s, left_bytes = estimate.mean_s, pace.most_bytes - first.nbytes
        left_s = (self._budget_s(estimate) if size is None else math.inf) - mean_s
        most = min(size or pace.most_calls, together or pace.most_calls, pace.most_calls)
        while queue and len(bundle) < most:  # for every call: as little as can be
            call = queue[0]
            if call.is_dropped:
                queue.popleft()
                continue
            if call.function != function:
                function, estimate = call.function, estimates.of(call.function)
                mean_s, is_loner = estimate.mean_s, self._travels_alone(call, estimate)
            left_s -= mean_s
            left_bytes -= call.nbytes
            is_alike = call.bundle == size and call.most_together == together
            if is_loner or call.is_single or not is_alike or left_s < 0 or left_bytes < 0:
                break
            bundle.append(queue.popleft())
        return bundle

    def _budget_s(self, estimate: Estimate) -> float:
        """Say how long the next bundle is to last [s]."""
        pace, slots = self._pace, max(self.n_slots, self.n_running)
        backlog_s = (len(self._queue) + 1) * estimate.mean_s
        budget_s = math.sqrt(2 * pace.send_s * backlog_s)
        if self.n_slots:
            budget_s = min(budget_s, 2 * pace.send_s * slots)
            budget_s = max(budget_s, backlog_s / (2 * slots))
        return min(max(pace.least_s, budget_s), self._bound_s())

    def _bound_s(self) -> float:
        """Say how long a bundle may last [s]."""
        return max(self._pace.bound_s, 2 * self._pace.send_s * self.n_slots)
