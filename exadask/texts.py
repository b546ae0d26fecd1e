"""Which texts can be written down: into a script, a journal, or an argument of a program."""

from __future__ import annotations


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
