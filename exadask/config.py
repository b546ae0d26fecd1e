"""Settings: one frozen object, resolved once, with the origin of each value."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from exadask.errors import ExadaskError, InvalidRequest
from exadask.units import parse_bytes, parse_seconds

_PREFIX = "EXADASK_"
_NOT_SETTINGS = ("EXADASK_GPUS", "EXADASK_GPU_VENDOR", "EXADASK_NODE_SHAPE", "EXADASK_SLOT")


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
    origins : dict of str to str
        Where each value comes from.
    """

    kill_grace_s: float = 2.0
    poll_interval_s: float = 0.1
    reserve_after_s: float = 10.0
    inline_bytes: int = 65536
    segment_bytes: int = 2**20
    origins: dict[str, str] = field(default_factory=dict, compare=False)

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


_PARSERS: dict[str, Callable[..., Any]] = {
    one.name: parse_seconds if one.name.endswith("_s") else parse_bytes
    for one in fields(Config)
    if one.name != "origins"
}


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
