"""Whether a function must be packed again: never too seldom, and not each time."""

from __future__ import annotations

import enum
import functools
import logging
import math
import operator
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exadask.captures import Captures
from exadask.tasks import Task, TaskOptions, task

Space = dict[str, Any]


def main(source: str, **more: Any) -> Space:
    """Run source as if it were the user's program."""
    space: Space = {"__name__": "__main__", **more}
    run(source, space)
    return space


def run(source: str, space: Space) -> None:
    exec(compile(source, "<program>", "exec", dont_inherit=True), space)


def watched(function: Any) -> Captures:
    captures = Captures.of(function)
    assert captures is not None
    assert captures.are_unchanged()
    return captures


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module that other processes could import."""
    made = types.ModuleType("captured_module")
    sys.modules["captured_module"] = made
    run(
        "NUMBER = 3\n"
        "class Kind:\n    def method(self): return NUMBER\n"
        "def function(x): return x + NUMBER\n"
        "def maker():\n    def inner(x): return x + NUMBER\n    return inner\n",
        vars(made),
    )
    yield made
    del sys.modules["captured_module"]


# --- what can be watched ----------------------------------------------------------------------

PLAIN = "def f(x): return x + 1"
USES = "def f(x): return g"

WATCHED = {
    "plain": PLAIN,
    "lambda": "f = lambda x: x + 1",
    "constants": "f = lambda x: (a, b, c)\na, b, c = 1, 'text', (1.5, None, (b'x', ...))",
    "frozenset": "f = lambda x: x in g\ng = frozenset({1, 2})",
    "module": "import math\ndef f(x): return math.sin(x)",
    "submodule": "import os.path\ndef f(x): return os.path.join(x)",
    "name of a module": "from os.path import join as g\n" + USES,
    "builtin": "from math import sin as g\n" + USES,
    "class": "from pathlib import Path as g\n" + USES,
    "method of a class": "g = str.upper\n" + USES,
    "ufunc": "from numpy import exp as g\n" + USES,
    "array function": "from numpy import concatenate as g\n" + USES,
    "numpy number": "import numpy\ng = numpy.float64(3)\n" + USES,
    "path": "from pathlib import Path\ng = Path('/tmp')\n" + USES,
    "pattern": "import re\ng = re.compile('a+')\n" + USES,
    "enum member": "import re, signal\ng = (re.IGNORECASE, signal.SIGTERM)\n" + USES,
    "logger": "import logging\ng = logging.getLogger('exadask.user')\n" + USES,
    "function": "def g(): return h()\ndef h(): return 1\n" + USES,
    "cycle": "def g(): return f\n" + USES,
    "itself": "def f(x): return f(x - 1)",
    "closure": "def outer(n, g):\n def f(x): return g(x + n)\n return f\nf = outer(2, lambda x: x)",
    "recursive closure": "def outer():\n def f(x): return f(x)\n return f\nf = outer()",
    "nested": "def f(x):\n def inner(): return [g for _ in x]\n return inner\ng = 3",
    "defaults": "def f(x, y=1, *, z='a', w=(1, 2)): return x",
    "annotations": (
        "from typing import Any, Callable, Optional\nfrom pathlib import Path\n"
        "def f(x: int | None, y: list[int], z: Optional[Path], w: Callable[[int], str]) -> Any: 0"
    ),
    "text annotations": "from __future__ import annotations\ndef f(x: Whatever) -> [1]: 0",
    "attributes": "def f(x): return f.limit\nf.limit = 3",
    "decorated": (
        "import functools\ndef deco(g):\n"
        " @functools.wraps(g)\n def run(*a): return g(*a)\n return run\n"
        "@deco\ndef f(x): return x"
    ),
    "partial": "import functools\ndef g(x, y, z): return x\nf = functools.partial(g, 1, z=(2, 3))",
    "missing": "def f(x): return not_yet_there",
    "generator": "async def f(x): yield x",
}

UNWATCHED = {
    "list": "f = lambda x: g\ng = [1]",
    "dict": "f = lambda x: g\ng = {}",
    "array": "import numpy\nf = lambda x: g\ng = numpy.ones(3)",
    "random numbers": "import random\nf = lambda x: g\ng = random.Random()",
    "list within": "f = lambda x: g\ng = (1, (2, [3]))",
    "subclass of a constant": "class Mine(int): 0\nf = lambda x: g\ng = Mine()",
    "instance": "class Mine: 0\nf = lambda x: g\ng = Mine()",
    "class": "class Mine: 0\nf = lambda x: Mine",
    "class itself": "class f: 0",
    "enum": "import enum\nclass Mine(enum.Enum):\n A = 1\nf = lambda x: Mine.A",
    "enum member": "import enum\nclass Mine(enum.Enum):\n A = 1\ng = Mine.A\nf = lambda x: g",
    "default": "def f(x, seen=[]): return seen",
    "keyword default": "def f(x, *, seen={}): return seen",
    "annotation": "class Mine: 0\ndef f(x: Mine): return x",
    "annotation within": "class Mine: 0\ndef f(x: list[Mine] | None): return x",
    "attribute": "def f(x): return f.seen\nf.seen = []",
    "closure": "def outer(seen):\n def f(x): return seen\n return f\nf = outer([])",
    "empty cell": "def outer():\n def f(x): return y\n return f\n y = 1\nf = outer()",
    "deep": "def g(): return h()\ndef h(): return seen\nseen = []\nf = lambda x: g",
    "nested code": "def f(x):\n def inner(): return seen\n return inner\nseen = []",
    "method": "class Mine:\n def run(self): 0\nf = Mine().run",
    "method of a class": "class Mine:\n @classmethod\n def run(cls): 0\nf = Mine.run",
    "method of a list": "f = [].append",
    "callable": "class Mine:\n def __call__(self): 0\nf = Mine()",
    "partial": "import functools\nf = functools.partial(print, [1])",
    "partial keyword": "import functools\nf = functools.partial(print, end=[1])",
    "partial of a method": "import functools\nf = functools.partial([].append, 1)",
    "cached": "import functools\n@functools.lru_cache\ndef f(x): return x",
    "dynamic module": "import types\ng = types.ModuleType('nowhere')\nf = lambda x: g",
}


@pytest.mark.parametrize("case", WATCHED)
def test_watched(case: str) -> None:
    function = main(WATCHED[case])["f"]
    captures = watched(function)
    first = cloudpickle.dumps(function)
    assert captures.are_unchanged()
    assert cloudpickle.dumps(function) == first


@pytest.mark.parametrize("case", UNWATCHED)
def test_what_may_change_unseen_is_packed_at_every_call(case: str) -> None:
    assert Captures.of(main(UNWATCHED[case])["f"]) is None


@pytest.mark.parametrize(
    "function",
    [
        *(len, math.sin, str.upper, int, Path, re.compile, functools.partial(math.pow, 2.0)),
        *(np.exp, np.concatenate, np.linalg.norm),
    ],
    ids=repr,
)
def test_what_has_a_name_is_watched(function: Callable[..., Any]) -> None:
    watched(function)


class Unwilling:
    """Says nothing about itself."""

    def __call__(self) -> None:
        """Do nothing."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_object_that_raises_when_it_is_looked_at_is_not_watched() -> None:
    assert Captures.of(Unwilling()) is None
    assert Captures.of(main("f = lambda x: g", g=Unwilling())["f"]) is None


