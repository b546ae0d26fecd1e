"""Faults, at random and again the same with the same seed, while a workload runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_WORKLOAD = Path(__file__).with_name("workload.py")
_PAUSE_S = (0.2, 1.0)
_STALL_S = 180.0


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Parameters
    ----------
    injected : Counter
        How many faults of each kind.
    checked : int
        Results that were compared with what they should be.
    wrong : list of int
        Those that were not.
    n_drivers : int
        Processes that have driven the workload.
    n_refused : int
        Those that said that they cannot begin, since the disk was full.
    executions : Counter
        How often something was executed: how many times.
    lost : int
        Work that left no mark.
    """

    injected: Counter[str] = field(default_factory=Counter)
    checked: int = 0
    wrong: list[int] = field(default_factory=list)
    n_drivers: int = 0
    n_refused: int = 0
    executions: Counter[int] = field(default_factory=Counter)
    lost: int = 0

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.injected.items()))
        twice = sum(count for times, count in self.executions.items() if times > 1)
        return (
            f"{sum(self.injected.values())} faults injected ({faults or 'none'}); "
            f"{self.n_drivers} drivers, {self.n_refused} of them refused; {self.checked} results "
            f"checked, {len(self.wrong)} wrong, {self.lost} lost; {twice} pieces of work done more "
            "than once"
        )


class Injector:
    """Drives a workload, and breaks things meanwhile.

    Parameters
    ----------
    folder : Path
        Where all is kept; the runs in ``runs`` may be on a disk of their own.
    seed : int
        Decides what breaks when.
    n_tasks : int
        The size of the workload.
    """

    def __init__(self, folder: Path, seed: int, n_tasks: int) -> None:
        self._folder, self._chance, self._n_tasks = folder, random.Random(seed), n_tasks
        self._seed = seed
        self.outcome = Outcome()
        self._driver: subprocess.Popen[str] | None = None
        (folder / "marks").mkdir(exist_ok=True)
        self._faults: list[tuple[str, Callable[[], bool]]] = [
            ("children killed", self._kill_child),
            ("children killed", self._kill_child),
            ("children stopped", self._stop_child),
            ("drivers killed", self._kill_driver),
            ("drivers stopped", self._stop_driver),
            ("memo files cut", self._cut_memo),
            ("disks filled", self._fill_disk),
        ]

    def run(self, *, for_s: float) -> Outcome:
        """Inject faults for so long [s], and let the workload come to its end."""
        end_s = time.monotonic() + for_s
        while True:
            self._start()
            finished = self._break_things(end_s)
            if finished is not None:
                self._take(finished)
                return self.outcome

    def _start(self) -> None:
        self.outcome.n_drivers += 1
        command = [sys.executable, str(_WORKLOAD), str(self._folder), str(self._n_tasks)]
        self._driver = subprocess.Popen(
            [*command, str(self._seed)], stdout=subprocess.PIPE, stderr=self._log(), text=True
        )

    def _log(self) -> int:
        return os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _break_things(self, end_s: float) -> str | None:
        """Inject faults until the driver ends; give what it printed, or None if it was killed."""
        driver, stall_s = self._driver, time.monotonic() + _STALL_S
        assert driver is not None
        while driver.poll() is None:
            try:
                printed, _ = driver.communicate(timeout=self._chance.uniform(*_PAUSE_S))
            except subprocess.TimeoutExpired:
                assert time.monotonic() < max(stall_s, end_s + _STALL_S), "the workload hangs"
                if time.monotonic() < end_s:
                    kind, inject = self._chance.choice(self._faults)
                    self.outcome.injected[kind] += inject()
                continue
            return printed if driver.returncode == 0 else self._complain(printed)
        printed, _ = driver.communicate()
        if driver.returncode == -signal.SIGKILL:
            return None
        return printed if driver.returncode == 0 else self._complain(printed)

    def _complain(self, printed: str) -> str | None:
        log = (self._folder / "log").read_text()[-4000:]
        if "exadask.errors.RunFolderError: " in log.rstrip().splitlines()[-1]:
            self.outcome.n_refused += 1
            return None
        raise AssertionError(f"the workload failed by itself: {printed}\n{log}")

    def _take(self, printed: str) -> None:
        told = json.loads(printed)
        outcome = self.outcome
        outcome.checked, outcome.wrong = told["checked"], told["wrong"]
        marks = {path.name: path.stat().st_size for path in (self._folder / "marks").iterdir()}
        outcome.executions = Counter(marks.values())
        outcome.lost = sum(f"square-{place}" not in marks for place in range(self._n_tasks))

    # -- faults: each says whether it could be injected ----------------------------------------

    def _children(self) -> list[psutil.Process]:
        assert self._driver is not None
        with contextlib.suppress(psutil.Error):
            return [
                one
                for one in psutil.Process(self._driver.pid).children()
                if "exadask.runtime.child" in " ".join(one.cmdline())
            ]
        return []

    def _kill_child(self) -> bool:
        return self._signal_child(signal.SIGKILL)

    def _stop_child(self) -> bool:
        return self._signal_child(signal.SIGSTOP, then=signal.SIGCONT)

    def _signal_child(self, number: signal.Signals, then: signal.Signals | None = None) -> bool:
        children = self._children()
        if not children:
            return False
        with contextlib.suppress(psutil.Error):
            child = self._chance.choice(children)
            child.send_signal(number)
            if then is not None:
                time.sleep(self._chance.uniform(0.05, 0.5))
                child.send_signal(then)
            return True
        return False

    def _kill_driver(self) -> bool:
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()
        return True

    def _stop_driver(self) -> bool:
        assert self._driver is not None
        self._driver.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.1, 1.0))
        self._driver.send_signal(signal.SIGCONT)
        return True

    def _cut_memo(self) -> bool:
        files = [
            one for one in sorted((self._folder / "runs" / "memo").glob("??/*")) if one.is_file()
        ]
        if not files:
            return False
        with contextlib.suppress(OSError):
            chosen = self._chance.choice(files)
            os.truncate(chosen, self._chance.randrange(chosen.stat().st_size + 1))
            return True
        return False

    def _fill_disk(self) -> bool:
        runs = self._folder / "runs"
        if not runs.is_mount():
            return False
        ballast = runs / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)
        time.sleep(self._chance.uniform(0.3, 2.0))
        ballast.unlink()
        return True
