"""One TOML file of a site profile, read and checked: no problem stops the search for others."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exadask.errors import InvalidRequest, shown
from exadask.pool import FACTS, Pool
from exadask.sites.model import PROVENANCES, Match, Note, Source, Stated

ANY_NODES = (1, 2**31 - 1)
"""What ``nodes = "any"`` of a bin means."""

CHOSEN = Source(name="chosen", title="choice of this profile", provenance="chosen")
"""The source ``"chosen"``, which need not be described."""

_AS_OF = re.compile(r"\d{4}(-\d\d(-\d\d)?)?|\d{4}-\d{4}")
_TOP = (
    *("title", "extends", "unusable", "instead", "default_pools", "docs", "notes"),
    *("sources", "match", "where_to_find", "defaults", "pools"),
)
_OF_SOURCE = ("title", "url", "as_of", "provenance")
_OF_MATCH = ("hostnames", "environment")
_OF_NOTE = ("text", "source")
_OF_BIN = ("nodes", "walltime", "source")
_OF_POOL = ("title", "requires", "source", "sources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a file says of one pool, or of all (``[defaults]``)."""

    title: str = ""
    requires: tuple[str, ...] = ()
    stated: Mapping[str, Stated] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one file says; None where it is silent."""

    title: str | None = None
    unusable: str | None = None
    instead: str | None = None
    default_pools: tuple[str, ...] | None = None
    docs: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    match: Match = field(default_factory=Match)
    where_to_find: Mapping[str, str] = field(default_factory=dict)
    defaults: Part = field(default_factory=Part)
    pools: Mapping[str, Part] = field(default_factory=dict)


def near(word: object, known: Iterable[str]) -> str:
    """Say which known word was meant, or which there are."""
    words = list(known)
    found = difflib.get_close_matches(str(word).lower(), words, n=1)
    return f"Did you mean {found[0]!r}?" if found else f"Known are: {', '.join(words) or 'none'}."


def read_layer(
    table: Mapping[str, Any], path: Path, inherited: Mapping[str, Source], problems: list[str]
) -> Layer:
    """Read what one file says.

    Parameters
    ----------
    table : mapping
        The file's content.
    path : Path
        The file.
    inherited : mapping of str to Source
        Sources that may be named without being described.
    problems : list of str
        What is wrong is added here, each with the path of its key.

    Returns
    -------
    Layer
        What is right.
    """
    return _Reader(path, inherited, problems).layer(table)


class _Reader:
    """Reads one file; `problems` fills up on the way."""

    def __init__(self, path: Path, inherited: Mapping[str, Source], problems: list[str]) -> None:
        self._own = Source(name="", title=str(path))
        self._sources = {CHOSEN.name: CHOSEN, **inherited}
        self._problems = problems
        self._usual = self._own  # the source of facts that name none
        self._exceptions: Mapping[str, Source] = {}

    def layer(self, table: Mapping[str, Any]) -> Layer:
        self._known(table, _TOP, "")
        for name, one in self._table(table, "sources", "").items():
            self._sources[name] = self._described(name, one)
        where = self._texts_by_name(table, "where_to_find", "")
        self._known(where, FACTS, "where_to_find.")
        general = self._table(table, "defaults", "")
        self._usual, self._exceptions = self._attribution(general, "defaults.")
        defaults = self._part(general, "defaults.", self._usual, self._exceptions)
        pools = {
            name: self._pool(name, one) for name, one in self._table(table, "pools", "").items()
        }
        default_pools = self._texts(table, "default_pools", "")
        return Layer(
            title=self._text(table, "title", ""),
            unusable=self._text(table, "unusable", "", may_be_empty=True),
            instead=self._text(table, "instead", "", may_be_empty=True),
            default_pools=default_pools,
            docs=self._texts(table, "docs", "") or (),
            notes=self._notes(table.get("notes", [])),
            sources=self._sources,
            match=self._match(self._table(table, "match", "")),
            where_to_find=where,
            defaults=defaults,
            pools=pools,
        )

    # -- the parts of a profile -----------------------------------------------------------------

    def _described(self, name: str, value: object) -> Source:
        where = f"sources.{name}."
        table = self._as_table(value, where[:-1])
        self._known(table, _OF_SOURCE, where)
        title = self._text(table, "title", where)
        as_of = self._text(table, "as_of", where)
        provenance = self._text(table, "provenance", where)
        if isinstance(value, Mapping) and None in (title, as_of, provenance):
            lacking = [key for key in ("title", "as_of", "provenance") if key not in table]
            if lacking:
                self._problem(where[:-1], f"lacks {', '.join(lacking)}.")
        if as_of is not None and not _AS_OF.fullmatch(as_of):
            self._problem(f"{where}as_of", f'{as_of!r} is not a date: "2026-08-19" or "2024-2026".')
        if provenance is not None and provenance not in PROVENANCES:
            self._problem(f"{where}provenance", f"{provenance!r}. {near(provenance, PROVENANCES)}")
            provenance = None
        return Source(
            name=name,
            title=title or name,
            as_of=as_of or "",
            provenance=provenance or "own",  # type: ignore[arg-type]  # one of PROVENANCES
            url=self._text(table, "url", where),
        )

    def _match(self, table: Mapping[str, Any]) -> Match:
        self._known(table, _OF_MATCH, "match.")
        variables = self._texts_by_name(table, "environment", "match.")
        hostnames = self._texts(table, "hostnames", "match.") or ()
        return Match(hostnames=hostnames, environment=tuple(sorted(variables.items())))

    def _notes(self, value: object) -> tuple[Note, ...]:
        if not isinstance(value, list):
            self._wrong("notes", value, "a list of texts, or of {text = ..., source = ...}")
            return ()
        found = []
        for number, one in enumerate(value):
            where = f"notes[{number}]."
            table = {"text": one} if isinstance(one, str) else self._as_table(one, where[:-1])
            self._known(table, _OF_NOTE, where)
            text, source = self._text(table, "text", where), self._source(table, where, self._own)
            if text is not None:
                found.append(Note(text=text, source=source))
        return tuple(found)

    def _pool(self, name: str, value: object) -> Part:
        try:
            Pool.declare(name)
        except InvalidRequest as error:
            self._problem(f"pools.{name}", str(error))
        table, where = self._as_table(value, f"pools.{name}"), f"pools.{name}."
        return self._part(table, where, *self._attribution(table, where))

    def _attribution(
        self, table: Mapping[str, Any], where: str
    ) -> tuple[Source, Mapping[str, Source]]:
        """Read where the facts of a pool come from: the usual source, and the exceptions."""
        usual = self._source(table, where, self._usual)
        named = self._table(table, "sources", where)
        self._known(named, FACTS, f"{where}sources.")
        exceptions = {
            key: self._named(name, f"{where}sources.{key}", usual) for key, name in named.items()
        }
        return usual, {**self._exceptions, **exceptions}

    def _part(
        self,
        table: Mapping[str, Any],
        where: str,
        usual: Source,
        exceptions: Mapping[str, Source],
    ) -> Part:
        self._known(table, (*FACTS, *_OF_POOL), where)
        requires = self._texts(table, "requires", where) or ()
        self._known(requires, FACTS, f"{where}requires: ")
        stated = {}
        for key, value in table.items():
            if key not in FACTS:
                continue
            read = self._fact(key, value, f"{where}{key}", exceptions.get(key, usual))
            if read is not None:
                stated[key] = read
        title = self._text(table, "title", where) or ""
        return Part(title=title, requires=tuple(requires), stated=stated)

    def _fact(self, key: str, value: object, where: str, source: Source) -> Stated | None:
        if key == "bins":
            return self._bins(value, where, source)
        problem = fact_problem(key, value)
        if problem:
            self._problem(where, problem)
            return None
        return Stated(value=value, source=source)

    def _bins(self, value: object, where: str, usual: Source) -> Stated | None:
        if not isinstance(value, list):
            self._wrong(where, value, 'a list of {nodes = [1, 8], walltime = "2h"}')
            return None
        found = []
        for number, one in enumerate(value):
            read = self._bin(one, f"{where}[{number}].", usual)
            if read is not None:
                found.append(read)
        ordered = sorted(one.value["nodes"] for one in found)  # type: ignore[index]  # made by _bin
        for below, above in itertools.pairwise(ordered):
            if above[0] <= below[1]:
                self._problem(where, f"nodes = {below} and nodes = {above} overlap.")
        return Stated(value=tuple(found), source=usual)

    def _bin(self, value: object, where: str, usual: Source) -> Stated | None:
        table = self._as_table(value, where[:-1])
        self._known(table, _OF_BIN, where)
        source = self._source(table, where, usual)
        lacking = [key for key in ("nodes", "walltime") if key not in table]
        if lacking:
            self._problem(where[:-1], f"lacks {', '.join(lacking)}.")
            return None
        nodes, walltime = table["nodes"], table["walltime"]
        nodes = list(ANY_NODES) if nodes == "any" else nodes
        found = {
            "nodes": fact_problem("nodes", nodes),
            "walltime": fact_problem("walltime", walltime),
        }
        for key, problem in found.items():
            if problem:
                self._problem(f"{where}{key}", problem)
        if any(found.values()):
            return None
        span = [1, nodes] if isinstance(nodes, int) else list(nodes)
        return Stated(value={"nodes": span, "walltime": walltime}, source=source)

    # -- values, checked ------------------------------------------------------------------------

    def _source(self, table: Mapping[str, Any], where: str, usual: Source) -> Source:
        return self._named(table.get("source"), f"{where}source", usual)

    def _named(self, name: object, where: str, usual: Source) -> Source:
        if name is None:
            return usual
        if not isinstance(name, str) or name not in self._sources:
            self._problem(
                where, f"{shown(name)} is not in [sources]. {near(shown(name), self._sources)}"
            )
            return usual
        return self._sources[name]

    def _text(
        self, table: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False
    ) -> str | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            self._wrong(f"{where}{key}", value, "a text")
            return None
        return value.strip()

    def _texts(self, table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...] | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self._wrong(f"{where}{key}", value, "a list of texts")
            return None
        return tuple(value)

    def _texts_by_name(self, table: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
        found = {}
        for name, value in self._table(table, key, where).items():
            if isinstance(value, str):
                found[name] = value
            else:
                self._wrong(f"{where}{key}.{name}", value, "a text")
        return found

    def _table(self, table: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
        return self._as_table(table.get(key, {}), f"{where}{key}")

    def _as_table(self, value: object, where: str) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        self._wrong(where, value, "a table")
        return {}

    def _known(self, keys: Iterable[str], known: Collection[str], where: str) -> None:
        for key in keys:
            if key not in known:
                self._problem(f"{where}{key}", f"is not known. {near(key, known)}")

    def _wrong(self, where: str, value: object, wanted: str) -> None:
        self._problem(where, f"{_shown(value)} is not {wanted}.")

    def _problem(self, where: str, text: str) -> None:
        self._problems.append(f"{where}: {text}" if not where.endswith(": ") else f"{where}{text}")


def fact_problem(key: str, value: object) -> str:
    """Say what is wrong with one fact of a pool; empty if nothing is."""
    try:
        Pool.declare("probe", **{key: value})
    except InvalidRequest as error:
        return error.advice
    return ""


def _shown(value: object) -> str:
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
