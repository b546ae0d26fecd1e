"""What an agent finds out about its node before it reports: resources, addresses, folders."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from distributed.utils import get_ip_interface

from exadask.errors import InvalidRequest
from exadask.resources import NodeShape
from exadask.runtime.detection import detect_node
from exadask.runtime.granted import granted_shape, read_grant, with_visible_gpus
from exadask.runtime.posting import Posting

_FLUX_TIMEOUT_S = 20.0


async def shape_of_node(posting: Posting, environ: Mapping[str, str]) -> NodeShape:
    """Find out what the batch system gave of this node."""
    asked = posting.asked
    is_only_a_profile = posting.is_whole_node and not posting.is_told
    if is_only_a_profile and (asked.cores or 0) <= (os.cpu_count() or 1):
        asked = replace(asked, cores=None)  # the node itself knows better
    flux_r = await flux_resources(environ)
    grant = read_grant(environ, flux_r=flux_r, is_whole_node=posting.is_whole_node).over(asked)
    root = Path("/")
    shape = granted_shape(detect_node(root, environ), grant, posting.hints, root)
    gpus = grant.gpus if grant.gpus is not None else 0
    return with_visible_gpus(shape, environ, gpus, posting.hints.gpu_vendor)


def own_address(posting: Posting) -> str:
    """Choose the address under which others reach this node."""
    if posting.interface is not None:
        return address_of(posting.interface)
    host = urlsplit(posting.address).hostname or "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: only asks the kernel for the route
            return str(probe.getsockname()[0])
    except OSError:  # joining will fail, and say so
        return socket.gethostname()


def address_of(interface: str) -> str:
    """Give the IP address of a network interface.

    Raises
    ------
    InvalidRequest
        This machine has no such interface, or it has no address.
    """
    try:
        return str(get_ip_interface(interface))
    except ValueError as error:
        raise InvalidRequest(
            f"this machine ({socket.gethostname()}) has no network interface {interface!r} "
            "with an address.",
            f"It has {named_interfaces()}; say which with interface= or scheduler_interface=.",
        ) from error


def interfaces() -> dict[str, str]:
    """Give the IP address of each network interface of this machine."""
    import psutil

    return {
        name: one.address
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family == socket.AF_INET
    }


def named_interfaces() -> str:
    """Name the network interfaces of this machine, for messages."""
    return ", ".join(f"{name} ({address})" for name, address in interfaces().items())


def scratch_parent(environ: Mapping[str, str]) -> str | None:
    """Where this node keeps files: the pool's scratch, or the system's choice."""
    wanted = environ.get("EXADASK_SCRATCH")
    return wanted if wanted and os.path.isdir(wanted) else None  # noqa: PTH112  # a text is needed


async def flux_resources(environ: Mapping[str, str]) -> str:
    """Ask Flux for the resource set of this job: its variables do not name the cores."""
    job = environ.get("FLUX_JOB_ID")
    if job is None or shutil.which("flux") is None:
        return ""
    process = await asyncio.create_subprocess_exec(
        *("flux", "job", "info", job, "R"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        stdout, _ = await asyncio.wait_for(process.communicate(), _FLUX_TIMEOUT_S)
    except asyncio.TimeoutError:  # the node's own account must do
        process.kill()
        return ""
    return stdout.decode(errors="replace").strip()
