"""``service``: a process that lives beside tasks, and whose address they get."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from exadask.commands import fields_of, text_of
from exadask.errors import InvalidRequest, ServiceFailed, shown
from exadask.future import Future
from exadask.runtime.bundling import Bundler
from exadask.runtime.call import Call
from exadask.runtime.parcel import Parcel
from exadask.runtime.tail import Tail
from exadask.tasks import Task, TaskOptions
from exadask.units import parse_seconds

if TYPE_CHECKING:
    from exadask.executor import Executor

_POLL_S = 0.05
_PROBE_TIMEOUT_S = 2.0
_TAIL_BYTES = 4000
_GIVEN = ("host", "port")


class Address(NamedTuple):
    """Where a service listens.

    Parameters
    ----------
    host : str
        An address of its node that the other nodes reach.
    port : int
        Its port.
    """

    host: str
    port: int

    @property
    def url(self) -> str:
        """The same as the beginning of a URL."""
        return f"http://{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Probe:
    """How to see that a service is ready; made by `http`.

    Parameters
    ----------
    path : str or None
        What is asked for by HTTP. None: that somebody listens is enough.
    """

    path: str | None = None

    def is_met(self, address: Address) -> bool:
        """Whether it is."""
        with contextlib.suppress(OSError, HTTPException):
            if self.path is None:
                socket.create_connection(address, _PROBE_TIMEOUT_S).close()
                return True
            asked = HTTPConnection(*address, timeout=_PROBE_TIMEOUT_S)
            try:
                asked.request("GET", self.path)
                return 200 <= asked.getresponse().status < 300
            finally:
                asked.close()
        return False


def http(path: str = "/") -> Probe:
    """Hold a service ready when it answers a GET of this path with success.

    Raises
    ------
    InvalidRequest
        That is no path.
    """
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidRequest(
            f"http({shown(path)}) is not valid.", "Give a path, such as '/health'."
        )
    return Probe(path)


def service(
    template: str,
    *,
    ready: Probe | None = None,
    start_timeout: float | str = "10m",
    **options: Any,
) -> Service:
    """Make a shell command a service: it lives beside tasks, and they get its address.

    Parameters
    ----------
    template : str
        The command, run by ``/bin/sh``. ``{port}`` is a free port of its node and ``{host}`` the
        address at which other nodes reach it; other names stand for values given to ``start``.
    ready : Probe, optional
        When it is ready: `http` ("/health"). None: when somebody listens at its port.
    start_timeout : float or str
        How long that may take ("10m" or seconds).
    **options
        As for `exadask.task`, but for ``setup``, ``isolation``, ``bundle``, ``memo`` and
        ``notice``. ``retries`` is how often it is started again when it has ended by itself; a lost
        node does not count.

    Returns
    -------
    Service
        ``start`` it; what that gives is an argument for tasks.

    Raises
    ------
    InvalidRequest
        The template or an option makes no sense.

    Examples
    --------
    >>> server = service("python -m http.server {port} --bind {host}", ready=http("/"))
    >>> server.fields
    ()
    """
    for name in ("setup", "isolation", "bundle", "memo", "notice", "checkpoint"):
        if name in options:
            raise InvalidRequest(f"{name}= is not for services.", "Leave it out.")
    if not isinstance(template, str) or "{port}" not in template:
        raise InvalidRequest(
            f"service() got {shown(template)}.",
            'Give the command as a text that says {port}: "serve --port {port}".',
        )
    if ready is not None and not isinstance(ready, Probe):
        raise InvalidRequest(f"ready={shown(ready)} is not valid.", 'Say ready=xd.http("/health").')
    fields = tuple(name for name in fields_of(template) if name not in _GIVEN)
    parsed = TaskOptions.parse({"name": shlex.split(template)[0], **options, "bundle": False})
    timeout_s = parse_seconds(start_timeout, name="start_timeout")
    return Service(template, fields, ready or Probe(), timeout_s, parsed)


class Service:
    """A command that can be started as a service; made by `service`."""

    def __init__(
        self,
        template: str,
        fields: tuple[str, ...],
        probe: Probe,
        start_timeout_s: float,
        options: TaskOptions,
    ) -> None:
        self.template, self.fields, self.probe = template, fields, probe
        self.start_timeout_s, self.options = start_timeout_s, options

    def start(self, **values: Any) -> Server:
        """Start it on a node of the active executor; returns at once.

        Parameters
        ----------
        **values
            One for each field.

        Returns
        -------
        Server
            The future of its `Address`: tasks that get it wait until it is ready.

        Raises
        ------
        NoActiveExecutor
            No executor is open.
        InvalidRequest
            A value is missing, or belongs to no field.
        ImpossibleRequest
            No node is large enough.
        """
        from exadask.active import active_executor

        if sorted(values) != sorted(self.fields):
            raise InvalidRequest(
                f"service {self.template!r} needs the values {list(self.fields)} and got "
                f"{list(values)}.",
                "Give each by its name, and no other.",
            )
        return _started(self, values, active_executor(self.options.name or "service"))

    def task(self, values: dict[str, Any], state: Path, cluster: Path | None) -> Task[Any, None]:
        """Give the task that runs it, and tells in a file how it is."""
        texts = {name: shlex.quote(text_of(value)) for name, value in values.items()}
        run = _Serve(self.template, texts, self.probe, self.start_timeout_s, str(state),
                     None if cluster is None else str(cluster))  # fmt: skip
        return Task(run, self.options)

    def __repr__(self) -> str:
        return f"<Service {self.template!r}: {self.options.request}>"


class Server(Future[Address]):
    """A service that was started: the future of its address. Made by `Service.start`."""

    def __init__(self, bundler: Bundler, call: Call, task: Future[None], state: Path) -> None:
        super().__init__(bundler, call)
        self._bundler, self._task, self._file = bundler, task, state
        self._seen = ""

    def cancel(self) -> bool:
        """End it; tasks that still wait for it fail.

        Returns
        -------
        bool
            False if it had ended already.
        """
        return self._task.cancel()

    @property
    def node(self) -> str | None:
        """The node where it runs or last ran; None before."""
        return self._task.node

    def stdout(self) -> str:
        """Give what it has written to standard output so far."""
        return self._task.stdout()

    def stderr(self) -> str:
        """Give what it has written to standard error so far."""
        return self._task.stderr()

    def look(self) -> bool:
        """See how it is, and pass that on; whether it may still change."""
        task = self._task
        is_over = task.done()
        with contextlib.suppress(OSError, ValueError):
            text = self._file.read_text()
            if text != self._seen:
                self._seen = text
                told = json.loads(text)
                self._tell(Address(told["host"], told["port"]))
        if is_over:
            error = None if task.cancelled() else task.exception()
            self._lose(error or ServiceFailed(self.name, "it was stopped", ""))
        return not is_over

    def _tell(self, address: Address) -> None:
        """Let tasks have its address; a new one if it was started again."""
        call, bundler = self._call, self._bundler

        def tell() -> None:
            packed = Parcel(pickle.dumps(address, 5))
            if call.observer is not None:
                bundler.finish_here(call, packed, is_told=False)
            else:  # it was started again: who comes from now on gets the new one
                call.value, self._loaded = packed, None

        self._on_loop(tell)

    def _lose(self, error: BaseException) -> None:
        """Let tasks that come for it fail."""
        call, bundler = self._call, self._bundler

        def tell() -> None:
            bundler.lose(call, error)

        self._on_loop(tell)

    def _on_loop(self, tell: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended, and nobody waits any more
            self._bundler.gateway.loop.call_soon_threadsafe(tell)


class _Serve:
    """Runs the command of a service on a node, and tells in a file where it listens."""

    def __init__(
        self,
        template: str,
        texts: dict[str, str],
        probe: Probe,
        start_timeout_s: float,
        state: str,
        cluster: str | None,
    ) -> None:
        self.template, self.texts, self.probe = template, texts, probe
        self.start_timeout_s, self.state, self.cluster = start_timeout_s, state, cluster
        self.__name__ = "service"

    def __call__(self) -> None:
        name = shlex.split(self.template)[0]
        address = Address(*_free_port(self.cluster))
        line = self.template.format(**self.texts, host=address.host, port=address.port)
        process = subprocess.Popen(
            ["/bin/sh", "-c", line], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        tail = Tail(process)
        why = self._wait_until_ready(process, address)
        if why is None:
            self._announce(address)
            why = f"it ended by itself with code {process.wait()}"
        raise ServiceFailed(name, why, tail.text())

    def _wait_until_ready(self, process: subprocess.Popen[bytes], address: Address) -> str | None:
        """Wait for it; says why it never will be ready."""
        deadline_s = time.monotonic() + self.start_timeout_s
        while not self.probe.is_met(address):
            if process.poll() is not None:
                return f"it ended with code {process.returncode}, not ready"
            if time.monotonic() > deadline_s:
                shell = psutil.Process(process.pid)
                for one in (*shell.children(recursive=True), shell):
                    with contextlib.suppress(psutil.Error):
                        one.kill()
                process.wait()
                return f"it was not ready after {self.start_timeout_s:g} s"
            time.sleep(_POLL_S)
        return None

    def _announce(self, address: Address) -> None:
        path = Path(self.state)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({**address._asdict(), "since": time.time()}))
        draft.replace(path)


def _free_port(cluster: str | None) -> tuple[str, int]:
    """Find the address of this node that others reach, and a port of it that is free now."""
    host = "127.0.0.1"
    if cluster is not None:
        there = str(json.loads(Path(cluster).read_text())["address"]).rpartition("//")[2]
        name, _, port = there.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect((name, int(port)))  # sends nothing
            host = asked.getsockname()[0]
    with socket.socket() as found:
        found.bind((host, 0))
        return host, int(found.getsockname()[1])


def _started(service: Service, values: dict[str, Any], executor: Executor) -> Server:
    """Start a service on an executor, and look after it."""
    folder = executor.run_folder
    if folder is None:
        raise InvalidRequest(
            "a service needs a run folder, and this executor has none.",
            "Leave journal=False out; a task cannot start services.",
        )
    states = folder / "services"
    states.mkdir(mode=0o700, exist_ok=True)
    state = states / f"{os.urandom(8).hex()}.json"
    cluster = folder / "cluster.json"
    task = service.task(values, state, cluster if cluster.exists() else None)
    running: Future[None] = executor.submit_task(task, (), {})
    bundler = running._gateway
    assert isinstance(bundler, Bundler), "what has a run folder has a bundler"
    call = Call(running._call.kind, ())
    server = Server(bundler, call, running, state)
    bundler.expect(call, server)
    bundler.background |= {server, running}
    _attend(server)
    return server


_attended: list[Server] = []
_lock = threading.Lock()


def _attend(server: Server) -> None:
    """Look after a service on a thread that all share."""
    with _lock:
        _attended.append(server)
        if len(_attended) == 1:
            threading.Thread(target=_look_around, name="exadask-services", daemon=True).start()


def _look_around() -> None:
    while True:
        for server in list(_attended):
            if not server.look():
                with _lock:
                    _attended.remove(server)
        with _lock:
            if not _attended:
                return
        time.sleep(_POLL_S)
