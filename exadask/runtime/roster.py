"""Who the nodes are: their names, addresses and allocations, and which of them are about to go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from exadask.core.ledger import NodeId
from exadask.resources import NodeShape


class NodeObserver(Protocol):
    """Who wants to know of the nodes of allocations."""

    def node_joined(self, node: NodeId, pool: str, allocation: str, shape: NodeShape) -> None:
        """Take the news that a node takes tasks from now on."""

    def node_left(self, node: NodeId, allocation: str) -> None:
        """Take the news that a node has gone, for whatever reason."""

    def node_is_leaving(self, node: NodeId, allocation: str) -> None:
        """Take the news that the batch system ends a node in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    address: str
    pool: str | None = None
    allocation: str | None = None


@dataclass(slots=True)
class Roster:
    """The nodes of a scheduler.

    Attributes
    ----------
    observer : NodeObserver, optional
        Is told of the nodes of allocations.
    leaving : set of NodeId
        Connected nodes that take nothing more, because they are about to go.
    excused : set of NodeId
        Nodes whose loss is nobody's fault: their allocation has ended.
    """

    observer: NodeObserver | None = None
    leaving: set[NodeId] = field(default_factory=set)
    excused: set[NodeId] = field(default_factory=set)
    by_address: dict[str, NodeId] = field(default_factory=dict)
    _entries: dict[NodeId, _Entry] = field(default_factory=dict)

    def join(
        self, node: NodeId, address: str, pool: str | None, allocation: str | None, shape: NodeShape
    ) -> None:
        """Enter a node."""
        self._entries[node] = _Entry(address=address, pool=pool, allocation=allocation)
        self.by_address[address] = node
        if self.observer is not None and pool is not None and allocation is not None:
            self.observer.node_joined(node, pool, allocation, shape)

    def leave(self, address: str) -> NodeId | None:
        """Strike a node; returns its name if there was one."""
        node = self.by_address.pop(address, None)
        if node is None:
            return None
        entry = self._entries.pop(node)
        self.leaving.discard(node)
        if self.observer is not None and entry.allocation is not None:
            self.observer.node_left(node, entry.allocation)
        return node

    def announce_leaving(self, node: NodeId) -> None:
        """Note that the batch system ends a node in a moment."""
        self.leaving.add(node)
        self.excused.add(node)
        allocation = self._entries[node].allocation
        if self.observer is not None and allocation is not None:
            self.observer.node_is_leaving(node, allocation)

    def address_of(self, node: NodeId) -> str | None:
        """Where a node listens; None if it has gone."""
        entry = self._entries.get(node)
        return None if entry is None else entry.address

    def pool_of(self, node: NodeId) -> str | None:
        """The pool of a node; None if it has gone, or belongs to none."""
        entry = self._entries.get(node)
        return None if entry is None else entry.pool

    def of_allocation(self, allocation: str) -> list[NodeId]:
        """The connected nodes of an allocation."""
        return [node for node, one in self._entries.items() if one.allocation == allocation]

    def excuse(self, nodes: Iterable[NodeId]) -> None:
        """Blame no task for the end of these nodes."""
        self.excused.update(nodes)
