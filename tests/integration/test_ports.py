"""An embedded cluster opens no port, and its children inherit no socket of its agent."""

from __future__ import annotations

from pathlib import Path

import exadask as xd
from exadask.testing import leaks


def open_sockets() -> list[str]:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [str(link.readlink()) for link in links if str(link.readlink()).startswith("socket:")]


def test_no_network_port_is_opened(ex: xd.Executor) -> None:
    before = leaks.listening_ports()
    assert ex.submit(abs, -1).result(30) == 1
    ex.client.submit(abs, -2).result(30)
    assert leaks.listening_ports() == before
    assert not [address for address, _ in before if address in ("0.0.0.0", "::")]


def test_child_has_one_socket_its_own(ex: xd.Executor) -> None:
    assert len(ex.submit(open_sockets).result(30)) == 1
