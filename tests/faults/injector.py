"""Faults, at random and again the same with the same seed, while a workload runs."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from exadask.testing.waiting import eventually
from tests.faults.faults import Fault, Faults
from tests.faults.outcome import Growth, Outcome

_WORKLOAD = Path(__file__).with_name("workload.py")
_PAUSE_S, _LONG_PAUSE_S = (0.2, 1.0), (0.5, 3.0)
_STALL_S = 180.0
_SHARE_OF_EARLY, _SOON_S = 0.25, 2.0
_SHARE_OF_CUTS = 0.3
_TAIL = 4000


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
    machine : str
        Where it runs: "embedded", "pool" (agents on this machine), "slurm", or the folder of a run
        whose scheduler stands.
    """

    def __init__(self, folder: Path, seed: int, n_tasks: int, machine: str = "embedded") -> None:
        self._folder, self._chance, self._n_tasks = folder, random.Random(seed), n_tasks
        self._seed, self._machine = seed, machine
        self._marks = folder / "marks"
        self._faults = Faults(folder, self._chance, machine)
        self._driver: subprocess.Popen[str] | None = None
        self._deck: list[tuple[str, Fault]] = []
        self.outcome = Outcome()

    def run(self, *, for_s: float) -> Outcome:
        """Inject faults for so long [s], and let the workload come to its end."""
        end_s = time.monotonic() + for_s
        faults = self._faults.possible(is_gentle=False)
        with self._nothing_left():
            while (finished := self._drive(faults, end_s)) is None:
                if time.monotonic() < end_s and self._chance.random() < _SHARE_OF_CUTS:
                    self.outcome.injected["journals cut"] += self._faults.cut_journal()
            return self._take(finished)

    def run_rounds(self, *, for_s: float) -> tuple[Outcome, Growth]:
        """Let one driver do the same again and again, and see whether it grows."""
        faults = self._faults.possible(is_gentle=True)
        with self._nothing_left():
            self._start("--rounds", str(for_s))
            finished = self._break_things(faults, time.monotonic() + for_s, _LONG_PAUSE_S)
            assert finished is not None, "nobody has killed it"
            told = json.loads(finished)
            self.outcome.take(told, self._marks, ())
        return self.outcome, Growth(told["sizes"])

    def run_and_kill(self, n_kills: int, *, is_early_too: bool = True) -> Outcome:
        """Kill nothing but the driver, so often, at moments all over the run.

        Some come early, when it is about to open the run and has done nothing.
        """
        with self._nothing_left():
            for _ in range(n_kills):
                self._start()
                is_early = is_early_too and self._chance.random() < _SHARE_OF_EARLY
                self._wait_for_a_moment(self._n_tasks // n_kills, is_early=is_early)
                assert self._driver is not None
                assert self._driver.poll() is None, f"it has ended by itself: {self._log_tail()}"
                self.outcome.injected["drivers killed"] += self._faults.kill_driver()
                self._driver.communicate()
            finished = self._drive([], 0)
            assert finished is not None, "nobody has killed it"
            self._take(finished)
        self.outcome.note_repeats(self._marks, self._faults.killed_at)
        return self.outcome

    @contextlib.contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Undo all faults at the end, and wait until nothing runs any more of all drivers."""
        try:
            yield
        finally:
            self._faults.close()
            if self._driver is not None and self._driver.poll() is None:  # the test has failed
                self._driver.kill()
                self._driver.communicate()
            eventually(lambda: not self._left(), timeout_s=30)

    def _drive(self, faults: list[tuple[str, Fault]], end_s: float) -> str | None:
        self._start()
        return self._break_things(faults, end_s)

    def _wait_for_a_moment(self, most: int, *, is_early: bool) -> None:
        """Wait for some more work to be done, or only so long that it may just have begun."""
        driver, wanted = self._driver, self._n_executions() + self._chance.randint(1, most)
        assert driver is not None
        if is_early:
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(self._chance.uniform(0, _SOON_S))
            return
        eventually(
            lambda: self._n_executions() >= wanted or driver.poll() is not None,
            timeout_s=_STALL_S,
        )

    def _n_executions(self) -> int:
        return self._marks.read_bytes().count(b"\n") if self._marks.exists() else 0

    def _start(self, *arguments: str) -> None:
        self.outcome.n_drivers += 1
        command = [sys.executable, str(_WORKLOAD), str(self._folder), str(self._n_tasks)]
        command += [str(self._seed), self._machine, *arguments]
        with (self._folder / "log").open("ab") as log:
            self._driver = subprocess.Popen(
                self._faults.command(command), stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._faults.attend(self._driver)

    def _break_things(
        self,
        faults: list[tuple[str, Fault]],
        end_s: float,
        pause_s: tuple[float, float] = _PAUSE_S,
    ) -> str | None:
        """Inject faults until the driver ends; give what it printed, or None if it was killed."""
        driver, stall_s = self._driver, time.monotonic() + _STALL_S
        assert driver is not None
        while driver.poll() is None:
            try:
                printed, _ = driver.communicate(timeout=self._chance.uniform(*pause_s))
            except subprocess.TimeoutExpired:
                assert time.monotonic() < max(stall_s, end_s + _STALL_S), "the workload hangs"
                is_over = time.monotonic() >= end_s
                self._faults.heal(all_of_it=is_over)
                if not is_over:
                    self._inject_next(faults)
                continue
            return printed if driver.returncode == 0 else self._complain(printed)
        printed, _ = driver.communicate()
        if driver.returncode == -signal.SIGKILL:
            return None
        return printed if driver.returncode == 0 else self._complain(printed)

    def _inject_next(self, faults: list[tuple[str, Fault]]) -> None:
        """Inject each kind once before any comes again."""
        self._deck = self._deck or self._chance.sample(faults, k=len(faults))
        kind, inject = self._deck.pop()
        self.outcome.injected[kind] += inject()

    def _complain(self, printed: str) -> str | None:
        log = self._log_tail()
        if "exadask.errors.RunFolderError: " in log.rstrip().splitlines()[-1]:
            self.outcome.n_refused += 1
            return None
        raise AssertionError(f"the workload failed by itself: {printed}\n{log}")

    def _log_tail(self) -> str:
        return (self._folder / "log").read_text()[-_TAIL:]

    def _take(self, printed: str) -> Outcome:
        wanted = [f"square-{place}" for place in range(self._n_tasks)]
        self.outcome.take(json.loads(printed), self._marks, wanted)
        return self.outcome

    def _left(self) -> list[str]:
        """List the processes of this workload, whoever has started them."""
        runs, scratch, found = str(self._folder / "runs"), str(self._folder / "scratch"), []
        for one in psutil.process_iter(["cmdline", "environ"]):
            words = one.info["cmdline"] or []
            is_of_node = (one.info["environ"] or {}).get("EXADASK_SCRATCH") == scratch
            if is_of_node or any(runs in word for word in words):
                found.append(" ".join(words))
        return found
