"""Settings: one frozen object, resolved once, with the origin of each value."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from exadask.errors import ExadaskError, InvalidQuantity, InvalidRequest, shown
from exadask.texts import is_writable
from exadask.units import parse_bytes, parse_node_seconds, parse_seconds

_PREFIX = "EXADASK_"
_NOT_SETTINGS = (
    *("EXADASK_GPUS", "EXADASK_GPU_VENDOR", "EXADASK_NODE_SHAPE"),
    *("EXADASK_SCRATCH", "EXADASK_STAGE", "EXADASK_SLOT"),
    *("EXADASK_MPIEXEC", "EXADASK_RANK_LAUNCHER", "EXADASK_STARTER"),
    *("EXADASK_RANKS", "EXADASK_RANKS_FOLDER", "EXADASK_RANK_CORES"),
    *("EXADASK_RANK_GPU_UNITS", "EXADASK_GPU_VARIABLE"),
    *("EXADASK_GANG", "EXADASK_PART", "EXADASK_PARTS", "EXADASK_PART_CORES", "EXADASK_PART_GPUS"),
    *("EXADASK_HOSTFILE", "EXADASK_RANKS_PER_NODE", "EXADASK_SYS_PATH"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How an executor behaves; built by `Config.resolve`.

    Parameters
    ----------
    kill_grace_s : float
        Time from SIGTERM to SIGKILL [s].
    poll_interval_s : float
        Time between two looks at the memory of tasks [s].
    reserve_after_s : float
        How long a task may be overtaken before a node is reserved for it [s].
    inline_bytes : int
        Results up to this size travel with the news of completion [bytes].
    segment_bytes : int
        Buffers from this size cross between processes through shared memory [bytes].
    join_timeout_s : float
        How long an agent tries to reach its scheduler [s].
    poll_jobs_s : float
        Longest time between two queries of the batch system; shorter while something is expected
        to happen [s].
    grow_after_s : float
        How long tasks must wait beside nodes that could run them before more are asked for [s].
    lead_s : float
        How long before the end of an allocation its successor is asked for, at most a quarter of
        its walltime [s].
    depot_bytes : int
        Results that the scheduler's process keeps in memory when their nodes are given back; more
        goes to the run folder [bytes].
    scale : {"auto", "manual"}
        Whether pools grow and shrink with what waits, or only as `Executor.scale` says.
    budget : float, optional
        What all allocations together may cost at most [node-seconds]; write "100 node-hours".
    run_folder : str
        Where runs keep their files; all nodes must see it.
    journal : bool
        Whether what happens is written down in the folder of the run.
    keep_results : bool
        Whether the results of all tasks are kept there, so that the run can be resumed.
    memo_folder : str, optional
        Where results of memoised tasks lie. None: in ``memo`` below `run_folder`.
    dashboard : bool
        Whether a scheduler with pools serves Dask's dashboard, on loopback and with a token.
    origins : dict of str to str
        Where each value comes from.
    """

    kill_grace_s: float = 2.0
    poll_interval_s: float = 0.1
    reserve_after_s: float = 10.0
    inline_bytes: int = 65536
    segment_bytes: int = 2**20
    join_timeout_s: float = 60.0
    poll_jobs_s: float = 30.0
    grow_after_s: float = 2.0
    lead_s: float = 600.0
    depot_bytes: int = 2**30
    scale: Literal["auto", "manual"] = "auto"
    budget: float | None = None
    run_folder: str = "exadask-runs"
    journal: bool = True
    keep_results: bool = False
    memo_folder: str | None = None
    dashboard: bool = True
    origins: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def memo_path(self) -> Path:
        """Where results of memoised tasks lie, also for nodes that run elsewhere."""
        return Path(self.memo_folder or Path(self.run_folder) / "memo").absolute()

    @classmethod
    def resolve(
        cls,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Config:
        """Find every value: an argument wins over the environment, that over the default.

        Parameters
        ----------
        overrides : mapping, optional
            Values given as arguments; numbers, or text with a unit ("2s", "64KiB").
        environ : mapping, optional
            Environment variables; ``EXADASK_<NAME>`` sets a field. By default the process's own.

        Raises
        ------
        InvalidRequest
            Names are unknown or values make no sense; all of them are named at once.

        Examples
        --------
        >>> config = Config.resolve({"kill_grace_s": "5s"}, environ={})
        >>> config.kill_grace_s, config.origins["kill_grace_s"]
        (5.0, 'argument')
        """
        environ = os.environ if environ is None else environ
        found = {
            name[len(_PREFIX) :].lower(): (text, name)
            for name, text in environ.items()
            if name.startswith(_PREFIX) and name not in _NOT_SETTINGS
        }
        found.update({name: (value, "argument") for name, value in (overrides or {}).items()})
        values, problems = dict[str, Any](), list[str]()
        for name, (value, origin) in found.items():
            try:
                values[name] = _parser_of(name, origin)(value, name=name)
            except ExadaskError as error:
                problems.append(str(error))
        if problems:
            raise InvalidRequest("The settings cannot be used:", " ".join(problems))
        origins = {name: found[name][1] if name in found else "default" for name in _PARSERS}
        return cls(**values, origins=origins)


def _parse_scale(value: object, *, name: str) -> str:
    if not isinstance(value, str) or value not in ("auto", "manual"):
        raise InvalidQuantity(name, value, '"auto" or "manual"')
    return value


def _parse_text(value: object, *, name: str) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.strip() or not is_writable(path):
        raise InvalidQuantity(name, value, "the path of a folder")
    return path


def _parse_flag(value: object, *, name: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    said = known.get((value if isinstance(value, str) else shown(value)).lower())
    if said is None:
        raise InvalidQuantity(name, value, "true or false")
    return said


_SPECIAL: dict[str, Callable[..., Any]] = {
    "scale": _parse_scale,
    "budget": parse_node_seconds,
    "run_folder": _parse_text,
    "journal": _parse_flag,
    "keep_results": _parse_flag,
    "memo_folder": _parse_text,
    "dashboard": _parse_flag,
}

_PARSERS: dict[str, Callable[..., Any]] = {
    one.name: _SPECIAL.get(one.name, parse_seconds if one.name.endswith("_s") else parse_bytes)
    for one in fields(Config)
    if one.name != "origins"
}

SETTINGS = tuple(_PARSERS)
"""The names of all settings."""


def _parser_of(name: str, origin: str) -> Callable[..., Any]:
    if name in _PARSERS:
        return _PARSERS[name]
    shown = name if origin == "argument" else origin
    known = (
        list(_PARSERS)
        if origin == "argument"
        else [
            *(_PREFIX + one.upper() for one in _PARSERS),
            *_NOT_SETTINGS,
        ]
    )
    near = difflib.get_close_matches(shown, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}."
    raise InvalidRequest(f"{shown!r} is not a setting.", hint)
