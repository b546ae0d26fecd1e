"""From the name of a machine to its pools: find the profile, read it, add what the user says."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exadask.errors import InvalidRequest, SiteError, shown
from exadask.pool import Pool
from exadask.sites.merging import combined, on_top, part_on_top
from exadask.sites.model import Match, PoolEntry, Profile, Site, Source, Stated
from exadask.sites.reading import Layer, Part, near, read_layer
from exadask.toml_file import read_toml

SHIPPED = Path(__file__).parent / "shipped"
"""Where the profiles lie that come with exadask."""

_GIVEN = Source(name="given", title="given by the user")
_ADVICE = "Write it as the shipped ones are written (see: exadask sites NAME)."


def load_site(
    name_or_path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    pools: Sequence[str] | None = None,
    search: Sequence[Path] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Site:
    """Load a site profile, and add what the user says.

    Parameters
    ----------
    name_or_path : str or Path
        Its name; "here" for the machine that this is; or a path, which ends in ``.toml`` or has
        a ``/``.
    overrides : mapping, optional
        Facts for each of the pools, as for `Pool.declare`; they win over the profile's. Variables
        of ``env`` and flags of ``directives`` win one by one; a flag in ``skip_directives`` also
        removes the profile's own directive. A value of None says nothing.
    pools : sequence of str, optional
        Which pools. None: those that the profile proposes.
    search : sequence of Path, optional
        Folders to look in before the user's own (``~/.config/exadask/sites``) and the shipped.
    environ : mapping, optional
        Environment variables; by default the process's own.

    Returns
    -------
    Site
        The site, ready to be used.

    Raises
    ------
    SiteError
        There is no such profile, pool or machine; the file is wrong, and all that is wrong in it is
        named; or a fact is missing that only the user knows.
    InvalidRequest
        What the user says makes no sense, or contradicts the limits of the site.
    """
    profile = read_profile(name_or_path, search=search, environ=environ)
    if profile.unusable:
        raise SiteError(profile.name, profile.unusable, profile.instead)
    said = {key: value for key, value in (overrides or {}).items() if value is not None}
    given = {key: Stated(value=value, source=_GIVEN) for key, value in said.items()}
    chosen = [
        PoolEntry(
            name=entry.name,
            title=entry.title,
            stated=combined(entry.stated, given),
            requires=entry.requires,
        )
        for entry in _chosen(profile, pools)
    ]
    _require(profile, chosen)
    return Site(
        name=profile.name,
        title=profile.title,
        pools=tuple(_declared(entry) for entry in chosen),
        facts=tuple(fact for entry in chosen for fact in entry.facts()),
        notes=profile.notes,
        docs=profile.docs,
    )


def read_profile(
    name_or_path: str | Path,
    *,
    search: Sequence[Path] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Profile:
    """Read and check a profile without adding anything; the parameters are those of `load_site`.

    Raises
    ------
    SiteError
        There is no such profile, or the file is wrong; all that is wrong in it is named.
    """
    environ = os.environ if environ is None else environ
    folders = profile_folders(search, environ)
    if str(name_or_path) == "here":
        from exadask.sites.recognition import site_here

        name_or_path = site_here(environ, search=search)
    path = _located(str(name_or_path), folders, visited=())
    return _read(path, folders)


def find_profile(
    name_or_path: str | Path,
    *,
    search: Sequence[Path] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Find the file of a profile; the parameters are those of `load_site`.

    Raises
    ------
    SiteError
        There is no such profile.
    """
    environ = os.environ if environ is None else environ
    return _located(str(name_or_path), profile_folders(search, environ), visited=())