# --- what counts as a change ------------------------------------------------------------------

CHANGES = {
    "global": ("f = lambda x: g\ng = 1000", "g = 1001"),
    "global of another type": ("f = lambda x: g\ng = 1", "g = True"),
    "global that was missing": ("f = lambda x: g", "g = 1"),
    "global that goes": ("f = lambda x: g\ng = 1", "del g"),
    "builtin that is hidden": ("f = lambda x: len(x)", "len = 3"),
    "global of a nested function": ("def f(x):\n def i(): return g\n return i\ng = 1", "g = 2"),
    "global that is only written": ("def f(x):\n global g\n g = x", "g = 2"),
    "function it calls": ("def g(): 0\ndef f(x): return g()", "def g(): return 1"),
    "global of a function it calls": ("def g(): return n\nf = lambda x: g()\nn = 1", "n = 2"),
    "global of a function in a tuple": (
        "def g(): return n\nt = (g,)\nf = lambda: t\nn = 1",
        "n = 2",
    ),
    "code": (PLAIN, "f.__code__ = (lambda x: x + 2).__code__"),
    "code of a function it calls": ("def g(): 0\nf = lambda: g()", "g.__code__ = f.__code__"),
    "defaults": ("def f(x=1): return x", "f.__defaults__ = (2,)"),
    "new defaults": (PLAIN, "f.__defaults__ = (2,)"),
    "keyword defaults": ("def f(*, x=1): return x", "f.__kwdefaults__ = {'x': 2}"),
    "keyword default": ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
    "annotations": (PLAIN, "f.__annotations__ = {'x': int}"),
    "annotation": (PLAIN, "f.__annotations__['x'] = int"),
    "attribute": ("def f(x): 0\nf.a = 1", "f.a = 2"),
    "new attribute": (PLAIN, "f.a = 2"),
    "attributes": (PLAIN, "f.__dict__ = {'a': 1}"),
    "attribute that goes": ("def f(x): 0\nf.a, f.b = 1, 2", "del f.a"),
    "order of attributes": ("def f(x): 0\nf.a, f.b = 1, 2", "del f.a\nf.a = 1"),
    "name": (PLAIN, "f.__name__ = 'other'"),
    "qualified name": (PLAIN, "f.__qualname__ = 'other'"),
    "text about it": (PLAIN, "f.__doc__ = 'other'"),
    "home": (PLAIN, "f.__module__ = 'other'"),
    "package": (PLAIN, "__package__ = 'other'"),
    "file": (PLAIN, "__file__ = 'other.py'"),
    "cell": (
        "def outer():\n n = 1\n def f(): return n\n def more():\n  nonlocal n\n  n += 1\n"
        " return f, more\nf, more = outer()",
        "more()",
    ),
    "emptied cell": (
        "def outer():\n n = 1\n def f(): return n\n def less():\n  nonlocal n\n  del n\n"
        " return f, less\nf, less = outer()",
        "less()",
    ),
    "function in a cell": (
        "def outer(g): return lambda: g()\nf = outer(lambda: n)\nn = 1",
        "n = 2",
    ),
    "default that is a function": ("f = lambda g=lambda: n: g()\nn = 1", "n = 2"),
    "attribute that is a function": ("f = lambda: 0\nf.g = lambda: n\nn = 1", "n = 2"),
    "function of a partial": (
        "import functools\nf = functools.partial(lambda x: n, 1)\nn = 1",
        "n = 2",
    ),
    "keyword of a partial": (
        "import functools\nf = functools.partial(print, end='a')",
        "f.keywords['end'] = 'b'",
    ),
    "attribute of a partial": ("import functools\nf = functools.partial(print)", "f.a = 1"),
    "name of a logger": (
        "import logging\ng = logging.Logger('one')\nf = lambda: g",
        "g.name = 'two'",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_change_is_noticed(case: str) -> None:
    before, change = CHANGES[case]
    space = main(before)
    captures = watched(space["f"])
    run(change, space)
    assert not captures.are_unchanged()


OTHERS = {
    "another global": ("f = lambda x: g\ng = 1", "h = 2"),
    "attribute of that name": ("f = lambda x: x.g", "g = 1"),
    "local of that name": ("def f(x):\n g = 1\n return g", "g = 2"),
    "same value again": ("f = lambda x: g\ng = 'one'", "g = 'one'"),
    "back again": ("f = lambda x: g\ng = 1", "g = 2\ng = 1"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_things_may_change(case: str) -> None:
    before, change = OTHERS[case]
    space = main(before)
    captures = watched(space["f"])
    run(change, space)
    assert captures.are_unchanged()


def test_import_that_adds_what_the_code_can_reach_is_a_change() -> None:
    package = types.ModuleType("captured_package")
    package.__package__ = "captured_package"
    sys.modules["captured_package"] = package
    try:
        function = main("def f(x): return g.part.value(g.other)", g=package)["f"]
        captures = watched(function)
        sys.modules["captured_package.unrelated"] = types.ModuleType("captured_package.unrelated")
        assert captures.are_unchanged()
        first = cloudpickle.dumps(function)
        sys.modules["captured_package.part"] = types.ModuleType("captured_package.part")
        assert cloudpickle.dumps(function) != first
        assert not captures.are_unchanged()
    finally:
        for name in [name for name in sys.modules if name.startswith("captured_package")]:
            del sys.modules[name]


# --- what travels by name ---------------------------------------------------------------------


def test_function_of_a_module_may_use_what_it_likes(module: types.ModuleType) -> None:
    captures = watched(module.function)
    module.__dict__["NUMBER"] = [4]
    module.function.__dict__["seen"] = []
    assert captures.are_unchanged(), "only its name travels"


@pytest.mark.parametrize("name", ["function", "Kind"])
def test_reloaded_module_is_a_change(module: types.ModuleType, name: str) -> None:
    captures = watched(getattr(module, name))
    user = watched(main("f = lambda x: g", g=getattr(module, name))["f"])
    run("def function(x): return x\nclass Kind: 0", vars(module))
    assert not captures.are_unchanged()
    assert not user.are_unchanged()


def test_method_in_a_class_is_found_by_its_name(module: types.ModuleType) -> None:
    captures = watched(module.Kind.method)
    module.Kind.method = lambda self: 4
    assert not captures.are_unchanged()


def test_module_that_goes_is_a_change(module: types.ModuleType) -> None:
    users = [watched(module.function), watched(main("f = lambda x: g", g=module)["f"])]
    del sys.modules["captured_module"]
    assert [one.are_unchanged() for one in users] == [False, False]
    sys.modules["captured_module"] = module


def test_function_made_in_a_module_travels_by_value(module: types.ModuleType) -> None:
    captures = watched(module.maker())
    module.__dict__["NUMBER"] = 4
    assert not captures.are_unchanged()


def test_function_that_gets_a_name_later_is_a_change(module: types.ModuleType) -> None:
    inner = module.maker()
    inner.__qualname__ = "late"
    captures = watched(inner)
    first = cloudpickle.dumps(inner)
    module.__dict__["late"] = inner
    assert cloudpickle.dumps(inner) != first
    assert not captures.are_unchanged()


def test_module_registered_to_travel_by_value(module: types.ModuleType) -> None:
    by_name = watched(module.function)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert not by_name.are_unchanged()
        by_value = watched(module.function)
        assert Captures.of(module.Kind) is None
        assert Captures.of(main("f = lambda x: g", g=module)["f"]) is None
        module.__dict__["NUMBER"] = 4
        assert not by_value.are_unchanged()
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert by_name.are_unchanged()


def test_enum_of_a_module_is_watched(module: types.ModuleType) -> None:
    run("import enum\nclass Color(enum.Enum):\n RED = 1\n ODD = [1]", vars(module))
    assert isinstance(module.Color.RED, enum.Enum)
    watched(main("f = lambda x: g", g=module.Color.RED)["f"])
    assert Captures.of(main("f = lambda x: g", g=module.Color.ODD)["f"]) is None


def test_cached_function_of_a_module_travels_by_name(module: types.ModuleType) -> None:
    run("import functools\n@functools.lru_cache\ndef cached(x): return x", vars(module))
    captures = watched(module.cached)
    module.__dict__["cached"] = functools.lru_cache(len)
    assert not captures.are_unchanged()


# --- tasks ------------------------------------------------------------------------------------


def test_task_of_main_is_watched_through() -> None:
    space = main("@task(cores=2)\ndef f(x): return g\ng = 1", task=task)
    captures = watched(space["f"])
    space["g"] = 2
    assert not captures.are_unchanged()
    space["g"] = []
    assert Captures.of(space["f"]) is None


def test_task_of_a_plain_function_is_watched(module: types.ModuleType) -> None:
    module.function.__dict__["seen"] = []
    captures = watched(Task(module.function, TaskOptions()))
    run("def function(x): return x", vars(module))
    assert not captures.are_unchanged()


def test_task_of_something_without_a_name_is_watched() -> None:
    watched(Task(functools.partial(math.pow, 2.0), TaskOptions()))
    assert Captures.of(Task(operator.itemgetter(1), TaskOptions())) is None


def test_task_of_a_module_is_watched_by_its_name(module: types.ModuleType) -> None:
    module.__dict__["task"] = task
    run("SEEN = []\n@task(cores=2)\ndef work(x): return SEEN", vars(module))
    captures = watched(module.work)
    watched(main("f = lambda x: g(x)", g=module.work)["f"])
    module.__dict__["work"] = module.work.with_options(cores=3)
    assert not captures.are_unchanged()


@pytest.mark.parametrize("home", ["main", "module"])
def test_setup_is_watched_wherever_the_task_is(module: types.ModuleType, home: str) -> None:
    source = "@task(setup=lambda: n)\ndef f(state, x): return x\nn = 1"
    space = main("", task=task) if home == "main" else vars(module)
    space["task"] = task
    run(source, space)
    captures = watched(space["f"])
    space["n"] = 2
    assert not captures.are_unchanged(), "a setup without a name travels by value"
    space["n"] = []
    assert Captures.of(space["f"]) is None


def test_task_that_a_function_calls_is_watched() -> None:
    space = main("f = lambda x: g(x)\n@task(cores=2)\ndef g(x): return n\nn = 1", task=task)
    captures = watched(space["f"])
    space["n"] = 2
    assert not captures.are_unchanged()
    captures = watched(space["f"])
    space["g"].options = TaskOptions()
    assert not captures.are_unchanged()
    captures = watched(space["f"])
    space["g"].note = "more"
    assert not captures.are_unchanged()
    space["g"].note = []
    assert Captures.of(space["f"]) is None


# --- against cloudpickle itself ---------------------------------------------------------------

PROGRAM = """
import functools, logging, math, os.path
a, b, t = 1000, "text", (1, (2.5, "x"))
def leaf(x, y=3, *, z=4): return x + a + y + z
def make(n):
    def inner(x): return leaf(x) + n
    def again(m):
        nonlocal n
        n = m
    inner.again = None
    return inner, again
inner, again = make(5)
part = functools.partial(leaf, 7, z=8)
def f(x: int, scale: float = 1.0) -> float:
    def nested(): return [t, late, os.path.sep]
    return math.sin(inner(x) + part() + len(b)) * scale
f.limit = 9
"""
MUTATIONS = [
    *("a = 1001", "a = True", "a = 1000", "b = 'text'", "b = b + '!'", "del t", "t = (1, 2)"),
    *("late = 3", "late = None", "late = f", "unused = 3", "x = 3", "scale = 2", "sin = 3"),
    *("leaf = lambda x: x", "leaf.__defaults__ = (4,)", "leaf.__kwdefaults__ = None"),
    *("leaf.__kwdefaults__ = {'z': 5}", "leaf.__code__ = (lambda x, y: b).__code__"),
    *("again(6)", "again('six')", "again(f)", "inner, again = make(5)", "inner.again = 1"),
    *("part.keywords['z'] = 9", "part.keywords['y'] = 1", "part.note = 1", "part = leaf"),
    *("f.limit = 10", "del f.limit", "f.more = leaf", "f.__doc__ = 'text'", "f.__name__ = 'g'"),
    *("f.__annotations__['x'] = str", "f.__annotations__ = {}", "f.__qualname__ = 'g'"),
    *("math = os", "len = leaf", "import math", "import os.path", "__file__ = 'here.py'"),
    *("f.__defaults__ = (2.0,)", "f.__defaults__ = None", "f.__dict__ = {}", "logging = None"),
]


@settings(max_examples=100, deadline=None)
@given(script=st.lists(st.sampled_from(MUTATIONS), max_size=12))
def test_unchanged_means_that_cloudpickle_gives_the_same(script: list[str]) -> None:
    space = main(PROGRAM)
    captures, known = Captures.of(space["f"]), cloudpickle.dumps(space["f"])
    for mutation in script:
        try:
            run(mutation, space)
        except (NameError, AttributeError, KeyError):
            continue  # an earlier one has made it impossible
        now = cloudpickle.dumps(space["f"])
        assert captures is not None
        if captures.are_unchanged():
            assert now == known, mutation
        else:
            captures, known = Captures.of(space["f"]), now
            assert captures is not None
            assert captures.are_unchanged(), "as soon as it has been looked at anew"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_mutation_alone(mutation: str) -> None:
    space = main(PROGRAM, late=1)
    captures, known = watched(space["f"]), cloudpickle.dumps(space["f"])
    run(mutation, space)
    has_changed = cloudpickle.dumps(space["f"]) != known
    assert not (has_changed and captures.are_unchanged())


def test_checks_are_few_for_a_simple_function() -> None:
    captures = watched(main("import math\nn = 3\ndef f(x): return math.sin(x) + n")["f"])
    checks = (captures._lookups, captures._parts, captures._cells, captures._mappings)
    assert sum(len(one) for one in checks) <= 8


def test_loggers_travel_by_their_names() -> None:
    space = main("f = lambda x: g", g=logging.getLogger())
    captures, known = watched(space["f"]), cloudpickle.dumps(space["f"])
    assert cloudpickle.dumps(space["f"]) == known
    assert captures.are_unchanged()
