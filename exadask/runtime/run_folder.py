"""The folder of a run: what its processes tell each other by files, and what stays to be read.

```text
exadask-runs/2026-01-31-120000-4711/     0700
  journal.sqlite      what happened to each task; journal.lock: who writes there
  run.json            which program or recipe this is
  results/            large results, if results are kept
  checkpoints/        what tasks left for their next attempt
  cluster.json        where the scheduler listens, 0600; gone when it has ended
  tls/                keys and certificate, 0600; gone when it has ended
  allocations/NAME/   job.sh, node.sh, agent.json, job.log, exit-code
  depot/              results that outgrew the scheduler's memory; gone when it has ended
  left/               what sessions have left to a standing scheduler
  services/           where services listen
exadask-runs/latest                      a link to the last one
```
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from exadask.errors import RunFolderError
from exadask.texts import names_folder

RUNS = "exadask-runs"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CLUSTER, _TARGET = "cluster.json", "run.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run; made by `RunFolder.create`, found by `RunFolder.find`."""

    path: Path

    @classmethod
    def create(cls, parent: Path, *, is_latest: bool = True) -> RunFolder:
        """Make the folder of a new run, which only its owner can enter.

        Parameters
        ----------
        parent : Path
            Where runs are kept; all nodes must see it under the same name.
        is_latest : bool
            Whether ``latest`` points to it from now on.

        Raises
        ------
        RunFolderError
            It cannot be made or written.
        """
        name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{os.getpid()}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = _new_folder(parent.resolve(), name)
            (path / "allocations").mkdir()
        except OSError as error:
            raise RunFolderError(
                str(parent),
                error.strerror or str(error),
                "Choose one that you can write and all nodes see: run_folder=, or "
                "EXADASK_RUN_FOLDER.",
            ) from error
        if is_latest:
            _link_latest(parent, path)
        return cls(path)

    @classmethod
    def find(cls, given: str | Path) -> RunFolder:
        """Find the folder of a run by its path, or by its name below ``exadask-runs``.

        Raises
        ------
        RunFolderError
            There is none, or it is somebody else's.
        """
        for path in (Path(given), Path(RUNS) / given):
            if names_folder(path / "allocations"):
                found = path.resolve()
                status = found.stat()
                if status.st_uid != os.getuid() or status.st_mode & 0o077:
                    raise RunFolderError(
                        str(found),
                        "others could have written in it",
                        f"It must belong to you alone: chmod 700 {found}",
                    )
                return cls(found)
        known = [one.path.name for one in cls.all_below(Path(RUNS))][::-1]
        raise RunFolderError(
            str(given),
            "there is no such run",
            f"Runs here: {', '.join(known[-5:]) or 'none'}.",
        )

    @classmethod
    def all_below(cls, parent: Path) -> Iterator[RunFolder]:
        """Give all runs that are kept in a folder, the last one first."""
        found = [one for one in parent.glob("*/allocations") if not one.parent.is_symlink()]
        for path in sorted(found, key=lambda one: one.parent.name, reverse=True):
            yield cls(path.parent.resolve())

    def sessions(self) -> list[Path]:
        """Give the folders of the sessions that have used its scheduler, the last one last."""
        return [one.path for one in self.all_below(self.path / "sessions")][::-1]

    def note_target(self, target: str) -> None:
        """Write down which program or recipe runs here; a full disk is no reason to stop."""
        with contextlib.suppress(OSError):
            self.write_private(_TARGET, {"target": target})

    @property
    def target(self) -> str | None:
        """The program or recipe that ran here, if that is known."""
        try:
            return str(json.loads((self.path / _TARGET).read_text())["target"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    @property
    def tls(self) -> Path:
        """Where the keys lie."""
        return self.path / "tls"

    @property
    def depot(self) -> Path:
        """Where results go that outgrew the scheduler's memory."""
        return self.path / "depot"

    @property
    def left(self) -> Path:
        """Where lies what sessions have left."""
        return self.path / "left"

    def left_as(self, name: str) -> Path:
        """The file of what was left under a name."""
        return self.left / f"{name}.pickle"

    @property
    def scheduler_log(self) -> Path:
        """The log of a standing scheduler."""
        return self.path / "scheduler.log"

    def allocation(self, name: str) -> Path:
        """The folder of an allocation."""
        return self.path / "allocations" / name

    def n_allocations(self, pool: str) -> int:
        """Say how many allocations of a pool have had a folder here, before a run was resumed."""
        serials = [one.name.rpartition("-") for one in self.path.glob("allocations/*")]
        return max(
            (int(n) + 1 for name, _, n in serials if name == pool and n.isdigit()), default=0
        )

    def write_private(self, name: str, facts: Mapping[str, Any] | Sequence[Any]) -> Path:
        """Write facts as JSON into a file that only its owner can read; all of it or nothing."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(path.name + ".draft")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(facts, file, indent=1)
        draft.replace(path)
        return path

    @contextlib.contextmanager
    def being_written(self) -> Iterator[None]:
        """Say of what is written here meanwhile that the folder is to blame if it cannot be.

        Raises
        ------
        RunFolderError
            No room, or no right to write.
        """
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno not in _NO_ROOM:  # of a network, say
                raise
            raise RunFolderError(
                str(self.path),
                error.strerror or str(error),
                "Make room, or restore the right to write; or choose another: run_folder=, or "
                "EXADASK_RUN_FOLDER.",
            ) from error

    def publish(self, facts: Mapping[str, Any]) -> None:
        """Tell where the scheduler listens."""
        self.write_private(_CLUSTER, facts)

    def published(self) -> dict[str, Any]:
        """Read where the scheduler listens.

        Raises
        ------
        RunFolderError
            It has not begun to listen, or has ended.
        """
        try:
            facts: dict[str, Any] = json.loads((self.path / _CLUSTER).read_text())
            _check_published(facts)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunFolderError(
                str(self.path),
                "no scheduler of this run listens",
                "It has ended, or was never standing; start one with: exadask up",
            ) from error
        return facts

    @property
    def is_published(self) -> bool:
        """Whether a scheduler says that it listens."""
        return (self.path / _CLUSTER).is_file()

    def close(self) -> None:
        """Remove what must not outlive the scheduler: keys, address, spilled data."""
        with contextlib.suppress(OSError):  # not there, or no right to write for now
            (self.path / _CLUSTER).unlink()
        for folder in (self.tls, self.depot):
            shutil.rmtree(folder, ignore_errors=True)


class EarlierRun(NamedTuple):
    """A run that goes on.

    Parameters
    ----------
    folder : RunFolder
        Its folder.
    spent_node_s : float
        What its allocations did cost, as far as that is written down [node-seconds].
    """

    folder: RunFolder
    spent_node_s: float


def _check_published(facts: Mapping[str, Any]) -> None:
    """Make sure of what is used: a signal for the process -1 would end all that the user runs."""
    is_text = isinstance(facts["host"], str) and str(facts["address"]).startswith("tls://")
    if not is_text or type(facts["pid"]) is not int or not 0 < facts["pid"] < 2**31:
        raise ValueError("it does not say where the scheduler is")


def _new_folder(parent: Path, name: str) -> Path:
    for serial in range(1000):
        path = parent / (f"{name}-{serial}" if serial else name)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path
    raise FileExistsError(17, "too many runs in one second", str(parent))


def _link_latest(parent: Path, path: Path) -> None:
    """Point ``latest`` to a run; a file system without links does without."""
    draft = parent / f".latest-{os.getpid()}"
    with contextlib.suppress(OSError):
        draft.symlink_to(path.name)
        draft.replace(parent / "latest")
