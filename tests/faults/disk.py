"""A small disk for the runs of a workload, so that it can be filled."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(folder: Path, *, mib: int = 64) -> Iterator[Path]:
    """Give ``runs`` in a folder a disk of its own, where that can be had; take it away after."""
    runs = folder / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "exadask-test", str(runs)]
    is_mounted = False
    with contextlib.suppress(FileNotFoundError):
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(runs)], check=True)
