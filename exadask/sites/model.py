"""The words of a site profile: facts, where they come from, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from exadask.pool import Pool

Provenance = Literal["read", "second-hand", "recalled", "chosen", "own"]

PROVENANCES: tuple[str, ...] = get_args(Provenance)[:3]
"""What a profile may say: read in the named public source, told by others, or from memory."""

LIMITS = ("bins", "max_queued", "max_running")
"""The facts of a pool that are rules of the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a fact comes from.

    Parameters
    ----------
    name : str
        What the profile calls it.
    title : str
        What it is.
    as_of : str
        Date or years of what was read, such as ``2026-08-19`` or ``2024-2026``; empty: not stated.
    provenance : {"read", "second-hand", "recalled", "chosen", "own"}
        Read in this source; told by others, such as users' scripts; from memory; a choice of the
        profile and no fact of the site; or the user's own word.
    url : str, optional
        Where it can be read.
    """

    name: str
    title: str
    as_of: str = ""
    provenance: Provenance = "own"
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is known of a pool.

    Parameters
    ----------
    pool : str
        The pool.
    key : str
        What of it, as `Pool.declare` calls it; of ``bins``, one bin is one fact.
    value : object
        What a TOML file can hold.
    source : Source
        Where it comes from.
    """

    pool: str
    key: str
    value: object
    source: Source

    @property
    def is_limit(self) -> bool:
        """Whether it is a rule of the site."""
        return self.key in LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a user should know and no field of a pool can say."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How a machine is recognised: any of these is enough.

    Parameters
    ----------
    hostnames : tuple of str
        Shell patterns of host names.
    environment : tuple of (str, str)
        Environment variables, and shell patterns of their values.
    """

    hostnames: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """The value of a fact, and where it comes from."""

    value: object
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEntry:
    """A pool as a profile describes it, before the user adds anything.

    Parameters
    ----------
    name, title : str
        Its name, and what it is for.
    stated : mapping of str to Stated
        Its facts; the value of ``bins`` is a tuple of `Stated`.
    requires : tuple of str
        The facts that only the user knows.
    """

    name: str
    title: str = ""
    stated: Mapping[str, Stated] = field(default_factory=dict)
    requires: tuple[str, ...] = ()

    def facts(self) -> tuple[Fact, ...]:
        """List its facts, each bin on its own."""
        found = []
        for key, one in self.stated.items():
            parts = one.value if key == "bins" and isinstance(one.value, tuple) else (one,)
            found += [
                Fact(pool=self.name, key=key, value=part.value, source=part.source)
                for part in parts
                if isinstance(part, Stated)
            ]
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A site profile, read and checked, before the user adds anything.

    Parameters
    ----------
    name, title : str
        Its name, and the machine's.
    path : Path
        The file.
    is_own : bool
        Whether it is the user's; otherwise it came with exadask.
    unusable, instead : str
        Why exadask cannot use this machine, and what to do; empty if it can.
    default_pools : tuple of str
        Which pools are meant if none are named.
    pools : mapping of str to PoolEntry
        The pools.
    where_to_find : mapping of str to str
        Where the user finds a fact that a pool requires.
    notes : tuple of Note
        What else to know.
    docs : tuple of str
        Addresses of the site's documentation.
    match : Match
        How the machine is recognised.
    """

    name: str
    title: str
    path: Path
    is_own: bool
    unusable: str = ""
    instead: str = ""
    default_pools: tuple[str, ...] = ()
    pools: Mapping[str, PoolEntry] = field(default_factory=dict)
    where_to_find: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    docs: tuple[str, ...] = ()
    match: Match = field(default_factory=Match)

    @property
    def batch(self) -> tuple[str, ...]:
        """The batch systems of its pools."""
        found = {
            str(entry.stated["batch"].value) if "batch" in entry.stated else "local"
            for entry in self.pools.values()
        }
        return tuple(sorted(found))

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts of all pools."""
        return tuple(fact for entry in self.pools.values() for fact in entry.facts())


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A machine room, ready to be used.

    Parameters
    ----------
    name, title : str
        Name of the profile, and of the machine.
    pools : tuple of Pool
        The chosen pools, with what the user said.
    facts : tuple of Fact
        What is known of them, and where it comes from; the user's own word included.
    notes : tuple of Note
        What else to know.
    docs : tuple of str
        Addresses of the site's documentation.
    """

    name: str
    title: str
    pools: tuple[Pool, ...]
    facts: tuple[Fact, ...]
    notes: tuple[Note, ...] = ()
    docs: tuple[str, ...] = ()
