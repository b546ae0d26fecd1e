"""What came of a workload that was disturbed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

_WARM_UP = 0.2
# Growth that is no leak [in the unit of each]: caches fill, an agent comes before another goes.
_ALLOWED = {"memory [MiB]": 24, "descriptors": 16, "threads": 8, "processes": 8, "files": 40}


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
        Those that said that they cannot begin, since the disk could not be written.
    executions : Counter
        How often something was executed: how many times.
    lost : int
        Work that left no mark.
    repeated_s : list of float
        Of work that was done again after its driver was killed: how long before that it had been
        done [s].
    """

    injected: Counter[str] = field(default_factory=Counter)
    checked: int = 0
    wrong: list[int] = field(default_factory=list)
    n_drivers: int = 0
    n_refused: int = 0
    executions: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    repeated_s: list[float] = field(default_factory=list)

    def take(self, told: dict[str, object], marks: Path, wanted: Iterable[str]) -> None:
        """Take in what the last driver has told, and what all have left."""
        checked, wrong = told["checked"], told["wrong"]
        assert isinstance(checked, int)
        assert isinstance(wrong, list)
        self.checked += checked
        self.wrong += wrong
        found = read_marks(marks)
        self.executions = Counter(map(len, found.values()))
        self.lost = sum(name not in found for name in wanted)

    def note_repeats(self, marks: Path, killed_at: Mapping[int, float]) -> None:
        """Find out how long before a kill that was done which had to be done again [s]."""
        for executions in read_marks(marks).values():
            for done in executions[:-1]:
                self.repeated_s.append(max(0.0, killed_at[done.driver] - done.at))

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.injected.items()))
        twice = sum(count for times, count in self.executions.items() if times > 1)
        text = (
            f"{sum(self.injected.values())} faults injected ({faults or 'none'}); "
            f"{self.n_drivers} drivers, {self.n_refused} of them refused; {self.checked} results "
            f"checked, {len(self.wrong)} wrong, {self.lost} lost; {twice} pieces of work done more "
            "than once"
        )
        if self.repeated_s:
            text += (
                f", those of a killed driver at most {max(self.repeated_s):.2f} s before its end"
            )
        return text


@dataclass(frozen=True, slots=True)
class Growth:
    """What a process took after each round of the same work.

    Parameters
    ----------
    sizes : list of dict
        Figures by their names, in the order of the rounds.
    """

    sizes: list[dict[str, int]]

    @property
    def begin(self) -> dict[str, float]:
        """The medians after the first rounds, when all is warm."""
        first = int(_WARM_UP * len(self.sizes))
        return self._medians(self.sizes[first : first + self._n_rounds])

    @property
    def end(self) -> dict[str, float]:
        """The medians after the last rounds."""
        return self._medians(self.sizes[-self._n_rounds :])

    @property
    def grown(self) -> list[str]:
        """What has grown by more than what is no leak."""
        begin, end = self.begin, self.end
        return [name for name in begin if end[name] - begin[name] > _ALLOWED[name]]

    @property
    def _n_rounds(self) -> int:
        return max(1, len(self.sizes) // 4)

    @staticmethod
    def _medians(sizes: list[dict[str, int]]) -> dict[str, float]:
        return {name: median(one[name] for one in sizes) for name in sizes[0]}

    def __str__(self) -> str:
        begin, end = self.begin, self.end
        figures = ", ".join(f"{name} {begin[name]:g} to {end[name]:g}" for name in begin)
        return f"{len(self.sizes)} rounds of the same: {figures}"


class Mark(NamedTuple):
    """What an execution leaves: when it was [s], and for which driver."""

    at: float
    driver: int


def read_marks(path: Path) -> dict[str, list[Mark]]:
    """Read when each piece of work was done, in order."""
    found = defaultdict[str, list[Mark]](list)
    if path.exists():
        for line in path.read_text().splitlines():
            name, at, driver = line.split()
            found[name].append(Mark(float(at), int(driver)))
    return {name: sorted(marks) for name, marks in found.items()}
