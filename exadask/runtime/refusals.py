"""Messages that make no sense: the log is told of them, and they do no harm.

Dask closes the connection by which a message came that its handler does not like. A client then
loses all that it waits for, and a node all that runs there.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from exadask.resources import NodeShape
from exadask.runtime.board import MAX_CALLS

logger = logging.getLogger(__name__)

Handler = Callable[..., None]


def guarded(handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """Let handlers refuse a message by any error, which goes no further than into the log."""
    return {op: _guarded(op, handler) for op, handler in handlers.items()}


def _guarded(op: str, handler: Handler) -> Handler:
    def handle(**message: Any) -> None:
        try:
            handler(**message)
        except Exception:  # the connection belongs to others as well
            sender = message.get("worker") or message.get("client")
            logger.exception("the message %r from %r makes no sense: it is ignored", op, sender)

    return handle


def checked_index(index: object) -> int:
    """Take the place of a call in a bundle; -1 means that there is none.

    Raises
    ------
    ValueError
        It is none.
    """
    if not isinstance(index, int) or not -1 <= index < MAX_CALLS:
        raise ValueError(f"{index!r} is no place of a call in a bundle")
    return index


def checked_shape(pickled: bytes) -> NodeShape:
    """Take what a node says that it has.

    Raises
    ------
    Exception
        It is none, or cannot be unpickled.
    """
    shape = pickle.loads(pickled)
    if not isinstance(shape, NodeShape) or not shape.core_ids or not shape.memory_bytes > 0:
        raise ValueError(f"{shape!r} is no node")
    return shape


def checked_left_s(left_s: float | None) -> float:
    """Take how long a node stays [s]; None: for ever.

    Raises
    ------
    ValueError
        It is no such time.
    """
    if left_s is None:
        return math.inf
    if not isinstance(left_s, (int, float)) or math.isnan(left_s):
        raise ValueError(f"{left_s!r} is no time")
    return left_s
