"""What can be broken, of a workload that runs: by signals, in the kernel, and on the disk.

Each fault says whether it could be injected. What heals later is healed by `Faults.heal`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

_AGENT = "exadask.runtime.agent_program"
_CHILD = "exadask.runtime.child"
_SOURCE = Path(__file__).with_name("skew.c")
_LARGEST_SKEW_S = 20 * 3600  # certificates are valid for clocks that are a day apart
_GIVEN_UP_S = 12.0  # longer than the silence after which an agent is given up
_SECTOR = 512

# Whoever may write everywhere would not notice what is taken away.
_NO_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
_ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *_NO_RIGHTS]

Fault = Callable[[], bool]


class Faults:
    """Breaks what one driver and its helpers need.

    Parameters
    ----------
    folder : Path
        Where all is kept.
    chance : random.Random
        Decides what is hit.
    machine : str
        Where the workload runs; see `Injector`.
    """

    def __init__(self, folder: Path, chance: random.Random, machine: str) -> None:
        self._folder, self._chance = folder, chance
        self._driver: subprocess.Popen[str] | None = None
        self._network: int | None = None
        self._healing: list[tuple[float, Callable[[], object]]] = []
        self.killed_at: dict[int, float] = {}
        self._machine = machine
        # In a network of its own, which only root can make, and nobody else must be in.
        self.is_alone = machine in ("embedded", "pool") and _can_be_alone()
        if machine == "pool":
            _write_skew(folder / "clock", 0)
            _build(_SOURCE, folder / "skew.so")

    def command(self, argv: list[str]) -> list[str]:
        """Let a driver start so that it can be broken: with its own loopback, and few rights."""
        return [*_ALONE, *argv] if self.is_alone else argv

    def attend(self, driver: subprocess.Popen[str]) -> None:
        """Break this driver from now on."""
        self._driver = driver
        self._forget_network()

    def possible(self, *, is_gentle: bool) -> list[tuple[str, Fault]]:
        """Name the faults that can hit a workload; gentle ones leave driver and disk alone."""
        found: list[tuple[str, Fault]] = [
            ("children killed", partial(self._signal_one, _CHILD, kill=True)),
            ("children killed", partial(self._signal_one, _CHILD, kill=True)),
            ("children stopped", partial(self._signal_one, _CHILD, kill=False)),
            ("drivers stopped", self._stop_driver),
        ]
        if self._machine != "embedded":
            found += [
                ("agents killed", partial(self._signal_one, _AGENT, kill=True)),
                ("agents stopped", partial(self._signal_one, _AGENT, kill=False)),
            ]
        if self._machine == "pool":
            found += [
                ("job scripts killed", self._kill_script),
                ("connections broken", self._break_connection),
                ("networks cut", self._cut_network),
                ("clocks set wrong", self._set_clock),
            ]
        if self._machine == "slurm":
            found += [("jobs cancelled", self._cancel_job), ("nodes down", self._down_node)]
        if not is_gentle:
            found += [
                ("drivers killed", self.kill_driver),
                ("memo files cut", self._cut_memo),
                ("disks filled", self._fill_disk),
                ("rights taken", self._take_rights),
            ]
            if self._machine == "pool":
                found.append(("agents given up", self._stop_agent_for_long))
        return found

    # -- healing --------------------------------------------------------------------------------

    def heal(self, *, all_of_it: bool = False) -> None:
        """Undo what was to last until now."""
        now = time.monotonic()
        due = [one for one in self._healing if all_of_it or one[0] <= now]
        self._healing = [one for one in self._healing if one not in due]
        for _, undo in due:
            undo()

    def close(self) -> None:
        """Undo all."""
        self.heal(all_of_it=True)
        self._forget_network()

    def _heal_in(self, least_s: float, most_s: float, undo: Callable[[], object]) -> None:
        self._healing.append((time.monotonic() + self._chance.uniform(least_s, most_s), undo))

    # -- processes ------------------------------------------------------------------------------

    def _found(self, word: str) -> list[psutil.Process]:
        """Find the processes of the workload whose command has this word."""
        found = []
        for top in self._tops():
            with contextlib.suppress(psutil.Error):
                for one in (top, *top.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        if any(word in argument for argument in one.cmdline()):
                            found.append(one)
        return found

    def _tops(self) -> list[psutil.Process]:
        """Give the driver, or the agents that a batch system has started."""
        assert self._driver is not None
        if self._machine in ("embedded", "pool"):
            return [psutil.Process(self._driver.pid)] if self._driver.poll() is None else []
        return [
            one
            for one in psutil.process_iter(["cmdline"])
            if _AGENT in (words := one.info["cmdline"] or []) and str(self._runs) in "".join(words)
        ]

    def _signal_one(self, word: str, *, kill: bool) -> bool:
        found = self._found(word)
        if not found:
            return False
        with contextlib.suppress(psutil.Error):
            one = self._chance.choice(found)
            if kill:
                one.kill()
            else:
                self._stop(one, 0.05, 3.0)
            return True
        return False

    def _stop(self, process: psutil.Process, least_s: float, most_s: float) -> None:
        process.suspend()
        self._heal_in(least_s, most_s, partial(_resume, process))

    def _stop_agent_for_long(self) -> bool:
        """Stop an agent until the scheduler has given it up; then it comes back."""
        found = [one for one in self._found(_AGENT) if one.status() != psutil.STATUS_STOPPED]
        if not found:
            return False
        with contextlib.suppress(psutil.Error):
            self._stop(self._chance.choice(found), _GIVEN_UP_S, _GIVEN_UP_S + 3)
            return True
        return False

    def _kill_script(self) -> bool:
        """Kill what starts an agent: the job script, or what keeps its walltime."""
        found = [one for one in self._found("job.sh") if one.name() in ("bash", "timeout")]
        if not found:
            return False
        with contextlib.suppress(psutil.Error):
            self._chance.choice(found).kill()
            return True
        return False

    def kill_driver(self) -> bool:
        """Kill it, and wait for that."""
        assert self._driver is not None
        self.killed_at[self._driver.pid] = time.monotonic()
        self._driver.kill()
        self._driver.wait()
        return True

    def _stop_driver(self) -> bool:
        assert self._driver is not None
        with contextlib.suppress(psutil.Error):
            self._stop(psutil.Process(self._driver.pid), 0.1, 1.0)
            return True
        return False

    # -- Slurm ----------------------------------------------------------------------------------

    def _cancel_job(self) -> bool:
        """End an allocation as an operator would."""
        jobs = _run("squeue", "-h", "-t", "R", "-o", "%i").split()
        if not jobs:
            return False
        _run("scancel", self._chance.choice(jobs))
        return True

    def _down_node(self) -> bool:
        """Take a node away, with all that runs there; it comes back."""
        nodes = _run("sinfo", "-h", "-N", "-p", "cpu", "-t", "alloc,mix", "-o", "%N").split()
        if not nodes:
            return False
        node = self._chance.choice(nodes)
        _run("scontrol", "update", f"nodename={node}", "state=down", "reason=fault")
        self._heal_in(2, 6, partial(_run, "scontrol", "update", f"nodename={node}", "state=resume"))
        return True

    # -- network and clock ----------------------------------------------------------------------

    def _break_connection(self) -> bool:
        """Let the kernel drop a connection of an agent's as if the other side had."""
        agents = {one.pid for one in self._found(_AGENT)}
        if not self.is_alone or not agents:
            return False
        lines = self._in_network("ss", "-Htnp", "state", "established").splitlines()
        ports = [
            line.split()[2].rpartition(":")[2]
            for line in lines
            if any(f"pid={pid}," in line for pid in agents)
        ]
        if not ports:
            return False
        return bool(self._in_network("ss", "-HKtn", f"sport = :{self._chance.choice(ports)}"))

    def _cut_network(self) -> bool:
        """Let nothing get through for some seconds; nobody is told."""
        if not self.is_alone or self._healing_network():
            return False
        self._in_network("ip", "link", "set", "lo", "down")
        self._heal_in(0.3, 2.0, self._mend_network)
        return True

    def _healing_network(self) -> bool:
        return any(undo == self._mend_network for _, undo in self._healing)

    def _mend_network(self) -> None:
        self._in_network("ip", "link", "set", "lo", "up")

    def _in_network(self, *argv: str) -> str:
        """Run a command in the network of the driver."""
        assert self._driver is not None
        if self._network is None:
            with contextlib.suppress(FileNotFoundError):
                self._network = os.open(f"/proc/{self._driver.pid}/ns/net", os.O_RDONLY)
        if self._network is None:
            return ""
        enter = ["nsenter", f"--net=/proc/self/fd/{self._network}"]
        done = subprocess.run(
            [*enter, *argv], capture_output=True, text=True, check=False, pass_fds=[self._network]
        )
        return done.stdout

    def _forget_network(self) -> None:
        if self._healing_network():
            self._mend_network()
            self._healing = [one for one in self._healing if one[1] != self._mend_network]
        if self._network is not None:
            os.close(self._network)
            self._network = None

    def _set_clock(self) -> bool:
        """Set the clock of all agents of a pool wrong, forwards or back."""
        if not (self._folder / "skew.so").exists():
            return False
        skew_s = self._chance.choice([0, self._chance.randint(-_LARGEST_SKEW_S, _LARGEST_SKEW_S)])
        _write_skew(self._folder / "clock", skew_s)
        return True

    # -- disk -----------------------------------------------------------------------------------

    @property
    def _runs(self) -> Path:
        return self._folder / "runs"

    def _cut_memo(self) -> bool:
        files = [one for one in sorted((self._runs / "memo").glob("??/*")) if one.is_file()]
        if not files:
            return False
        with contextlib.suppress(OSError):
            chosen = self._chance.choice(files)
            os.truncate(chosen, self._chance.randrange(chosen.stat().st_size + 1))
            return True
        return False

    def _fill_disk(self) -> bool:
        if not self._runs.is_mount():
            return False
        ballast = self._runs / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)
        self._heal_in(0.3, 2.0, partial(ballast.unlink, missing_ok=True))
        return True

    def _take_rights(self) -> bool:
        """Let nobody write into the folders of the run; root would not notice."""
        if not self.is_alone and os.geteuid() == 0:
            return False
        folders = [one for one in self._runs.rglob("*") if one.is_dir() and not one.is_symlink()]
        for one in folders:
            with contextlib.suppress(FileNotFoundError):
                one.chmod(0o500)
        self._heal_in(0.3, 3.0, partial(_give_rights, folders))
        return bool(folders)

    def cut_journal(self) -> bool:
        """Cut the tail of the journal, or of the log beside it; no driver may run."""
        files = [one for one in sorted(self._runs.glob("2*/journal.sqlite*")) if one.is_file()]
        files = [one for one in files if not one.name.endswith("-shm") and one.stat().st_size]
        if not files:
            return False
        chosen = self._chance.choice(files)
        size = chosen.stat().st_size
        os.truncate(chosen, size - self._chance.randint(1, min(size, 64 * _SECTOR)))
        return True


def _can_be_alone() -> bool:
    """Whether a program can get a network of its own here."""
    if os.geteuid() != 0 or any(shutil.which(one) is None for one in ("unshare", "setpriv", "ip")):
        return False
    return subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0


def _run(*argv: str) -> str:
    """Run a command of the batch system, which may find that things have changed meanwhile."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.resume()


def _give_rights(folders: list[Path]) -> None:
    for one in folders:
        with contextlib.suppress(FileNotFoundError):
            one.chmod(0o700)


def _write_skew(clock: Path, skew_s: int) -> None:
    """Write it into the file where it is: programs have it in their memory."""
    fd = os.open(clock, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, skew_s.to_bytes(8, "little", signed=True))
    os.close(fd)


def _build(source: Path, library: Path) -> None:
    """Compile what is preloaded; without a compiler no clock is set wrong."""
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, check=True)
