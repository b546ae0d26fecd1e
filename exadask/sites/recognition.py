"""Which machine this is: by its name, and by variables that sites set."""

from __future__ import annotations

import functools
import logging
import re
import socket
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from exadask.errors import SiteError
from exadask.sites.model import Match
from exadask.sites.profile import SHIPPED, is_own, list_profiles, profile_match

logger = logging.getLogger(__name__)

_SUBMITTED_FROM = ("SLURM_SUBMIT_HOST", "PBS_O_HOST", "LSB_SUB_HOST", "SGE_O_HOST")
_NOT_LITERAL = re.compile(r"\[[^\]]*\]|[*?]")


def recognised_site(
    hostname: str, environ: Mapping[str, str], *, search: Sequence[Path] | None = None
) -> str | None:
    """Say which profile is made for this machine.

    Parameters
    ----------
    hostname : str
        Name of this machine. Inside a job, the host that submitted it counts as well.
    environ : mapping
        Environment variables.
    search : sequence of Path, optional
        Further folders with profiles.

    Returns
    -------
    str or None
        Its name: the user's own come before the shipped; of several the most specific, whose
        pattern has most letters. None if there is none.

    Raises
    ------
    SiteError
        Several are as good; they are named.

    Notes
    -----
    ``SLURM_SUBMIT_HOST``: sbatch(1), Slurm 24.05. ``PBS_O_HOST``: qsub(1B), OpenPBS 23.06.
    ``LSB_SUB_HOST``: IBM Spectrum LSF 10.1, environment variable reference. ``SGE_O_HOST``:
    qsub(1), Grid Engine.
    """
    hosts = [hostname, *(environ[name] for name in _SUBMITTED_FROM if environ.get(name))]
    rated = []
    for name, path in list_profiles(search=search, environ=environ).items():
        try:
            match = _match(path)
        except SiteError as error:
            logger.warning("A site profile is passed over: %s", error)
            continue
        score = _score(match, hosts, environ)
        if score:
            rated.append((is_own(path), score, name))
    if not rated:
        return None
    best = max(rated)[:2]
    names = sorted(name for *rating, name in rated if tuple(rating) == best)
    if len(names) > 1:
        raise SiteError(
            names[0],
            f"{hostname} is recognised as {' and as '.join(names)}.",
            "Name one, or make [match] of your own profile more specific.",
        )
    return names[0]


def site_here(environ: Mapping[str, str], *, search: Sequence[Path] | None = None) -> str:
    """Say which profile is made for the machine that this is.

    Raises
    ------
    SiteError
        None is, or several are.
    """
    hostname = this_host()
    name = recognised_site(hostname, environ, search=search)
    if name is None:
        raise SiteError(
            "here",
            f"{hostname} is none of the machines that have a profile.",
            "Name one that fits, such as 'slurm' or 'pbs' (see: exadask sites), or write your own "
            "with [match].",
        )
    return name


def this_host() -> str:
    """Give the full name of this machine; may ask the name service."""
    name = socket.gethostname()
    return name if "." in name else socket.getfqdn(name)


def _match(path: Path) -> Match:
    """Read how a machine is recognised; a user's own profile need not repeat the shipped one."""
    if not is_own(path):
        return _shipped_match(path)
    match, shipped = profile_match(path), SHIPPED / path.name
    is_silent = not match.hostnames and not match.environment
    return _shipped_match(shipped) if is_silent and shipped.exists() else match


@functools.cache
def _shipped_match(path: Path) -> Match:
    return profile_match(path)


def _score(match: Match, hosts: Sequence[str], environ: Mapping[str, str]) -> int:
    """Count the letters of the best pattern that fits; 0: none does."""
    fitting = [
        pattern
        for pattern in match.hostnames
        if any(fnmatchcase(host.lower(), pattern.lower()) for host in hosts)
    ]
    fitting += [
        f"{name}={pattern}"
        for name, pattern in match.environment
        if name in environ and fnmatchcase(environ[name], pattern)
    ]
    return max((len(_NOT_LITERAL.sub("", pattern)) for pattern in fitting), default=0)
