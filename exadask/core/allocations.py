"""The life of one allocation, from the wish to its end."""

from __future__ import annotations

from enum import Enum

from exadask.core.ledger import NodeId
from exadask.errors import InvalidTransition
from exadask.job_status import EndCause, JobState, JobStatus

__all__ = ["Allocation", "AllocationState"]


class AllocationState(Enum):
    """How far an allocation is."""

    ASKED = "asked for"  # the batch system has not answered yet
    PENDING = "queued"
    STARTING = "starting"  # it runs, but no node has joined
    LIVE = "live"  # a node has joined
    ENDING = "ending"  # it was cancelled or given back
    ENDED = "ended"


_S = AllocationState

# States only move forward, so that a report of an earlier state is late and is dropped.
_NEXT_STATES = {
    _S.ASKED: {_S.PENDING, _S.STARTING, _S.LIVE, _S.ENDED},
    _S.PENDING: {_S.STARTING, _S.LIVE, _S.ENDING, _S.ENDED},
    _S.STARTING: {_S.LIVE, _S.ENDING, _S.ENDED},
    _S.LIVE: {_S.ENDING, _S.ENDED},
    _S.ENDING: {_S.ENDED},
    _S.ENDED: set[_S](),
}
_ORDER = {state: index for index, state in enumerate(_S)}

_N_SILENT_POLLS = 3
_SILENT_S = 60.0


