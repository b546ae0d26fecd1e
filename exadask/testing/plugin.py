"""A pytest plugin for site authors: the conformance suite on the batch system of this machine.

From a folder that the nodes see too, such as one below the home directory::

    pytest -p exadask.testing.plugin --pyargs exadask.testing.conformance --batch NAME

Options:

``--batch NAME``
    The batch system, as in `Pool.batch`: slurm, pbs, lsf, sge, oar, htcondor, flux, local, or
    psij:EXECUTOR. Repeat it to test several.
``--batch-fact KEY=VALUE``
    A fact of the pool as for `Pool.declare`, such as ``queue=debug``, ``account=abc123``,
    ``cores=64`` or ``launcher=ssh``; numbers, true, false and lists are written as in TOML.
    ``nodes`` is the size of the jobs with several nodes (2; 1 leaves those tests out). Repeat it
    for each fact.
``--batch-folder FOLDER``
    Where the jobs' folders are made; the current folder by default. They are removed when all
    tests have passed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exadask.errors import ExadaskError
from exadask.pool import Pool

pytest.register_assert_rewrite("exadask.testing.conformance", "exadask.testing.harness")

from exadask.testing.harness import CAPABILITIES, Harness  # noqa: E402  # after its registration

_SUITE = "exadask.testing.conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; see above."""
    group = parser.getgroup("exadask", "conformance with a batch system")
    group.addoption("--batch", action="append", default=[], metavar="NAME", help="batch system")
    group.addoption(
        "--batch-fact",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fact of the pool, such as queue=debug",
    )
    group.addoption(
        "--batch-folder",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where the jobs' folders are made; the nodes must see it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the suite's markers known, also where no configuration does."""
    config.addinivalue_line("markers", "conformance: asks a batch system, or something like it")
    config.addinivalue_line("markers", "timeout(seconds): of the plugin pytest-timeout")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the suite for each batch system that was named."""
    if metafunc.module.__name__.endswith(_SUITE) and "harness" in metafunc.fixturenames:
        names = metafunc.config.getoption("--batch")
        if not names:
            raise pytest.UsageError(
                f"say which batch system: --batch NAME ({', '.join(CAPABILITIES)})"
            )
        metafunc.parametrize("harness", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """The batch system of this machine, as the options describe it."""
    facts = dict(map(_fact, request.config.getoption("--batch-fact")))
    nodes = facts.pop("nodes", None)
    try:
        pool = Pool.declare("conformance", batch=request.param, **facts)
    except ExadaskError as error:
        raise pytest.UsageError(str(error)) from error
    can = CAPABILITIES[pool.batch]
    if nodes is not None:
        can = replace(can, nodes=nodes)
    parent = request.config.getoption("--batch-folder").resolve()
    folder = Path(tempfile.mkdtemp(prefix="exadask-conformance-", dir=parent))
    made = Harness(pool, folder, capabilities=can)
    failed_before = request.session.testsfailed
    try:
        yield made
    finally:
        made.close()
        if request.session.testsfailed == failed_before:
            shutil.rmtree(folder)


def _fact(text: str) -> tuple[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # Python 3.10 only
    key, is_said, value = text.partition("=")
    if not is_said:
        raise pytest.UsageError(f"--batch-fact {text!r}: write KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:  # a text without quotes
        return key, value
