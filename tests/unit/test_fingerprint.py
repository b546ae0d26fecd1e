"""What counts for the name of a result: what is computed, and nothing else."""

from __future__ import annotations

import collections
import functools
import importlib
import io
import os
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from exadask.errors import InvalidRequest, UnhashableValue
from exadask.files import File
from exadask.journal import modules
from exadask.journal.fingerprint import arguments_fingerprint, function_fingerprint
from exadask.tasks import Task, TaskOptions, task

Space = dict[str, Any]
Write = Callable[[str, str], None]


def main(source: str, **more: Any) -> Space:
    """Run source as if it were the user's program."""
    space: Space = {"__name__": "__main__", **more}
    exec(compile(source, "<program>", "exec", dont_inherit=True), space)
    return space


def of(source: str) -> bytes:
    """Name what the function `f` of a program does."""
    return function_fingerprint(main(source)["f"])


def given(*args: Any, **kwargs: Any) -> bytes:
    return arguments_fingerprint(args, kwargs, "relax", lambda one: None)


# --- functions: what counts ---------------------------------------------------------------------

CHANGES = {
    "constant": ("def f(x): return x + 1", "def f(x): return x + 2"),
    "type of a constant": ("def f(x): return x + 1", "def f(x): return x + 1.0"),
    "bool": ("def f(x): return 1", "def f(x): return True"),
    "sign of zero": ("def f(x): return 0.0", "def f(x): return -0.0"),
    "operator": ("def f(x): return x < 1", "def f(x): return x > 1"),
    "method": ("def f(x): return x.real", "def f(x): return x.imag"),
    "branch": (
        "def f(x):\n while x:\n  x -= 1\n  if x: break\n return x",
        "def f(x):\n while x:\n  x -= 1\n  if x: continue\n return x",
    ),
    "handler": (
        "def f(x):\n try: x()\n except ValueError: return 1",
        "def f(x):\n try: x()\n except KeyError: return 1",
    ),
    "what is tried": (
        "def f(x):\n x()\n try: x()\n except ValueError: return 1",
        "def f(x):\n try:\n  x()\n  x()\n except ValueError: return 1",
    ),
    "nested": (
        "def f(x):\n def g(): return 1\n return g",
        "def f(x):\n def g(): return 2\n return g",
    ),
    "lambda within": ("f = lambda x: lambda: 1", "f = lambda x: lambda: 2"),
    "frozenset": ("f = lambda x: x in {1, 2}", "f = lambda x: x in {1, 3}"),
    "default": ("def f(x=1): return x", "def f(x=2): return x"),
    "keyword default": ("def f(*, x=1): return x", "def f(*, x=2): return x"),
    "parameter": ("def f(x, y): return x", "def f(y, x): return x"),
    "kind of parameter": ("def f(x, y): return x", "def f(x, *, y): return x"),
    "generator": ("def f(x): return x", "def f(x): yield x"),
    "global": ("def f(x): return g\ng = 1", "def f(x): return g\ng = 2"),
    "global list": ("def f(x): return g\ng = [1, 2]", "def f(x): return g\ng = [1, 3]"),
    "global of a nested function": ("f = lambda: lambda: g\ng = 1", "f = lambda: lambda: g\ng = 2"),
    "hidden builtin": (
        "def sum(x): return 1\ndef f(x): return sum(x)",
        "def sum(x): return 2\ndef f(x): return sum(x)",
    ),
    "helper": (
        "def g(x): return x\ndef f(x): return g(x)",
        "def g(x): return -x\ndef f(x): return g(x)",
    ),
    "helper of a helper": (
        "def h(x): return x\ndef g(x): return h(x)\ndef f(x): return g(x)",
        "def h(x): return -x\ndef g(x): return h(x)\ndef f(x): return g(x)",
    ),
    "one of two lambdas": (
        "a, b = lambda: 1, lambda: 2\ndef f(): return a() - b()",
        "b, a = lambda: 1, lambda: 2\ndef f(): return a() - b()",
    ),
    "mutual recursion": (
        "def g(x): return f(x - 1)\ndef f(x): return g(x)",
        "def g(x): return f(x - 2)\ndef f(x): return g(x)",
    ),
    "function in a list": (
        "g = [lambda: 1]\ndef f(): return g",
        "g = [lambda: 2]\ndef f(): return g",
    ),
    "attribute of a function": (
        "def f(): return g.limit\ndef g(): 0\ng.limit = 1",
        "def f(): return g.limit\ndef g(): 0\ng.limit = 2",
    ),
    "closure": (
        "def made(n): return lambda x: x + n\nf = made(1)",
        "def made(n): return lambda x: x + n\nf = made(2)",
    ),
    "function in a closure": (
        "def made(g): return lambda x: g(x)\nf = made(lambda x: x)",
        "def made(g): return lambda x: g(x)\nf = made(lambda x: -x)",
    ),
    "method of a class": (
        "class K:\n def run(self): return 1\ndef f(): return K().run()",
        "class K:\n def run(self): return 2\ndef f(): return K().run()",
    ),
    "attribute of a class": (
        "class K:\n n = 1\ndef f(): return K.n",
        "class K:\n n = 2\ndef f(): return K.n",
    ),
    "base": (
        "class B:\n n = 1\nclass K(B): 0\ndef f(): return K.n",
        "class B:\n n = 2\nclass K(B): 0\ndef f(): return K.n",
    ),
    "metaclass": (
        "class M(type):\n n = 1\nclass K(metaclass=M): 0\ndef f(): return K.n",
        "class M(type):\n n = 2\nclass K(metaclass=M): 0\ndef f(): return K.n",
    ),
    "property": (
        "class K:\n @property\n def n(self): return 1\ndef f(): return K().n",
        "class K:\n @property\n def n(self): return 2\ndef f(): return K().n",
    ),
    "cached property": (
        "import functools\nclass K:\n @functools.cached_property\n def n(self): return 1\nf = K",
        "import functools\nclass K:\n @functools.cached_property\n def n(self): return 2\nf = K",
    ),
    "static method": (
        "class K:\n @staticmethod\n def n(): return 1\ndef f(): return K.n()",
        "class K:\n @staticmethod\n def n(): return 2\ndef f(): return K.n()",
    ),
    "bound method": (
        "class K:\n def run(self): return 1\nf = K().run",
        "class K:\n def run(self): return 2\nf = K().run",
    ),
    "state of its object": (
        "class K:\n def __init__(self, n): self.n = n\n def run(self): return self.n\nf = K(1).run",
        "class K:\n def __init__(self, n): self.n = n\n def run(self): return self.n\nf = K(2).run",
    ),
    "callable object": (
        "class K:\n def __call__(self): return 1\nf = K()",
        "class K:\n def __call__(self): return 2\nf = K()",
    ),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass K:\n n: int = 1\ndef f(): return K()",
        "import dataclasses\n@dataclasses.dataclass\nclass K:\n n: int = 2\ndef f(): return K()",
    ),
    "enum": (
        "import enum\nclass K(enum.Enum):\n A = 1\ndef f(): return K.A",
        "import enum\nclass K(enum.Enum):\n A = 2\ndef f(): return K.A",
    ),
    "enum that is pickled by name": (
        "import enum\nclass K(enum.Enum):\n A = 1\n"
        " def __reduce_ex__(self, _): return getattr, (K, 'A')\ndef f(): return K.A",
        "import enum\nclass K(enum.Enum):\n A = 2\n"
        " def __reduce_ex__(self, _): return getattr, (K, 'A')\ndef f(): return K.A",
    ),
    "partial": (
        "import functools\nf = functools.partial(max, 1)",
        "import functools\nf = functools.partial(max, 2)",
    ),
    "keyword of a partial": (
        "import functools\nf = functools.partial(int, base=2)",
        "import functools\nf = functools.partial(int, base=3)",
    ),
    "function of a partial": (
        "import functools\nf = functools.partial(lambda x: x, 1)",
        "import functools\nf = functools.partial(lambda x: -x, 1)",
    ),
    "cached helper": (
        "import functools\n@functools.cache\ndef g(x): return 1\ndef f(x): return g(x)",
        "import functools\n@functools.cache\ndef g(x): return 2\ndef f(x): return g(x)",
    ),
    "context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef g(): yield 1\ndef f(x): return g()",
        "import contextlib\n@contextlib.contextmanager\ndef g(): yield 2\ndef f(x): return g()",
    ),
    "single dispatch": (
        "import functools\n@functools.singledispatch\ndef g(x): 0\n@g.register\n"
        "def _(x: int): return 1\ndef f(x): return g(x)",
        "import functools\n@functools.singledispatch\ndef g(x): 0\n@g.register\n"
        "def _(x: int): return 2\ndef f(x): return g(x)",
    ),
    "decorator": (
        "def deco(g):\n def run(*a): return 1 + g(*a)\n return run\n@deco\ndef f(x): return x",
        "def deco(g):\n def run(*a): return 2 + g(*a)\n return run\n@deco\ndef f(x): return x",
    ),
    "function of another package": (
        "from math import sin as g\ndef f(x): return g(x)",
        "from math import cos as g\ndef f(x): return g(x)",
    ),
    "ufunc": (
        "from numpy import sin as g\ndef f(x): return g(x)",
        "from numpy import cos as g\ndef f(x): return g(x)",
    ),
    "array": (
        "import numpy\ng = numpy.ones(3)\ndef f(): return g",
        "import numpy\ng = numpy.zeros(3)\ndef f(): return g",
    ),
    "task it calls": (
        "import exadask\n@exadask.task\ndef g(x): return 1\ndef f(x): return g.submit(x)",
        "import exadask\n@exadask.task\ndef g(x): return 2\ndef f(x): return g.submit(x)",
    ),
}

