"""The one way to read a TOML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from exadask.errors import InvalidRequest


def read_toml(path: Path, *, what: str, advice: str) -> dict[str, Any]:
    """Read a TOML file.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What the error calls it.
    advice : str
        What the error tells the user to write.

    Returns
    -------
    dict of str to Any
        What it says.

    Raises
    ------
    InvalidRequest
        The file cannot be read, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # Python 3.10 only
    try:
        facts: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not text, not TOML, nested too deep
        raise InvalidRequest(f"{what} cannot be read: {error}.", advice) from error
    return facts