class Allocation:
    """One batch job of some nodes.

    Attributes
    ----------
    state : AllocationState
        How far it is; `enter` changes it.
    job_id : str or None
        What the batch system calls it.
    nodes, walltime_s : int, float
        What was asked for.
    joined : set of NodeId
        The nodes that are connected.
    n_ever_joined : int
        Nodes that have been connected at some time.
    started_at, ends_at, ended_at : float or None
        When it began to run, is expected to end, and ended [s].
    nodeless_since : float or None
        Since when it runs without a connected node [s].
    reason : str
        The batch system's own words about it, or why it ended.
    is_held : bool
        Whether somebody must release it before it can start.
    """

    __slots__ = (
        "_last_waited_at",
        "_n_silent",
        "_silent_since",
        "asked_at",
        "ended_at",
        "ends_at",
        "history",
        "is_held",
        "job_id",
        "joined",
        "n_ever_joined",
        "name",
        "nodeless_since",
        "nodes",
        "pool",
        "reason",
        "started_at",
        "state",
        "walltime_s",
    )

    def __init__(self, name: str, pool: str, nodes: int, walltime_s: float, *, now: float) -> None:
        self.name, self.pool, self.nodes, self.walltime_s = name, pool, nodes, walltime_s
        self.state = AllocationState.ASKED
        self.history = [(now, self.state)]
        self.asked_at = self._last_waited_at = now
        self.job_id: str | None = None
        self.joined: set[NodeId] = set()
        self.n_ever_joined = 0
        self.started_at: float | None = None
        self.ends_at: float | None = None
        self.ended_at: float | None = None
        self.nodeless_since: float | None = None
        self.reason = ""
        self.is_held = False
        self._n_silent = 0
        self._silent_since: float | None = None

    @property
    def cost(self) -> float:
        """What it costs if it lasts to its end [node-seconds]."""
        return self.nodes * self.walltime_s

    @property
    def title(self) -> str:
        """Its name, and its job's where there is one."""
        return self.name if self.job_id is None else f"{self.name} (job {self.job_id})"

    @property
    def is_active(self) -> bool:
        """Whether it is to stay: neither ended nor about to be."""
        return self.state not in (AllocationState.ENDING, AllocationState.ENDED)

    @property
    def is_queued(self) -> bool:
        """Whether it waits in the queue of the batch system, or is on the way into it."""
        return self.state in (AllocationState.ASKED, AllocationState.PENDING)

    def left_s(self, now: float) -> float:
        """How long its nodes will stay at least from when they are there [s]."""
        return self.walltime_s if self.ends_at is None else max(0.0, self.ends_at - now)

    def ran_s(self, now: float) -> float | None:
        """How long it has run, or ran [s]; None if it never began, as far as is known."""
        if self.started_at is None:
            return None
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)

    def ends_within(self, lead_s: float, now: float) -> bool:
        """Whether it runs and its end is near."""
        return self.ends_at is not None and self.ends_at - now <= lead_s

    def n_coming(self, now: float, start_timeout_s: float) -> int:
        """How many of its nodes are still to join [nodes]."""
        if not self.is_active:
            return 0
        if self.started_at is not None and now - self.started_at > start_timeout_s:
            return 0
        return max(0, self.nodes - self.n_ever_joined)

    # -- what happens to it -------------------------------------------------------------------

    def enter(self, state: AllocationState, now: float) -> bool:
        """Move on to a state; return whether it was news.

        Raises
        ------
        InvalidTransition
            It cannot come to this state from where it is.
        """
        if _ORDER[state] <= _ORDER[self.state]:
            return False
        if state not in _NEXT_STATES[self.state]:
            history = ", ".join(one.value for _, one in self.history)
            raise InvalidTransition(f"allocation {self.name}", state.value, history)
        self.state = state
        self.history.append((now, state))
        if state is AllocationState.ENDED:
            self.ended_at = now
        return True

    def hear(self, news: JobStatus, now: float) -> None:
        """Take in what the batch system says of a job that has not ended."""
        if news.state is JobState.UNKNOWN:
            self._n_silent += 1
            self._silent_since = now if self._silent_since is None else self._silent_since
            return
        self._n_silent, self._silent_since = 0, None
        self.reason, self.is_held = news.reason, news.is_held
        if news.state is JobState.PENDING:
            self._last_waited_at = now
            self.enter(AllocationState.PENDING, now)
        elif news.state is JobState.RUNNING:
            self.start(now, news.left_s)
            self.enter(AllocationState.STARTING, now)

    def start(self, now: float, left_s: float | None = None) -> None:
        """Note that it runs, and how long it will go on if that is known."""
        if self.started_at is None:
            ran_s = 0.0 if left_s is None else max(0.0, self.walltime_s - left_s)
            self.started_at = max(self.asked_at, now - ran_s)
            self.nodeless_since = None if self.joined else now
            self.ends_at = self.started_at + self.walltime_s
        if left_s is not None:
            self.ends_at = now + left_s

    def believable_end(self, told_at: float) -> float:
        """Bound when it ends as one of its nodes says, whose clock may be wrong [s].

        It began after it was last seen waiting, and no later than it was seen running.
        """
        if self.ends_at is None:
            return told_at
        earliest_at = min(self.ends_at, self._last_waited_at + self.walltime_s)
        return min(max(told_at, earliest_at), self.ends_at)

    def join(self, node: NodeId, now: float) -> None:
        """Note that a node has joined.

        Raises
        ------
        InvalidTransition
            It has joined already.
        """
        if node in self.joined:
            raise InvalidTransition(f"node {node} of allocation {self.name}", "join", "joined")
        self.start(now)
        self.joined.add(node)
        self.n_ever_joined += 1
        self.nodeless_since = None
        self.enter(AllocationState.LIVE, now)

    def leave(self, node: NodeId, now: float) -> None:
        """Note that a node has gone; nothing happens if it was not there."""
        if node in self.joined:
            self.joined.discard(node)
            self.nodeless_since = None if self.joined else now

    def has_vanished(self, now: float) -> bool:
        """Whether the batch system has not known it for long, and none of its nodes is there."""
        return (
            not self.joined
            and self._n_silent >= _N_SILENT_POLLS
            and self._silent_since is not None
            and now - self._silent_since >= _SILENT_S
        )

    def spent(self, now: float, cause: EndCause | None) -> float:
        """What it has cost when it ends now [node-seconds]; waiting costs nothing."""
        if self.started_at is not None:
            return self.nodes * max(0.0, now - self.started_at)
        if self.job_id is None or cause in (None, EndCause.CANCELLED):
            return 0.0
        return self.nodes * max(0.0, now - self._last_waited_at)  # it ran between two polls
