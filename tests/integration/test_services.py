"""Services: processes that live beside tasks, which get their address."""

from __future__ import annotations

import os
import signal
import socket
import sys
import urllib.request
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import exadask as xd
from exadask.errors import DependencyFailed, ImpossibleRequest, InvalidRequest, ServiceFailed
from exadask.runtime.limits import is_alive
from exadask.services import Server
from exadask.testing.waiting import eventually
from tests.integration.test_local_pool import Site

pytestmark = pytest.mark.dask

LONG_S = 60

# Answers with its process id and a text; notes each start; /health only when a file is there.
SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

host, port, text, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
with (folder / "starts").open("a") as file:
    file.write(f"{os.getpid()}\\n")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        is_well = self.path != "/health" or (folder / "healthy").exists()
        self.send_response(200 if is_well else 503)
        self.end_headers()
        self.wfile.write(f"{os.getpid()} {text}".encode())
    def log_message(self, *_):
        pass

print("serving", flush=True)
HTTPServer((host, port), Handler).serve_forever()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A small server."""
    made = tmp_path / "server.py"
    made.write_text(SERVER)
    return made


def serving(script: Path, **options: Any) -> Any:
    template = f"{sys.executable} {script} {{host}} {{port}} {{text}} {script.parent}"
    return xd.service(template, name="server", **options)


def ask(server: Any, path: str = "/") -> str:
    with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def starts(script: Path) -> list[int]:
    file = script.parent / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture
def four() -> Any:
    """Four cores."""
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=4, memory="8GiB")]) as executor:
        yield executor


# -- when all is well -----------------------------------------------------------------------------


def test_tasks_get_the_address_when_it_is_ready(four: xd.Executor, script: Path) -> None:
    server = serving(script, cores=2, ready=xd.http("/health")).start(text="good morning")
    assert isinstance(server, Server)
    answers = [four.submit(ask, server) for _ in range(5)]
    eventually(lambda: starts(script), timeout_s=LONG_S)
    assert not any(one.done() for one in answers), "it is not ready"
    waiting = four.options(cores=3).submit(abs, -1)
    eventually(lambda: "needs 3 cores" in waiting.explain(), timeout_s=LONG_S)
    (script.parent / "healthy").touch()
    (pid,) = starts(script)
    assert [one.result(LONG_S) for one in answers] == [f"{pid} good morning"] * 5
    assert list(four.map(ask, [server] * 100)) == [f"{pid} good morning"] * 100
    address = server.result(LONG_S)
    assert address.host == "127.0.0.1"
    assert str(address) == f"127.0.0.1:{address.port}"
    assert server.node == "node-0"
    eventually(lambda: server.stdout() == "serving\n")
    assert server.cancel()
    assert waiting.result(LONG_S) == 1, "its cores are free again"
    eventually(lambda: not is_alive(pid))


def test_it_ends_with_its_executor(script: Path) -> None:
    with xd.Executor(nodes=[xd.NodeShape.declare(cores=2)]) as executor:
        server = serving(script).start(text="x")
        last = executor.submit(ask, server)
    (pid,) = starts(script)
    assert last.result(0) == f"{pid} x", "what was submitted before is done first"
    assert not is_alive(pid)


def test_several_serve_side_by_side(four: xd.Executor, script: Path) -> None:
    servers = [serving(script).start(text=text) for text in ("one", "two")]
    answers = [four.submit(ask, one).result(LONG_S).split()[1] for one in servers]
    assert answers == ["one", "two"]
    assert len({one.result(0).port for one in servers}) == 2


def test_on_a_pool_it_is_reached_by_the_network(tmp_path: Path, script: Path) -> None:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    with site.open() as executor:
        server = serving(script).start(text="far")
        assert executor.submit(ask, server).result(LONG_S).endswith(" far")
        (pid,) = starts(script)
    eventually(lambda: not is_alive(pid))
    site.check_nothing_is_left()


# -- when something goes wrong ----------------------------------------------------------------


def test_one_that_ends_before_it_is_ready_fails_who_waits(four: xd.Executor) -> None:
    server = xd.service("echo sorry >&2; false {port}").start()
    answer = four.submit(ask, server)
    with pytest.raises(DependencyFailed, match=r"echo.*ended with code 1, not ready"):
        answer.result(LONG_S)
    with pytest.raises(ServiceFailed, match="sorry"):
        server.result(LONG_S)
    with pytest.raises(DependencyFailed):
        four.submit(ask, server).result(LONG_S)


def test_one_that_does_not_become_ready_in_time_is_ended(four: xd.Executor, script: Path) -> None:
    server = serving(script, ready=xd.http("/health"), start_timeout=2).start(text="x")
    with pytest.raises(ServiceFailed, match="not ready after 2 s"):
        server.result(LONG_S)
    eventually(lambda: not any(map(is_alive, starts(script))))


def test_one_that_dies_fails_who_comes_later(four: xd.Executor, script: Path) -> None:
    server = serving(script).start(text="x")
    assert four.submit(ask, server).result(LONG_S)
    (pid,) = starts(script)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "does not serve" in str(later(four, server)), timeout_s=LONG_S)


def later(executor: xd.Executor, server: Any) -> BaseException | None:
    return executor.submit(ask, server).exception(LONG_S)


def test_one_that_dies_is_started_again_and_has_another_address(
    four: xd.Executor, script: Path
) -> None:
    server = serving(script, retries=3).start(text="again")
    first = server.result(LONG_S)
    (pid,) = starts(script)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(starts(script)) == 2, timeout_s=LONG_S)
    eventually(lambda: later(four, server) is None, timeout_s=LONG_S)
    assert four.submit(ask, server).result(LONG_S) == f"{starts(script)[1]} again"
    assert server.result(0) != first


def test_one_whose_node_is_lost_is_started_on_another(script: Path) -> None:
    from exadask.runtime.cluster import EmbeddedCluster

    shape = xd.NodeShape.declare(cores=2)
    with xd.Executor(nodes=[shape, shape]) as executor:
        server = serving(script).start(text="moved")
        server.result(LONG_S)
        node = server.node
        assert node is not None
        assert isinstance(executor._cluster, EmbeddedCluster)
        executor._cluster.lose_node(node)
        eventually(lambda: len(starts(script)) == 2, timeout_s=LONG_S)
        eventually(lambda: later(executor, server) is None, timeout_s=LONG_S)
        assert server.node not in (None, node)


def test_one_that_is_stopped_fails_who_waits(four: xd.Executor, script: Path) -> None:
    server = serving(script, ready=xd.http("/health")).start(text="x")
    answer = four.submit(ask, server)
    eventually(lambda: starts(script), timeout_s=LONG_S)
    server.cancel()
    with pytest.raises((DependencyFailed, CancelledError)):
        answer.result(LONG_S)


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "options", "text"),
    [
        ("serve", {}, "says {port}"),
        (7, {}, "says {port}"),
        ("serve {port} {", {}, "brace without its partner"),
        ("serve {port}", {"memo": True}, "memo= is not for services"),
        ("serve {port}", {"ready": "/health"}, "xd.http"),
        ("serve {port}", {"core": 1}, "Did you mean 'cores'"),
    ],
)
def test_what_makes_no_sense_is_refused(template: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        xd.service(template, **options)


def test_values_must_be_those_of_the_template(four: xd.Executor, script: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"needs the values \['text'\]"):
        serving(script).start()
    with pytest.raises(InvalidRequest, match="Give a path"):
        xd.http("health")
    with pytest.raises(ImpossibleRequest):
        serving(script, cores=5).start(text="x")


def test_a_port_is_free_for_each(four: xd.Executor) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = xd.service("exec python3 -m http.server {port} --bind {host}").start()
        assert server.result(LONG_S).port != taken.getsockname()[1]
