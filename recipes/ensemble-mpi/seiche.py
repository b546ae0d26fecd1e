"""Standing waves of a closed basin: the linear shallow-water equations on ranks of MPI.

Water of depth h at rest under gravity g obeys, for small displacements eta of its surface,

    du/dt = -g d(eta)/dx,   dv/dt = -g d(eta)/dy,   d(eta)/dt = -h (du/dx + dv/dy),

with no flow through the walls. The standing wave cos(m pi x / Lx) cos(n pi y / Ly) then swings for
ever at omega = pi sqrt(g h) sqrt((m / Lx)^2 + (n / Ly)^2). The equations are solved on a staggered
C grid (Arakawa and Lamb, Methods Comput. Phys. 17 (1977) 173), forward-backward in time: second
order in space and time. The rows of the grid are shared out among the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

GRAVITY = 9.81
COURANT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Basin:
    """A rectangle of water, and the wave in it.

    Parameters
    ----------
    length, width, depth : float
        Its size in x, in y and down [m].
    m, n : int
        Half waves in x and in y.
    """

    length: float = 60_000.0
    width: float = 40_000.0
    depth: float = 50.0
    m: int = 2
    n: int = 1

    @property
    def omega(self) -> float:
        """The exact angular frequency [rad/s]."""
        waves = np.hypot(self.m / self.length, self.n / self.width)
        return float(np.pi * np.sqrt(GRAVITY * self.depth) * waves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swing:
    """What a simulation saw.

    Parameters
    ----------
    spacing : float
        Of the grid [m].
    times, amplitudes : numpy.ndarray
        How much of the wave there was when [s], [m].
    leak : float
        The largest relative change of the water's volume.
    n_ranks : int
        How many ranks computed it [ranks].
    """

    spacing: float
    times: Any
    amplitudes: Any
    leak: float
    n_ranks: int


def swing(comm: Any, basin: Basin, cells: int, periods: float = 5.0) -> Swing:
    """Let a standing wave of one metre swing.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        All ranks; each has some rows of the grid.
    basin : Basin
        The water.
    cells : int
        Cells of the grid along the width; they are square [cells].
    periods : float
        How long, in periods of the exact wave.
    """
    from mpi4py.MPI import PROC_NULL

    if cells < comm.size:
        raise ValueError(f"{cells} rows of cells are too few for {comm.size} ranks")
    spacing = basin.width / cells
    n_x = round(basin.length / spacing)
    first, last = (cells * one // comm.size for one in (comm.rank, comm.rank + 1))
    step_s = COURANT * spacing / np.sqrt(2 * GRAVITY * basin.depth)
    n_steps = int(np.ceil(periods * 2 * np.pi / basin.omega / step_s))
    x = (np.arange(n_x) + 0.5) * spacing
    y = (np.arange(first, last) + 0.5) * spacing
    mode = np.outer(np.cos(basin.n * np.pi * y / basin.width),
                    np.cos(basin.m * np.pi * x / basin.length))  # fmt: skip
    weight = comm.allreduce(float((mode**2).sum()))
    above = comm.rank + 1 if comm.rank + 1 < comm.size else PROC_NULL
    below = comm.rank - 1 if comm.rank else PROC_NULL

    eta = mode.copy()
    u = np.zeros((last - first, n_x + 1))  # on the faces between cells; the outermost are walls
    v = np.zeros((last - first + 1, n_x))  # the last row belongs to the next rank
    halo = np.zeros(n_x)
    amplitudes, volumes = np.empty(n_steps + 1), np.empty(n_steps + 1)
    amplitudes[0], volumes[0] = (mode * eta).sum(), eta.sum()
    for number in range(1, n_steps + 1):
        # The faces below this rank's first row need the row of the rank before.
        comm.Sendrecv(np.ascontiguousarray(eta[-1]), dest=above, recvbuf=halo, source=below)
        u[:, 1:-1] -= step_s * GRAVITY / spacing * np.diff(eta, axis=1)
        v[1:-1] -= step_s * GRAVITY / spacing * np.diff(eta, axis=0)
        if comm.rank:
            v[0] -= step_s * GRAVITY / spacing * (eta[0] - halo)
        comm.Sendrecv(np.ascontiguousarray(v[0]), dest=below, recvbuf=halo, source=above)
        if comm.rank + 1 < comm.size:
            v[-1] = halo
        eta -= step_s * basin.depth / spacing * (np.diff(u, axis=1) + np.diff(v, axis=0))
        amplitudes[number], volumes[number] = (mode * eta).sum(), eta.sum()
    whole, water = np.empty_like(amplitudes), np.empty_like(volumes)
    comm.Reduce(amplitudes, whole)
    comm.Reduce(volumes, water)
    return Swing(
        spacing=spacing,
        times=step_s * np.arange(n_steps + 1),
        amplitudes=whole / weight,
        leak=float(abs(water - water[0]).max() / (cells * n_x)),
        n_ranks=comm.size,
    )


def frequency(swing: Swing) -> float:
    """Read the angular frequency off the zeros of the amplitude [rad/s]."""
    values, times = swing.amplitudes, swing.times
    (before,) = np.nonzero(values[:-1] * values[1:] < 0)
    part = values[before] / (values[before] - values[before + 1])
    zeros = times[before] + part * (times[before + 1] - times[before])
    if len(zeros) < 2:
        raise ValueError("the wave has not swung once: simulate for longer")
    half_period = np.polyfit(np.arange(len(zeros)), zeros, 1)[0]
    return float(np.pi / half_period)
