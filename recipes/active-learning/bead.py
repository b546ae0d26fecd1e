"""A bead on a wire, and the wire on which it is fastest: the brachistochrone (Bernoulli 1696).

The wire leads from the origin to a point at distance 1 and depth d. It is y(x) = x^(2/3) q(x), with
y downwards and a cubic spline q through some values, which are free but for the last: the power is
how the fastest wire, a cycloid, begins. Without friction the bead has the speed sqrt(2 g y).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

GRAVITY = 9.81
DEPTH = 0.4
N_FREE = 4
BOUNDS = (0.1, 1.6)
N_STEPS = 200_000


class Stuck(ValueError):
    """The wire rises to the height of its beginning, so that the bead never passes."""


def travel_time(values: Sequence[float], depth: float = DEPTH, n_steps: int = N_STEPS) -> float:
    """Say how long the bead takes to the end of its wire [s].

    Parameters
    ----------
    values : sequence of float
        The spline q at equal distances, from x = 0 on; at the end it is the depth.
    depth : float
        Of the end [m].
    n_steps : int
        Points of the quadrature.

    Raises
    ------
    Stuck
        The bead does not get there.
    """
    knots = np.linspace(0.0, 1.0, len(values) + 1)
    spline = CubicSpline(knots, [*values, depth])
    # With x = s^3 nothing is infinite at the beginning.
    s = (np.arange(n_steps) + 0.5) / n_steps
    x = s**3
    q, slope = spline(x), spline(x, 1)
    if (q <= 0).any():
        raise Stuck(f"the wire rises above its beginning at x = {x[(q <= 0).argmax()]:.2f}")
    # dy/dx = x^(-1/3) (2/3 q + x q'), and dx = 3 s^2 ds; y = s^2 q.
    rise = (2 / 3 * q + x * slope) / s
    speed = np.sqrt(2 * GRAVITY * q) * s
    return float(np.mean(3 * s**2 * np.sqrt(1 + rise**2) / speed))


def best_time(depth: float = DEPTH) -> float:
    """Say how long the bead takes on the fastest wire of all, a cycloid [s]."""
    angle = brentq(lambda a: (a - np.sin(a)) / (1 - np.cos(a)) - 1 / depth, 1e-3, 2 * np.pi - 1e-3)
    radius = depth / (1 - np.cos(angle))
    return float(angle * np.sqrt(radius / GRAVITY))
