"""Which texts can be written down, as in a script or a journal, and which are names of files."""

from __future__ import annotations

import os


def is_writable(text: str) -> bool:
    r"""Whether a text has neither NUL, which ends it in C, nor halves of characters.

    Examples
    --------
    >>> is_writable("Zürich"), is_writable("a\0b"), is_writable("\ud800")
    (True, False, False)
    """
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def names_file(text: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; `Path.is_file` raises if the name is too long.

    Examples
    --------
    >>> names_file(__file__), names_file("x" * 5000)
    (True, False)
    """
    return os.path.isfile(text)  # noqa: PTH113  # see above


def names_folder(text: str | os.PathLike[str]) -> bool:
    """Whether there is such a folder; see `names_file`."""
    return os.path.isdir(text)  # noqa: PTH112  # see `names_file`
