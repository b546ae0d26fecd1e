"""What a job script asks of its batch system: flags with values, compared as whole flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from exadask.pool import Pool

_PLAIN = re.compile(r"[\w./:@%+,=\[\]{}-]+")


@dataclass(frozen=True, slots=True)
class Directive:
    """One thing that a job script asks.

    Parameters
    ----------
    flag : str
        The whole flag; of a flag that takes several resources, with the resource: ``-l walltime``.
    value : str, optional
        Its value, quoted as the batch system wants it.
    key : str
        What tells it from others, where that is not the flag.

    Examples
    --------
    >>> Directive("--nodes", "2").render(), Directive("-N", "x").render()
    ('--nodes=2', '-N x')
    >>> Directive("-l walltime", "1:00:00").render(), Directive("--exclusive").render()
    ('-l walltime=1:00:00', '--exclusive')
    """

    flag: str
    value: str | None = None
    key: str = ""

    def render(self) -> str:
        """Write it as the batch system reads it."""
        if self.value is None:
            return self.flag
        joint = "=" if self.flag.startswith("--") or " " in self.flag else " "
        return f"{self.flag}{joint}{self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a batch system writes directives.

    Parameters
    ----------
    prefix : str
        What a line begins with, such as ``#SBATCH``.
    flags : callable
        Names the flags in a directive that a user wrote, such as ``-l walltime=1:00:00,nodes=2``.
    aliases : mapping of str to str
        Short flags and the long ones that mean the same.
    """

    prefix: str
    flags: Callable[[str], set[str]]
    aliases: Mapping[str, str]

    def named(self, text: str) -> set[str]:
        """Name the flags in a directive, each in one spelling."""
        return {self.aliases.get(flag, flag) for flag in self.flags(text)}

    def asked(self, own: Iterable[Directive], pool: Pool) -> list[str]:
        """Merge what exadask asks with what the user adds and leaves out.

        Parameters
        ----------
        own : iterable of Directive
            What exadask asks.
        pool : Pool
            Its `directives` replace those with the same flag, and come last; its `skip_directives`
            are left out.

        Returns
        -------
        list of str
            The directives, without prefix.
        """
        added = [text.strip().removeprefix(self.prefix).strip() for text in pool.directives]
        dropped = {flag for text in (*added, *pool.skip_directives) for flag in self.named(text)}
        kept = [one.render() for one in own if not self._is_in(one, dropped)]
        return [*kept, *added]

    def lines(self, own: Iterable[Directive], pool: Pool) -> list[str]:
        """Write the merged directives as lines of a job script."""
        return [f"{self.prefix} {one}" for one in self.asked(own, pool)]

    def _is_in(self, one: Directive, dropped: set[str]) -> bool:
        key = one.key or one.flag
        return not dropped.isdisjoint({self.aliases.get(key, key), key.partition(" ")[0]})


def getopt_flags(text: str) -> set[str]:
    """Name the flag of a directive whose short flags are one letter: ``-N2``, ``--nodes=2``.

    Examples
    --------
    >>> getopt_flags("-N2"), getopt_flags("-t 5"), getopt_flags("--mem=4G")
    ({'-N'}, {'-t'}, {'--mem'})
    """
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return {word.partition("=")[0]} if word.startswith("--") else {word[:2]}


def word_flags(text: str) -> set[str]:
    """Name the flag of a directive whose flags are words: ``-pe smp 4``, ``-nnodes 2``.

    Examples
    --------
    >>> word_flags("-pe smp 4"), word_flags("--project=physics")
    ({'-pe'}, {'--project'})
    """
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return {word.partition("=")[0]}


def resource_flags(text: str) -> set[str]:
    """Name the resources of a ``-l`` directive, or the flag of another.

    Examples
    --------
    >>> sorted(resource_flags("-l walltime=1:00:00,filesystems=home:eagle"))
    ['-l filesystems', '-l walltime']
    >>> resource_flags("-l"), resource_flags("-A physics")
    ({'-l'}, {'-A'})
    """
    if not text.startswith("-l") or not text[2:].strip():
        return word_flags(text)
    return {f"-l {part.partition('=')[0].strip()}" for part in text[2:].split(",") if part.strip()}


def quoted(value: object) -> str:
    r"""Put a value into double quotes if it is more than one plain word.

    Examples
    --------
    >>> quoted("/home/me/job.log"), quoted("/my files/x")
    ('/home/me/job.log', '"/my files/x"')
    """
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def clock(seconds: float) -> str:
    """Write a duration as ``HH:MM:SS``, rounded up to whole seconds.

    Examples
    --------
    >>> clock(5400), clock(0.5), clock(360000)
    ('01:30:00', '00:00:01', '100:00:00')
    """
    minutes, left = divmod(ceil(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{left:02d}"


def whole_minutes(seconds: float) -> int:
    """Round a duration up to minutes.

    Examples
    --------
    >>> whole_minutes(60), whole_minutes(61)
    (1, 2)
    """
    return ceil(seconds / 60)
