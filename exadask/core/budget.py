"""What allocations cost: booked in full when they are asked for, settled when they have ended."""

from __future__ import annotations

import math

from exadask.errors import InvalidTransition

__all__ = ["Budget"]


class Budget:
    """The node-seconds that may be spent.

    Parameters
    ----------
    limit : float, optional
        What all allocations together may cost [node-seconds]. None: any amount.
    spent : float
        What allocations that have ended did cost, also those of before [node-seconds].

    Examples
    --------
    >>> budget = Budget(7200.0)
    >>> budget.book("cpu-0", 2 * 3600.0)
    >>> budget.left
    0.0
    >>> budget.settle("cpu-0", 600.0)
    >>> budget.left
    6600.0
    """

    def __init__(self, limit: float | None = None, spent: float = 0.0) -> None:
        self.limit = math.inf if limit is None else limit
        self.spent = spent
        self._booked: dict[str, float] = {}

    @property
    def booked(self) -> float:
        """What allocations that have not ended may still cost [node-seconds]."""
        return sum(self._booked.values())

    @property
    def left(self) -> float:
        """What may still be booked [node-seconds]."""
        return max(0.0, self.limit - self.spent - self.booked)

    @property
    def at_most_left(self) -> float:
        """What could be booked if all that is booked came back [node-seconds]."""
        return max(0.0, self.limit - self.spent)

    def book(self, allocation: str, cost: float) -> None:
        """Set aside what an allocation may cost.

        Raises
        ------
        InvalidTransition
            It is booked already, or there is not so much left.
        """
        if allocation in self._booked or cost > self.left:
            raise InvalidTransition(f"allocation {allocation}", "book", f"{self.left:g} left")
        self._booked[allocation] = cost

    def settle(self, allocation: str, cost: float) -> None:
        """Pay what an allocation did cost, at most what was booked; the rest is free again.

        Raises
        ------
        InvalidTransition
            Nothing is booked for it.
        """
        if allocation not in self._booked:
            raise InvalidTransition(f"allocation {allocation}", "settle", "not booked")
        self.spent += min(max(0.0, cost), self._booked.pop(allocation))

    def check(self, allocations: dict[str, float]) -> None:
        """Assert that exactly these costs are booked; for tests."""
        assert self._booked == allocations, "the budget and the allocations disagree"
        most = max(self.limit, self.spent) * (1 + 1e-12)  # a resumed run may begin with less
        assert self.spent + self.booked <= most, "the budget is exceeded"
