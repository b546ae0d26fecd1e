"""Which translator belongs to which name."""

from __future__ import annotations

import importlib
from functools import cache

from exadask.batch.model import BatchSystem
from exadask.errors import InvalidRequest
from exadask.pool import BATCH_SYSTEMS

_CLASSES = {
    "slurm": "Slurm",
    "pbs": "Pbs",
    "lsf": "Lsf",
    "sge": "GridEngine",
    "oar": "Oar",
    "htcondor": "HtCondor",
    "flux": "Flux",
    "psij": "Psij",
    "local": "Local",
}


@cache
def batch_system(name: str) -> BatchSystem:
    """Return the translator of a batch system.

    Parameters
    ----------
    name : str
        As in `Pool.batch`.

    Returns
    -------
    BatchSystem
        Its translator; there is one of each.

    Raises
    ------
    InvalidRequest
        There is no such batch system.

    Examples
    --------
    >>> batch_system("slurm").name
    'slurm'
    """
    if name not in _CLASSES:
        raise InvalidRequest(
            f"batch={name!r} is not known.", f"Known are: {', '.join(BATCH_SYSTEMS)}."
        )
    module = importlib.import_module(f"exadask.batch.{name}")
    system: BatchSystem = getattr(module, _CLASSES[name])()
    return system