SAME = {
    "comment": ("def f(x): return x", "# Why.\n\n\ndef f(x):\n    # because\n\n    return x"),
    "docstring": ('def f(x):\n "Do it."\n return g(x)\ng = 1', "def f(x): return g(x)\ng = 1"),
    "docstring and names": ('def f(x):\n "Do."\n return 1.5', "def f(x):\n return 1.5"),
    "docstring of a nested function": (
        'def f(x):\n def g():\n  "Do it."\n  return 1\n return g',
        "def f(x):\n def g(): return 1\n return g",
    ),
    "docstring of a class": (
        'class K:\n "It."\n def run(self):\n  "Run."\ndef f(): return K()',
        "class K:\n def run(self): pass\n\n\ndef f(): return K()",
    ),
    "place of a nested class": (
        'def f():\n class K:\n  "It."\n  def run(self): self.n = self.m = self.k = 1\n return K',
        "def f():\n\n # here\n class K:\n  def run(self): self.n = self.m = self.k = 1\n return K",
    ),
    "annotation": ("def f(x: int) -> int: return x", "def f(x): return x"),
    "unused global": ("def f(x): return x\ng = 1", "def f(x): return x\ng = 2"),
    "unused helper": ("def g(): return 1\nf = lambda x: x", "def g(): return 2\nf = lambda x: x"),
    "order of a dict": ("g = {1: 2, 3: 4}\nf = lambda: g", "g = {3: 4, 1: 2}\nf = lambda: g"),
    "file": ("def f(): return __file__\n__file__ = 'a.py'", "def f(): return __file__"),
    "generator's state": (
        "from random import randint\ndef f(): return randint(1, 2)",
        "from random import randint\nrandint(1, 2)\ndef f(): return randint(1, 2)",
    ),
    "environment": (
        "from os import environ\nenviron['EXADASK_A'] = '1'\ndef f(): return environ",
        "from os import environ\ndel environ['EXADASK_A']\ndef f(): return environ",
    ),
    "class that was pickled": (
        "class K: 0\nf = lambda: K",
        "class K: 0\nK().__reduce_ex__(2)\nf = lambda: K",
    ),
    "flag that was combined": (
        "import enum\nclass K(enum.Flag):\n A = 1\n B = 2\nf = lambda: K",
        "import enum\nclass K(enum.Flag):\n A = 1\n B = 2\nK.A | K.B\nf = lambda: K",
    ),
    "filled cache": (
        "import functools\n@functools.cache\ndef g(x): return 1\nf = lambda x: g(x)",
        "import functools\n@functools.cache\ndef g(x): return 1\ng(3)\nf = lambda x: g(x)",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_change_counts(case: str) -> None:
    before, after = CHANGES[case]
    assert of(before) == of(before)
    assert of(before) != of(after)


@pytest.mark.parametrize("case", SAME)
def test_what_does_not_change_the_result_does_not_count(case: str) -> None:
    before, after = SAME[case]
    assert of(before) == of(after)


# What cannot travel by value, or not as it was.
NOT_SENT = {"cached property", "cached helper", "single dispatch", "generator's state"}
NOT_SENT |= {"filled cache", "environment", "file"}


@pytest.mark.parametrize("case", sorted({*CHANGES, *SAME} - NOT_SENT))
def test_same_where_it_was_sent(case: str) -> None:
    function = main({**CHANGES, **SAME}[case][0])["f"]
    assert function_fingerprint(function) == function_fingerprint(
        cloudpickle.loads(cloudpickle.dumps(function))
    )


def test_version_counts() -> None:
    function = main("f = lambda: 1")["f"]
    assert function_fingerprint(function) == function_fingerprint(function, version="")
    assert function_fingerprint(function) != function_fingerprint(function, version="2")


@pytest.mark.parametrize(
    "function", [len, str.upper, int, np.exp, np.linalg.norm, [].append], ids=repr
)
def test_what_is_not_the_users_has_a_name(function: Callable[..., Any]) -> None:
    assert function_fingerprint(function) == function_fingerprint(function)
    assert function_fingerprint(function) != function_fingerprint(print)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy\ndef f(x): return numpy.sin(x)",
        "from numpy import sin\ndef f(x): return sin(x)",
        "from numpy.linalg import norm\ndef f(x): return norm(x)",
        "def f(x):\n import numpy.linalg as la\n return la.norm(x)",
        "def f(x):\n from numpy import sin\n return sin(x)",
    ],
)
def test_version_of_a_package_counts(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(source)
    monkeypatch.setattr(modules, "_installed_version", lambda top: "3.0" if top == "numpy" else "")
    assert of(source) != before


def test_lock_that_a_function_uses_is_named() -> None:
    space = main("def helper(): return lock\ndef f(x): return helper()", lock=threading.Lock())
    with pytest.raises(UnhashableValue, match=r"which uses 'helper', which uses 'lock' \(a lock\)"):
        function_fingerprint(space["f"])


def test_long_chain_of_helpers() -> None:
    source = "".join(f"def g{n}(): return g{n + 1}()\n" for n in range(300))
    assert of(source + "g300 = 1\nf = g0") != of(source + "g300 = 2\nf = g0")


# --- tasks --------------------------------------------------------------------------------------


def add(x: int, y: int = 0) -> int:
    return x + y


def tasked(function: Callable[..., Any] = add, **options: Any) -> bytes:
    return function_fingerprint(Task(function, TaskOptions.parse(options)))


@pytest.mark.parametrize(
    "options",
    [
        *({"cores": 3}, {"memory": "2GiB", "time": "1h"}, {"retries": 2}, {"priority": 1}),
        *({"name": "other"}, {"pool": "cpu"}, {"isolation": "thread"}, {"bundle": 3}),
        {"memo": True},
    ],
    ids=str,
)
def test_what_a_task_asks_for_does_not_count(options: dict[str, Any]) -> None:
    assert tasked(**options) == tasked()


def test_setup_and_environment_of_a_task_count() -> None:
    assert len({tasked(), tasked(setup=list), tasked(setup=dict), tasked(env={"A": "1"})}) == 4


def test_bound_task() -> None:
    space = main(
        "class K:\n n = 1\n @task\n def run(self): return self.n\nk, other = K(), K()\nother.n = 2",
        task=task,
    )
    assert function_fingerprint(space["k"].run) != function_fingerprint(space["other"].run)


# --- the user's own modules -----------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules, and forget what was imported of them before."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0].startswith("fp_")]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        forget()

    yield write
    forget()


def in_module() -> bytes:
    return function_fingerprint(importlib.import_module("fp_job").f)


USES = {
    "from import": "from fp_helpers import g\ndef f(x): return g(x)",
    "attribute": "import fp_helpers\ndef f(x): return fp_helpers.g(x)",
    "alias": "import fp_helpers as h\ndef f(x): return h.g(x)",
    "import within": "def f(x):\n from fp_helpers import g\n return g(x)",
    "import of a module within": "def f(x):\n import fp_helpers as h\n return h.g(x)",
    "module in a closure": (
        "def made():\n import fp_helpers\n def f(x): return fp_helpers.g(x)\n return f\nf = made()"
    ),
    "default": "import fp_helpers\ndef f(x, g=fp_helpers.g): return g(x)",
}


@pytest.mark.parametrize("use", USES)
def test_helper_of_a_helper_in_other_modules(use: str, write: Write) -> None:
    write("fp_deep.py", "def h(x):\n    return x + 1\n")
    write("fp_helpers.py", "from fp_deep import h\ndef g(x):\n    return h(x)\n")
    write("fp_job.py", USES[use])
    before = in_module()
    write("fp_deep.py", "# Why.\n\ndef h(x):\n    'Do it.'\n    return x + 1  # because\n")
    write("fp_helpers.py", "'Help.'\nfrom fp_deep import h\n\n\ndef g(x):\n    return h(x)\n")
    assert in_module() == before
    write("fp_deep.py", "def h(x):\n    return x + 2\n")
    assert in_module() != before


@pytest.mark.parametrize("use", ["import within", "import of a module within"])
def test_import_within_counts_the_same_before_it_ran(use: str, write: Write) -> None:
    write("fp_helpers.py", "def g(x): return x\n")
    write("fp_job.py", USES[use])
    before = in_module()
    assert "fp_helpers" not in sys.modules
    importlib.import_module("fp_helpers")
    assert in_module() == before


@pytest.mark.parametrize(
    "source",
    [
        "from fp_pack.deep import g\ndef f(x): return g(x)",
        "import fp_pack.deep\ndef f(x): return fp_pack.deep.g(x)",
        "from fp_pack import deep\ndef f(x): return deep.g(x)",
        "def f(x):\n import fp_pack.deep\n return fp_pack.deep.g(x)",
        "def f(x):\n from fp_pack import deep\n return deep.g(x)",
        "def f(x):\n from fp_pack import near\n return near.g(x)",
    ],
)
def test_module_in_a_package(source: str, write: Write) -> None:
    write("fp_pack/__init__.py", "")
    write("fp_pack/near.py", "from .deep import g\n")
    write("fp_pack/deep.py", "def g(x): return x\n")
    write("fp_job.py", source)
    before = in_module()
    assert in_module() == before
    write("fp_pack/deep.py", "def g(x): return -x\n")
    assert in_module() != before


def test_unused_function_of_a_module_does_not_count(write: Write) -> None:
    write("fp_helpers.py", "def g(x): return x\ndef other(): return 1\n")
    write("fp_job.py", USES["attribute"])
    before = in_module()
    write("fp_helpers.py", "def other(): return 2\ndef g(x): return x\n")
    assert in_module() == before


def test_compiled_module_of_the_user_counts_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fp_fast.so"
    path.write_bytes(b"one")
    module = types.ModuleType("fp_fast")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "fp_fast", module)
    space = main("def f(x): return fp_fast.g(x)", fp_fast=module)
    before = function_fingerprint(space["f"])
    path.write_bytes(b"two")
    assert function_fingerprint(space["f"]) != before


