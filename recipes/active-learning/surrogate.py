"""Which wire to try next: a Gaussian process over those that were tried, and expected improvement.

Jones, Schonlau and Welch, J. Glob. Optim. 13 (1998) 455. Wires that are being tried at the moment
count as if they had come out as the process expects ("kriging believer"; Ginsbourger, Le Riche and
Carraro 2010), so that not the same one is tried twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from bead import BOUNDS, N_FREE
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

N_CANDIDATES = 2000
N_NEAR = 500
CLIP = 0.3

Point = tuple[float, ...]


def random_point(rng: np.random.Generator) -> Point:
    """Choose a wire at random."""
    return tuple(rng.uniform(*BOUNDS, size=N_FREE).tolist())


def propose(tried: Sequence[tuple[Point, float]], pending: Sequence[Point], seed: int) -> Point:
    """Choose the wire that promises most.

    Parameters
    ----------
    tried : sequence of (tuple of float, float)
        Wires, and how long the bead took [s].
    pending : sequence of tuple of float
        Wires that are being tried.
    seed : int
        Decides which candidates are looked at.
    """
    rng = np.random.default_rng(seed)
    known = np.array([point for point, _ in tried])
    values = np.log([time for _, time in tried])
    values = np.minimum(values, values.min() + CLIP)  # how bad a bad wire is teaches nothing
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(
        np.full(N_FREE, 0.5), (0.05, 20.0), nu=2.5
    ) + WhiteKernel(1e-5, (1e-8, 1e-2))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound of the kernel is good enough
        process.fit(known, values)
        if pending:
            waiting = np.array(pending)
            process.set_params(kernel=process.kernel_, optimizer=None)
            process.fit(
                np.vstack([known, waiting]), np.concatenate([values, process.predict(waiting)])
            )
    best = known[values.argmin()]
    near = np.clip(best + rng.normal(scale=0.08, size=(N_NEAR, N_FREE)), *BOUNDS)
    candidates = np.vstack([rng.uniform(*BOUNDS, size=(N_CANDIDATES, N_FREE)), near])
    mean, spread = process.predict(candidates, return_std=True)
    gain = values.min() - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(spread > 0, gain / spread, 0.0)
    expected = gain * norm.cdf(scaled) + spread * norm.pdf(scaled)
    return tuple(candidates[expected.argmax()].tolist())
