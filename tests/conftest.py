"""Fixtures: executors, and a check after every test that nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import exadask as xd
from exadask.testing import leaks


@pytest.fixture(scope="session", autouse=True)
def _runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the folders of runs away from the checkout, also those of programs that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXADASK_RUN_FOLDER", str(tmp_path_factory.mktemp("exadask-runs")))
        yield


@pytest.fixture(scope="module")
def ex() -> Iterator[xd.Executor]:
    """One declared node of four cores and one GPU, for all tests of a module."""
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=4, gpus=1, memory="8GiB")]) as executor:
        yield executor


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Fail the module whose executors leave processes, ports or temporary files."""
    files, ports = leaks.leftover_files(), leaks.listening_ports()
    yield
    assert leaks.leftover_processes() == set()
    assert leaks.listening_ports() - ports == set()
    assert leaks.leftover_files() - files == set()