def test_installed_package_counts_by_its_version(write: Write, tmp_path: Path) -> None:
    write(
        "fp_helpers-1.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: fp_helpers\nVersion: 1.0\n",
    )
    write("fp_helpers.py", "def g(x): return x\n")
    assert not modules.is_own("fp_helpers", {"__file__": str(tmp_path / "fp_helpers.py")})


def test_same_in_another_process(write: Write, tmp_path: Path) -> None:
    write(
        "fp_helpers.py", "WORDS = {'a', 'b', 'c'}\nclass K:\n    def run(self, x): return WORDS\n"
    )
    write(
        "fp_job.py",
        "import fp_helpers\n"
        "def f(x):\n"
        "    class Local:\n"
        "        def go(self): self.a = self.b = self.c = 1\n"
        "    return fp_helpers.K().run(x) & {'x', 'y', 'z'}, Local, x in {'p', 'q', 'r'}\n"
        "ARGS = ({'a', 'b', ('c', 1)}, {'x': frozenset('abc'), 'y': [1.5, None]}, fp_helpers.K)\n",
    )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fp_job\n"
        "from exadask.journal.fingerprint import *\n"
        "print(function_fingerprint(fp_job.f).hex())\n"
        "print(arguments_fingerprint(fp_job.ARGS, {}, 'f', lambda one: None).hex())"
    )
    told = set()
    for seed in ("1", "2"):
        told.add(
            subprocess.run(
                [sys.executable, "-B", "-c", program, str(tmp_path)],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    job = importlib.import_module("fp_job")
    here = f"{function_fingerprint(job.f).hex()}\n{given(*job.ARGS).hex()}\n"
    assert told == {here}


# --- arguments ------------------------------------------------------------------------------------


class Box:
    """An object with a state."""

    def __init__(self, **state: Any) -> None:
        vars(self).update(state)


class Slotted:
    """An object without a dict."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Labels(set[str]):
    """A set of the user's own."""


DIFFERENT = [
    *[(1,), (1.0,), (True,), (0.0,), (-0.0,), (0,), (False,), (None,), (1j,), (...,), ("1",)],
    *[(b"1",), (), ((),), ([],), ({},), (set(),), (frozenset(),), (1, 2), ((1, 2),), ([1, 2],)],
    *[({1, 2},), ({1: 2},), ({(1, 2)},), ((1, (2,)),), (((1,), 2),), ([[1], [2]],), ([[1, 2]],)],
    *[("a", "b"), ("ab",), (("a", "b"),), ("x" * 5000,), ("x" * 5001,), (2**70,), (float("nan"),)],
    *[(Box(a=1),), (Box(a=2),), (Box(b=1),), (Slotted(1),), (Slotted(2),), (Labels("ab"),)],
    *[(Labels("ac"),), ({"a", "b"},), (range(3),), (range(4),), (slice(3),), (bytearray(b"1"),)],
    *[(collections.OrderedDict(a=1, b=2),), (collections.OrderedDict(b=2, a=1),)],
    *[({"a": 1, "b": 2},), (collections.Counter("ab"),), (Path("/a"),), (Path("/b"),), (len,)],
    *[(lambda: 1,), (lambda: 2,), (add,), (functools.partial(add, 1),), (int,), (Box,)],
    *[(np.float64(1),), (np.float32(1),), (np.array(1.0),), (np.ones(1),), (np.ones((1, 1)),)],
    *[(np.ones(2),), (np.ones((2, 1)),), (np.ones(2, "f4"),), (np.ones(2, ">f8"),)],
    *[(np.array([1, "a", None], dtype=object),), (np.array([1, "b", None], dtype=object),)],
    *[(np.array(["2020"], "M8[Y]"),), (np.array(["2020"], "M8[D]"),), (np.array(["a"]),)],
    *[(np.zeros(2, [("a", "i4")]),), (np.zeros(2, [("b", "i4")]),), (np.array([1, 2j]),)],
    *[(np.ones(2, "g"),), (np.zeros(0),), (np.zeros((0, 2)),), (np.ones(2).view(np.matrix),)],
]


def test_different_arguments_differ() -> None:
    assert len({given(*args) for args in DIFFERENT}) == len(DIFFERENT)
    assert all(given(*args) == given(*args) for args in DIFFERENT)


def test_keywords() -> None:
    several = [given(1), given(x=1), given(y=1), given(1, x=1), given(x=1, y=2), given(x=2, y=1)]
    several += [given(x=[1]), given(y=[1]), given([1], x=1), given(1, x=[1]), given([1], y=1)]
    assert len(set(several)) == len(several)
    assert given(x=1, y=[2]) == given(y=[2], x=1)


EQUAL = {
    "strings": ("".join(["ab", "c"]), "abc"),
    "shared and not": ([["a"]] * 2, [["a"], ["a"]]),
    "dict": ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
    "set": ({*range(100), "a"}, {"a", *reversed(range(100))}),
    "own set": (Labels(["a", "b", "c"]), Labels(["c", "b", "a"])),
    "state": (Box(a=1, b=[2]), Box(b=[2], a=1)),
    "strided": (np.arange(10)[::2], np.arange(0, 10, 2)),
    "Fortran order": (np.ones((2, 3), order="F"), np.ones((2, 3))),
    "read only": (np.broadcast_to(np.ones(3), (2, 3)), np.ones((2, 3))),
    "long double": (np.arange(3, dtype="g"), np.array([0, 1, 2], dtype="g")),
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_arguments_are_equal(case: str) -> None:
    one, other = EQUAL[case]
    assert given(one) == given(other)
    assert given([one, 1], k=other) == given([other, 1], k=one)


def test_unpickled_argument_is_equal() -> None:
    for args in DIFFERENT:
        assert given(*args) == given(*cloudpickle.loads(cloudpickle.dumps(args))), args


def ring(n: int, label: int) -> Box:
    """Atoms, each of which knows all others."""
    atoms = [Box(label=label) for _ in range(n)]
    for one in atoms:
        vars(one)["near"] = [other for other in atoms if other is not one]
    return atoms[0]


def test_objects_that_contain_each_other() -> None:
    assert given(ring(30, 1)) == given(ring(30, 1))  # there are 30! ways through it
    assert len({given(ring(3, 1)), given(ring(3, 2)), given(ring(4, 1))}) == 3
    own: list[Any] = [1]
    own.append(own)
    assert given(own) != given([1, [1]])
    assert given({"a": own}, own) == given({"a": own}, own)


def test_futures_at_any_depth() -> None:
    class Future:
        def __init__(self, digest: bytes) -> None:
            self.digest = digest

    def future(one: object) -> bytes | None:
        return one.digest if isinstance(one, Future) else None

    def name(*args: Any) -> bytes:
        return arguments_fingerprint(args, {}, "f", future)

    assert name({"a": [Future(b"1")]}) == name({"a": [Future(b"1")]})
    assert name({"a": [Future(b"1")]}) != name({"a": [Future(b"2")]})
    assert name(Future(b"1")) != name(b"1")
    assert name(Box(input=Future(b"1"))) != name(Box(input=Future(b"2")))


def test_function_among_arguments_counts_by_what_it_does() -> None:
    one = main("def h(): return 1\ndef g(): return h()")["g"]
    other = main("# Why.\ndef h(): return 1\n\ndef g(): return h()")["g"]
    changed = main("def h(): return 2\ndef g(): return h()")["g"]
    assert given([one]) == given([other])
    assert given([one]) != given([changed])


def test_file_counts_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    one, same, other = (File(tmp_path / name) for name in "abc")
    assert given(one) == given(same)
    assert given([one]) != given([other])
    assert given(one) != given(tmp_path / "a")
    (tmp_path / "a").write_text("2")
    assert given(one) == given(other)


def test_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text(uuid.uuid4().hex)
    file = File(path)
    monkeypatch.setattr("exadask.files._SETTLED_NS", -(10**12))
    n_read = 0

    def hashed(path: str) -> bytes:
        nonlocal n_read
        n_read += 1
        return b"digest"

    monkeypatch.setattr("exadask.files._hashed", hashed)
    assert file.digest() == file.digest() == File(os.fspath(file)).digest()
    assert n_read == 1


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no such file"):
        File(tmp_path / "missing")
    with pytest.raises(InvalidRequest, match="no such file"):
        File(tmp_path)
    (tmp_path / "a").touch()
    file = File(tmp_path / "a")
    (tmp_path / "a").unlink()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        given(file)


def test_path_of_a_file_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.chdir(tmp_path)
    file = File("a")
    assert file.path == os.fspath(file) == str(tmp_path / "a")
    assert cloudpickle.loads(cloudpickle.dumps(file)) == file


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((1, threading.Lock()), {}, "argument 2 (a lock)"),
        (({"a": [1, threading.Lock()]},), {}, "argument 1['a'][1] (a lock)"),
        (([],), {"k": {(1, 2): (n for n in [1])}}, "argument 'k'[(1, 2)] (a generator)"),
        ((Box(file=[io.StringIO, sys.__stdin__]),), {}, "argument 1.file[1] (a TextIOWrapper)"),
        ((Slotted(threading.Lock()),), {}, "argument 1.value (a lock)"),
        ((functools.partial(print, threading.Lock()),), {}, "argument 1[1][0] (a lock)"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_unhashable_value_is_named(args: Any, kwargs: Any, where: str) -> None:
    with pytest.raises(UnhashableValue) as caught:
        given(*args, **kwargs)
    assert caught.value.task == "relax"
    assert caught.value.where == where
    assert "cannot pickle" in caught.value.reason


def test_deep_nesting_is_refused_in_short() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UnhashableValue, match="too deeply") as caught:
        given(deep)
    assert len(str(caught.value)) < 500
    while deep:  # to free it all at once would overflow the stack
        deep = deep.pop()