def list_profiles(
    *, search: Sequence[Path] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """List the names of all profiles, and the file of each that would be used.

    Parameters
    ----------
    search : sequence of Path, optional
        Further folders to look in, first.
    environ : mapping, optional
        Environment variables; by default the process's own.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, Path] = {}
    for folder in profile_folders(search, environ):
        for path in _files(folder):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def profile_folders(search: Sequence[Path] | None, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """List the folders where profiles may lie, the first that has one wins.

    Notes
    -----
    The user's own are below ``$XDG_CONFIG_HOME``, if that is an absolute path, else below
    ``~/.config`` (XDG Base Directory Specification 0.8).
    """
    base = environ.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):
        base = f"{environ['HOME']}/.config" if environ.get("HOME") else ""
    own = [Path(base, "exadask", "sites")] if base else []
    return (*(search or ()), *own, SHIPPED)


def is_own(path: Path) -> bool:
    """Whether a profile is the user's; otherwise it came with exadask."""
    return path.parent != SHIPPED


# -- finding --------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except OSError:  # it need not exist, or be ours to read
        return []


def _located(name: str, folders: Sequence[Path], visited: Sequence[Path]) -> Path:
    """Find a file that was not visited: a user's ``frontier`` may extend the shipped one."""
    if name.endswith(".toml") or "/" in name:
        return _located_path(name, visited)
    candidates = [folder / f"{name}.toml" for folder in folders]
    found = [path for path in candidates if os.path.lexists(path)]
    for path in found:
        if path not in visited:
            return path
    if found:
        raise _cycle(visited, found[0])
    known = dict.fromkeys(path.stem for folder in folders for path in _files(folder))
    raise SiteError(
        name,
        f"there is no such profile, which {visited[-1]} extends."
        if visited
        else "there is no such profile.",
        f"{near(name, known)} Yours can lie in {folders[-2] if len(folders) > 1 else SHIPPED}, or "
        "be given as a path.",
    )


def _located_path(name: str, visited: Sequence[Path]) -> Path:
    path = Path(name)
    with contextlib.suppress(ValueError):  # no user can be called so
        path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser raises for ~nobody
    if visited and not path.is_absolute():
        path = visited[-1].parent / path
    if path in visited:
        raise _cycle(visited, path)
    return path


def _cycle(visited: Sequence[Path], path: Path) -> SiteError:
    way = " -> ".join(str(one) for one in (*visited, path))
    return SiteError(
        visited[0].stem, f"its profiles extend each other in a circle: {way}.", "Break it."
    )


# -- reading --------------------------------------------------------------------------------------


def _read(path: Path, folders: Sequence[Path]) -> Profile:
    if not is_own(path):
        return _read_shipped(path)
    return _assembled(path, folders)


@functools.cache
def _read_shipped(path: Path) -> Profile:
    return _assembled(path, (SHIPPED,))


def _assembled(path: Path, folders: Sequence[Path]) -> Profile:
    problems: list[str] = []
    layer = _layers(path, folders, (), problems)
    profile = Profile(
        name=path.stem,
        title=layer.title or path.stem,
        path=path,
        is_own=is_own(path),
        unusable=layer.unusable or "",
        instead=layer.instead or "",
        default_pools=layer.default_pools or tuple(layer.pools)[:1],
        pools={name: _entry(name, part, layer.defaults) for name, part in layer.pools.items()},
        where_to_find=layer.where_to_find,
        notes=layer.notes,
        docs=layer.docs,
        match=layer.match,
    )
    problems += _contradictions(profile, problems)
    if problems:
        raise SiteError(
            profile.name,
            f"{path} cannot be used as it is written:\n  " + "\n  ".join(problems) + "\n",
            "Correct it, or use another (see: exadask sites).",
        )
    return profile


def _layers(
    path: Path, folders: Sequence[Path], visited: tuple[Path, ...], problems: list[str]
) -> Layer:
    """Read a file on top of those that it extends."""
    table = _table(path)
    visited = (*visited, path)
    extends = table.get("extends")
    below = Layer()
    if isinstance(extends, str) and extends.strip():
        base = _located(extends, folders, visited)
        found: list[str] = []
        below = _layers(base, folders, visited, found)
        problems += [f"in {base}: {one}" for one in found]
    elif extends is not None:
        problems.append(f"extends: {shown(extends)} is not the name or path of a profile.")
    return on_top(below, read_layer(table, path, below.sources, problems))


def _entry(name: str, part: Part, defaults: Part) -> PoolEntry:
    whole = part_on_top(defaults, part)
    return PoolEntry(name=name, title=part.title, stated=whole.stated, requires=whole.requires)


def _contradictions(profile: Profile, before: Sequence[str]) -> Iterator[str]:
    """Check what the file says as a whole."""
    if not profile.pools and not profile.unusable and not before:
        yield "pools: there are none; write [pools.NAME]."
    for name in profile.default_pools:
        if name not in profile.pools:
            yield f"default_pools: {name!r} is no pool. {near(name, profile.pools)}"
    for name, entry in profile.pools.items():
        if any(one.startswith(("defaults", f"pools.{name}", "in ")) for one in before):
            continue
        try:
            _declared(entry)
        except InvalidRequest as error:
            yield f"pools.{name}: {error.advice}"


# -- choosing -------------------------------------------------------------------------------------


def _chosen(profile: Profile, names: Sequence[str] | None) -> list[PoolEntry]:
    wanted = (
        [names] if isinstance(names, str) else profile.default_pools if names is None else names
    )
    unknown = [name for name in wanted if name not in profile.pools]
    if unknown:
        hints = " ".join(dict.fromkeys(near(name, profile.pools) for name in unknown))
        missing = ", ".join(repr(name) for name in unknown)
        raise SiteError(profile.name, f"it has no pool {missing}.", hints)
    return [profile.pools[name] for name in dict.fromkeys(wanted)]


def _require(profile: Profile, chosen: Sequence[PoolEntry]) -> None:
    lacking = {
        key: [entry.name for entry in chosen if key in entry.requires and key not in entry.stated]
        for key in dict.fromkeys(key for entry in chosen for key in entry.requires)
    }
    lacking = {key: names for key, names in lacking.items() if names}
    if not lacking:
        return
    what = " and ".join(
        f"{key}= (pool{'s' if len(names) > 1 else ''} {', '.join(names)})"
        for key, names in lacking.items()
    )
    where = [profile.where_to_find[key] for key in lacking if key in profile.where_to_find]
    keys = ", ".join(f'{key}="..."' for key in lacking)
    raise SiteError(
        profile.name,
        f"it needs {what}, which only you know.",
        " ".join([*where, f"Say {keys}."]),
    )


def _declared(entry: PoolEntry) -> Pool:
    facts: dict[str, Any] = {key: one.value for key, one in entry.stated.items()}
    if "bins" in facts and isinstance(facts["bins"], tuple):
        facts["bins"] = [one.value if isinstance(one, Stated) else one for one in facts["bins"]]
    return Pool.declare(entry.name, **facts)


def profile_match(path: Path) -> Match:
    """Read only how a profile recognises its machine.

    Raises
    ------
    SiteError
        The file cannot be read, or what it says of this is wrong.
    """
    table, problems = _table(path), list[str]()
    match = read_layer({"match": table.get("match", {})}, path, {}, problems).match
    if problems:
        raise SiteError(path.stem, f"{path}: {' '.join(problems)}", _ADVICE)
    return match


def _table(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, what=str(path), advice=_ADVICE)
    except InvalidRequest as error:
        raise SiteError(path.stem, error.what, error.advice) from error.__cause__
