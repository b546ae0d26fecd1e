"""Dask's dashboard, for its owner alone.

Loopback is not private on a login node: everybody there can connect to it. So every request must
bring a token, once in the address and from then on in a cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

from tornado import web

from exadask.runtime.dask_parts import PromptScheduler

_ADDRESS = "127.0.0.1:0"


class GuardedScheduler(PromptScheduler):
    """A scheduler whose dashboard listens on loopback and wants a token."""

    def __init__(self, **options: Any) -> None:
        self.token = secrets.token_urlsafe(24)
        super().__init__(dashboard_address=_ADDRESS, **options)

    def start_http_server(self, *args: Any, **options: Any) -> None:
        """Open the port, and put the guard before everything that it serves."""
        super().start_http_server(*args, **options)
        application, token = self.http_application, self.token
        find_handler = application.find_handler
        # A cookie is sent to all ports of a host, and two runs must not disturb each other.
        name = f"exadask-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

        def guarded(request: Any, **kwargs: Any) -> Any:
            offered = request.query_arguments.get("token", [b""])[-1].decode(errors="replace")
            if hmac.compare_digest(offered.encode(), token.encode()):
                options = {"name": name, "token": token}
                return application.get_handler_delegate(request, _Admission, options)
            cookie = request.cookies.get(name)
            carried = cookie.value if cookie is not None else ""
            if hmac.compare_digest(carried.encode(), token.encode()):
                return find_handler(request, **kwargs)
            return application.get_handler_delegate(request, _Refusal)

        application.find_handler = guarded

    @property
    def dashboard_port(self) -> int:
        """Where it listens on loopback."""
        return int(self.http_server.port)

    @property
    def dashboard_url(self) -> str:
        """What its owner opens, on this machine or at the end of a tunnel."""
        return f"http://localhost:{self.dashboard_port}/status?token={self.token}"


class _Admission(web.RequestHandler):
    """Takes the token out of the address and puts it into a cookie."""

    def initialize(self, name: str, token: str) -> None:
        self._name, self._token = name, token

    def get(self) -> None:
        self.set_cookie(self._name, self._token, httponly=True, samesite="Strict")
        self.redirect(self.request.path)


class _Refusal(web.RequestHandler):
    """Tells a stranger nothing."""

    def prepare(self) -> None:
        self.set_status(403)
        self.finish("Open the address with the token that exadask printed for its owner.\n")
