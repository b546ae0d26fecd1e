"""exadask and its peers in turns: the course of nearly every scenario."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench import measure, peers
from tests.bench.measure import Line, Pairs, Report
from tests.bench.peers import Exadask, Subject
from tests.bench.session import SubjectFailed, failed, session

Figures = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What is done in turns.

    Parameters
    ----------
    name : str
        What it is, for messages.
    work : callable
        ``work(subject, *arguments)``, called in the subject's process; returns samples by case.
    arguments : callable
        ``arguments(subject, turn)``: they may depend on the subject's class and on the round.
    rounds : int
        How often.
    """

    name: str
    work: Callable[..., Figures]
    arguments: Callable[[Any, int], tuple[object, ...]]
    rounds: int


Run = Callable[[Block, int], Figures]
Way = Callable[[type[Subject], Report], contextlib.AbstractContextManager[Run]]


@contextlib.contextmanager
def kept(subject: type[Subject], report: Report) -> Iterator[Run]:
    """Use one process for all blocks and rounds, warm from the beginning."""
    with session(subject, report) as there:
        there.run(warm_up)

        def run(block: Block, turn: int) -> Figures:
            return there.run(block.work, *block.arguments(subject, turn))

        yield run


@contextlib.contextmanager
def renewed(subject: type[Subject], report: Report) -> Iterator[Run]:
    """Use a new process each time."""

    def run(block: Block, turn: int) -> Figures:
        with session(subject, report) as there:
            return there.run(block.work, *block.arguments(subject, turn))

    yield run


def hold(
    report: Report,
    blocks: Sequence[Block],
    theirs: Sequence[type[Subject]],
    *,
    ours: type[Subject] = Exadask,
    way: Way = kept,
) -> None:
    """Measure exadask and each peer in turns; without any peer, exadask alone.

    What fails becomes a note of the report. If it is exadask, that is the end of it.
    """
    try:
        with way(ours, report) as own:
            if not theirs:
                measure.progress(f"{report.name} ...")
                for block in blocks:
                    alone(report, [own(block, turn) for turn in range(block.rounds)])
            for peer in theirs:
                measure.progress(f"{report.name}: {peer.name} ...")
                _with_peer(report, blocks, own, peer, way)
    except SubjectFailed as failure:
        failed(report, failure)


def _with_peer(
    report: Report, blocks: Sequence[Block], own: Run, peer: type[Subject], way: Way
) -> None:
    """Measure all blocks with one peer."""
    with _noting(report, peer, "start"), way(peer, report) as other:
        for block in blocks:
            with _noting(report, peer, block.name):
                first, second = functools.partial(own, block), functools.partial(other, block)
                paired(report, peer.name, measure.interleaved(first, second, block.rounds))


@contextlib.contextmanager
def _noting(report: Report, peer: type[Subject], doing: str) -> Iterator[None]:
    """Make a failure of the peer a note; exadask's goes on."""
    try:
        yield
    except SubjectFailed as failure:
        if failure.who != peer.name:
            raise
        failed(report, failure, doing)


def alone(report: Report, rounds: Sequence[Figures]) -> None:
    """Add what was measured of exadask alone."""
    for case in rounds[0]:
        ours = tuple(one for figures in rounds for one in figures[case])
        report.lines.append(Line(case=case, peer="", ours=ours))


def paired(report: Report, peer: str, pairs: Pairs[Figures]) -> None:
    """Add what was measured of exadask and a peer, pair by pair."""
    for case in pairs[0][0]:
        first = [figures[case] for figures, _ in pairs]
        second = [figures[case] for _, figures in pairs]
        medians = [
            (statistics.median(ours), statistics.median(theirs))
            for ours, theirs in zip(first, second, strict=True)
        ]
        ratios = [ours / theirs for ours, theirs in medians if theirs]  # no memory was seen to grow
        report.lines.append(
            Line(
                case=case,
                peer=peer,
                ours=tuple(one for samples in first for one in samples),
                theirs=tuple(one for samples in second for one in samples),
                ratios=tuple(ratios),
            )
        )


def warm_up(subject: Any) -> None:
    """Let all workers start and import what they need."""
    if hasattr(subject, "gather"):
        subject.gather([subject.submit(abs, -number) for number in range(40)])
    elif hasattr(subject, "map"):
        list(subject.map(abs, range(40), chunk=1))


def by_pace(*, fast: int, slow: int) -> Callable[[type[peers.Peer], int], tuple[object, ...]]:
    """Give slow peers another count than the others."""
    return lambda peer, _: (slow if peer.is_slow else fast,)
