"""What is said later wins: of two files, of all pools and one pool, of a profile and its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exadask.sites.model import Stated
from exadask.sites.reading import Layer, Part


def on_top(below: Layer, above: Layer) -> Layer:
    """Merge what two files say; how a machine is recognised is not inherited: it is unique."""
    names = dict.fromkeys((*below.pools, *above.pools))
    return Layer(
        title=above.title or below.title,
        unusable=below.unusable if above.unusable is None else above.unusable,
        instead=below.instead if above.instead is None else above.instead,
        default_pools=above.default_pools or below.default_pools,
        docs=tuple(dict.fromkeys((*above.docs, *below.docs))),
        notes=(*above.notes, *below.notes),
        sources=above.sources,
        match=above.match,
        where_to_find={**below.where_to_find, **above.where_to_find},
        defaults=part_on_top(below.defaults, above.defaults),
        pools={
            name: part_on_top(below.pools.get(name, Part()), above.pools.get(name, Part()))
            for name in names
        },
    )


def part_on_top(below: Part, above: Part) -> Part:
    """Merge what is said of a pool."""
    return Part(
        title=above.title or below.title,
        requires=tuple(dict.fromkeys((*below.requires, *above.requires))),
        stated=combined(below.stated, above.stated),
    )


def combined(below: Mapping[str, Stated], above: Mapping[str, Stated]) -> dict[str, Stated]:
    """Merge facts: those above win; of ``env`` each variable, of ``directives`` each flag."""
    merged = dict(below)
    skipped = above["skip_directives"].value if "skip_directives" in above else ()
    if "directives" in merged and isinstance(skipped, (list, tuple)):
        flags = {directive_flag(str(one)) for one in skipped}
        kept = [one for one in _lines(merged["directives"]) if directive_flag(one) not in flags]
        merged["directives"] = Stated(value=kept, source=merged["directives"].source)
    for key, one in above.items():
        value, old = one.value, merged[key].value if key in merged else None
        if key == "env" and isinstance(value, Mapping) and isinstance(old, Mapping):
            value = {**old, **value}
        elif key == "directives" and key in merged and _is_lines(value):
            value = joined_directives(_lines(merged[key]), _lines(one))
        merged[key] = Stated(value=value, source=one.source)
    return merged


def _is_lines(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    )


def _lines(stated: Stated) -> list[str]:
    return [stated.value] if isinstance(stated.value, str) else list(stated.value)  # type: ignore[call-overload]  # checked by `_is_lines`


def joined_directives(below: Sequence[str], above: Sequence[str]) -> list[str]:
    """Add directives to others; one with the same flag replaces them.

    Examples
    --------
    >>> joined_directives(["-l filesystems=home", "-C gpu"], ["-l filesystems=home:flare"])
    ['-C gpu', '-l filesystems=home:flare']
    """
    named = {directive_flag(one) for one in above}
    return [*(one for one in below if directive_flag(one) not in named), *above]


def directive_flag(directive: str) -> str:
    """Name what a directive sets: its flag, and of a resource also which.

    Examples
    --------
    >>> directive_flag("-l filesystems=home"), directive_flag("--mem=4G"), directive_flag("-C gpu")
    ('-l filesystems', '--mem', '-C')
    """
    first, _, rest = directive.strip().partition(" ")
    if first == "-l":
        return f"-l {rest.partition('=')[0].strip()}"
    flag, _, value = first.partition("=")
    return f"{flag}={value.partition('=')[0]}" if "=" in value else flag
