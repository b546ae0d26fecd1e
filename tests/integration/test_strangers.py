"""What another user of the same machine can do to a run: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed.comm import connect
from distributed.security import Security

import exadask as xd
from exadask.runtime.certificates import create_certificates
from exadask.testing.waiting import eventually

STRANGER = """
import json, socket, ssl, sys, urllib.request, urllib.error
from pathlib import Path

def read(path):
    try:
        return Path(path).read_text()
    except OSError as error:
        return type(error).__name__

def speak(port, context):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            sock = raw if context is None else context.wrap_socket(raw, server_hostname="x")
            sock.settimeout(10)
            if context is None:
                sock.sendall(b"x" * 64)
            return "heard %d bytes" % len(sock.recv(1))
    except OSError as error:
        return type(error).__name__

def fetch(url, headers):
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code

facts = json.loads(sys.stdin.read())
anonymous = ssl.create_default_context()
anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
forged = ssl.create_default_context()
forged.check_hostname, forged.verify_mode = False, ssl.CERT_NONE
forged.load_cert_chain(facts["forged"] + "/certificate.pem", facts["forged"] + "/key.pem")
print(json.dumps({
    "files": {path: read(path) for path in facts["files"]},
    "tls": {port: [speak(port, None), speak(port, anonymous), speak(port, forged)]
            for port in facts["ports"]},
    "dashboard": {path: fetch(facts["dashboard"] + path, {}) for path in facts["pages"]},
    "guessed": fetch(facts["dashboard"] + "/status?token=guessed", {}),
    "cookie": fetch(facts["dashboard"] + "/status", {"Cookie": facts["cookie"]}),
}))
"""


@pytest.fixture(scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[xd.Executor]:
    """One agent on this machine, reached over the network."""
    pytest.importorskip("bokeh", reason="the dashboard needs bokeh")
    pool = xd.Pool.declare("here", batch="local", interface="lo", walltime="5m")
    with xd.Executor(
        pools=[pool], run_folder=tmp_path_factory.mktemp("runs"), segment_bytes="1MiB"
    ) as executor:
        assert executor.submit(pow, 2, 10).result(60) == 1024
        yield executor


def ports_of(ex: xd.Executor) -> list[int]:
    """Where scheduler and agents listen."""
    workers = ex.client.scheduler_info(n_workers=-1)["workers"]
    addresses = [ex.client.scheduler.address, *workers]
    return [int(address.rpartition(":")[2]) for address in addresses]


def forge(folder: Path) -> None:
    """Make a key and a certificate as exadask does, for another run, and readable."""
    create_certificates(folder / "tls")
    (folder / "tls").chmod(0o755)
    for path in (folder / "tls").iterdir():
        path.chmod(0o644)


@pytest.fixture(scope="module")
def seen(ex: xd.Executor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the user nobody finds out."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become nobody")
    forged = Path("/tmp") / f"exadask-{os.getpid()}-forged"
    forged.mkdir(mode=0o755)
    try:
        forge(forged)
        run = ex.run_folder
        assert run is not None
        assert ex.dashboard is not None
        url = re.match(r"http://localhost:\d+", ex.dashboard)
        assert url is not None
        facts = {
            "files": [str(run / "tls" / "key.pem"), str(run / "cluster.json"), str(run)],
            "ports": ports_of(ex),
            "dashboard": url.group(),
            "pages": ["/status", "/metrics", "/json/counts.json", "/info/main/workers.html", "/"],
            "forged": str(forged / "tls"),
            "cookie": "exadask-00000000=guessed",
        }
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", STRANGER],
            input=json.dumps(facts),
            user=pwd.getpwnam("nobody").pw_uid,
            group=pwd.getpwnam("nobody").pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    finally:
        shutil.rmtree(forged)


def test_no_file_can_be_read(seen: dict[str, Any]) -> None:
    assert set(seen["files"].values()) == {"PermissionError"}


def test_neither_scheduler_nor_agent_talks_without_the_key(seen: dict[str, Any]) -> None:
    assert len(seen["tls"]) == 2
    for port, (plain, anonymous, forged) in seen["tls"].items():
        assert plain in ("heard 0 bytes", "ConnectionResetError"), port
        assert anonymous in ("SSLError", "ConnectionResetError"), port
        assert forged in ("SSLError", "ConnectionResetError"), port


def test_the_dashboard_shows_nothing(seen: dict[str, Any]) -> None:
    assert set(seen["dashboard"].values()) == {403}
    assert seen["guessed"] == seen["cookie"] == 403


def test_the_cluster_is_well_after_strangers(ex: xd.Executor, seen: dict[str, Any]) -> None:
    assert ex.submit(pow, 3, 2).result(60) == 9
    assert len(ex.nodes) == 1


def test_a_peer_of_dask_without_the_key_is_refused(ex: xd.Executor, tmp_path: Path) -> None:
    async def knock(address: str, security: Security | None) -> None:
        arguments = security.get_connection_args("client") if security is not None else {}
        comm = await connect(address, timeout=3, **arguments)
        await asyncio.wait_for(comm.read(), 3)

    other = create_certificates(tmp_path / "tls")
    address = ex.client.scheduler.address
    plain = address.replace("tls://", "tcp://")
    for target, security in ((address, None), (plain, None), (address, other)):
        with pytest.raises((OSError, TypeError, ValueError, asyncio.TimeoutError)):
            asyncio.run(knock(target, security))


def test_the_owner_sees_the_dashboard(ex: xd.Executor) -> None:
    import http.cookiejar
    import urllib.request

    assert ex.dashboard is not None
    url, _, tunnel = ex.dashboard.partition(" ")
    assert "ssh -N -L" in tunnel
    jar = http.cookiejar.CookieJar(
        http.cookiejar.DefaultCookiePolicy(strict_ns_domain=0, strict_rfc2965_unverifiable=False)
    )
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    page = opener.open(url.replace("localhost", "127.0.0.1"), timeout=20)
    assert page.status == 200
    assert "token=" not in page.url
    assert b"bokeh" in page.read().lower()


def test_only_loopback_listens_here(ex: xd.Executor) -> None:
    from exadask.testing import leaks

    eventually(lambda: len(ex.nodes) == 1)
    assert {address for address, _ in leaks.listening_ports()} == {"127.0.0.1"}
