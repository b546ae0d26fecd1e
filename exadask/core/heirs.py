"""Which bundle may go on with the share of another that is about to end."""

from __future__ import annotations

from exadask.core.books import Books
from exadask.core.node import Held, HeldState
from exadask.core.queue import TaskClass, user_priority

__all__ = ["class_of_heir"]


def class_of_heir(books: Books, held: Held, now: float) -> TaskClass | None:
    """Return the class whose head may have a share as soon as its bundle ends.

    It asks for the same, at the same priority, and nobody else waits who might have the better
    right to what becomes free. None if there is no such class.
    """
    order, node = books.queue.order, held.node
    if held.state is not HeldState.HELD or held.promised_to is not None or not held.is_bundle:
        return None
    if len(order) != 1 or order[0][1].reserved:
        return None
    cls = order[0][1]
    task = cls.head
    is_alike = task.is_bundle and cls.request == held.request and not cls.alone
    if not is_alike or user_priority(task.priority) != held.priority:
        return None
    is_allowed = cls.allowed is None or node.name in cls.allowed
    if not is_allowed or cls.pool not in (None, node.pool):
        return None
    if node.reserved_for is not None or not node.is_open or not node.has_time(cls.request, now):
        return None
    return cls
