"""Which modules are the user's own, and of what version the others are.

The user's own code may change from one run to the next, so its content counts. Of the standard
library, installed packages and exadask only the name counts, and the version of the package.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from exadask.files import File
from exadask.journal.bytecode import meaning_of, names_in

_MAIN = ("__main__", "__mp_main__")
_Imported = tuple[str, int, tuple[str, ...]]


def is_own(name: str | None, namespace: Mapping[str, Any] | None = None) -> bool:
    """Whether a module is the user's own.

    Parameters
    ----------
    name : str, optional
        The module.
    namespace : mapping, optional
        Its globals, where they are at hand.
    """
    if name in _MAIN:
        return True
    if name is None or name == "builtins":
        return False
    module = sys.modules.get(name)
    if namespace is None:
        namespace = {} if module is None else vars(module)
    file = namespace.get("__file__")
    if isinstance(file, str):
        return _is_own_file(file)
    # What was typed into a notebook or made by exec has no file, and is the user's.
    return module is None or getattr(module, "__spec__", None) is None


def version_of(name: str) -> bytes:
    """Give the version of a module's package; of the user's compiled modules, their content.

    Empty where there is none, as for the standard library.
    """
    if is_own(name):
        compiled = compiled_file(name)
        return File(compiled).digest() if compiled is not None else b""
    top = name.partition(".")[0]
    version = _installed_version(top) or getattr(sys.modules.get(top), "__version__", "")
    is_versioned = top not in sys.stdlib_module_names and top != "exadask"
    return version.encode() if is_versioned and isinstance(version, str) else b""


def compiled_file(name: str) -> str | None:
    """Give the file of a module of the user's own that is no Python code, or None."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or file.endswith(".py") or name in _MAIN or not is_own(name):
        return None
    return file if Path(file).is_file() else None


def behind_imports(imported: Iterable[_Imported], package: str) -> list[tuple[str, bytes]]:
    """Describe the user's modules that code imports while it runs, and those these import.

    They may be imported here or not, and importing them may be out of place here (only the nodes
    may have a GPU), so each counts as its whole source, and none is imported.

    Parameters
    ----------
    imported : iterable of (str, int, tuple of str)
        As in `exadask.journal.bytecode.Names`.
    package : str
        Where relative names start.

    Returns
    -------
    list of (str, bytes)
        Modules and their content; of other packages, their versions.
    """
    found: dict[str, bytes] = {}
    waiting = deque(_candidates(imported, package))
    while waiting:
        name = waiting.popleft()
        top = name.partition(".")[0]
        if name in found or top in sys.stdlib_module_names or name in _MAIN:
            continue
        spec = _spec_of(name)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            continue
        if not _is_own_file(spec.origin):
            found[top] = _installed_version(top).encode()
            continue
        found[name], more = _source(spec.origin)
        within = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        waiting.extend(_candidates(more, within))
    return sorted(found.items())


def _candidates(imported: Iterable[_Imported], package: str) -> Iterator[str]:
    """Name all modules that imports may run: packages first, and what is taken of them."""
    for name, level, taken in imported:
        try:
            full = importlib.util.resolve_name("." * level + name, package) if level else name
        except ImportError:  # it leads out of the package, and will fail
            continue
        parts = full.split(".")
        yield from (".".join(parts[: n + 1]) for n in range(len(parts)))
        yield from (f"{full}.{one}" for one in taken if one != "*")


def _spec_of(name: str) -> ModuleSpec | None:
    """Find a module; unlike `importlib.util.find_spec`, without importing its packages."""
    spec, path, full = None, None, ""
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        if spec is not None and path is None:
            return None  # what it is taken of is no package
        spec = _found(full, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _found(name: str, path: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # other people's finders decide what this raises
            spec = finder.find_spec(name, path)
            if spec is not None:
                return spec
    return None


def _source(path: str) -> tuple[bytes, tuple[_Imported, ...]]:
    """Describe a file of the user's, and say what it imports."""
    content = Path(path).read_bytes()
    with contextlib.suppress(SyntaxError, ValueError):
        if path.endswith(".py"):
            code = compile(content, path, "exec", dont_inherit=True)
            return meaning_of(code), names_in(code).imported
    return hashlib.blake2b(content, digest_size=16).digest(), ()


@functools.lru_cache(maxsize=4096)
def _is_own_file(path: str) -> bool:
    place = Path(path).absolute()
    text = str(place)
    is_packaged = "/site-packages/" in text or "/dist-packages/" in text
    if is_packaged or text.startswith(_other_folders()):
        return False
    return not any(map(_has_packages, place.parents))


@functools.lru_cache(maxsize=1024)
def _has_packages(folder: Path) -> bool:
    """Whether packages were installed in a folder, as ``pip install --target`` does."""
    return any(folder.glob("*.dist-info"))


@functools.lru_cache(maxsize=1)
def _other_folders() -> tuple[str, ...]:
    """Name the folders whose modules are not the user's own."""
    found = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += site.getsitepackages() if hasattr(site, "getsitepackages") else []
    found += [site.getusersitepackages(), str(Path(__file__).parents[1])]
    return tuple(f"{Path(one)}/" for one in found if one)


@functools.lru_cache(maxsize=1024)
def _installed_version(top: str) -> str:
    try:
        return importlib.metadata.version(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""
