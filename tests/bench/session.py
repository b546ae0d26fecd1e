"""Something under test in a process of its own, so that no two share an interpreter."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tests.bench.measure import Report
from tests.bench.peers import Subject
from tests.bench.sandbox import Sandbox, environment

T = TypeVar("T")
PATIENCE_S, CLOSING_PATIENCE_S = 600.0, 60.0


class SubjectFailed(Exception):
    """What was under test raised, ended, or did not answer.

    Parameters
    ----------
    who : str
        Its name.
    reason : str
        The first line of its error.
    trace : str
        Its traceback; may be empty.
    """

    def __init__(self, who: str, reason: str, trace: str = "") -> None:
        super().__init__(who, reason, trace)
        self.who, self.reason, self.trace = who, reason, trace

    def __str__(self) -> str:
        return f"{self.who}: {self.reason}"


class Session:
    """A process with a subject, which is ready when this returns.

    Raises
    ------
    SubjectFailed
        It could not start.
    """

    def __init__(self, subject: type[Subject]) -> None:
        self.name = subject.name
        self._sandbox = Sandbox()
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # outside the sandbox: it serves all sessions
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(subject, theirs))
        with environment(self._sandbox.environ):
            self._process.start()
        theirs.close()
        try:
            self._answer(PATIENCE_S)
        except SubjectFailed:
            self.close()
            raise

    def run(self, block: Callable[..., T], *args: object) -> T:
        """Call ``block(subject, *args)`` there; the function goes by its name.

        Raises
        ------
        SubjectFailed
            It raised; the session is of use still if the process lives.
        """
        with contextlib.suppress(OSError):  # it has ended: the answer says so
            self._ours.send((block, args))
        answer: T = self._answer(PATIENCE_S)
        return answer

    def close(self) -> list[str]:
        """End the process and what it has started; returns what did not end as it should."""
        with contextlib.suppress(OSError):  # it has ended already
            self._ours.send(None)
        self._process.join(CLOSING_PATIENCE_S)
        complaints = self._sandbox.close()
        self._process.join()
        with contextlib.suppress(EOFError, OSError), contextlib.closing(self._ours):
            while self._ours.poll():
                is_fine, answer = self._ours.recv()
                complaints += [] if is_fine else [f"failed to close: {answer[0]}"]
        if self._process.exitcode:
            complaints.append(f"its process ended with {self._process.exitcode}")
        return complaints

    def _answer(self, patience_s: float) -> Any:
        try:
            if not self._ours.poll(patience_s):
                self._process.kill()
                raise SubjectFailed(self.name, f"no answer in {patience_s:g} s, so ended")
            is_fine, answer = self._ours.recv()
        except (EOFError, OSError):
            self._process.join()
            how = f"its process ended with {self._process.exitcode}"
            raise SubjectFailed(self.name, how) from None
        if not is_fine:
            raise SubjectFailed(self.name, *answer)
        return answer


@contextlib.contextmanager
def session(subject: type[Subject], report: Report) -> Iterator[Session]:
    """Start a `Session` and close it at the end; the report tells what it leaves behind."""
    opened = Session(subject)
    try:
        yield opened
    finally:
        report.notes += [f"{subject.name}: {complaint}" for complaint in opened.close()]


def failed(report: Report, failure: SubjectFailed, doing: str = "") -> None:
    """Make a failure a note of the report, and print its traceback."""
    where = f" ({doing})" if doing else ""
    report.notes.append(f"{failure.who}: failed{where}: {failure.reason}")
    report.is_broken |= failure.who == "exadask"
    print(f"{failure}\n{failure.trace}", file=sys.stderr)


def _serve(subject: type[Subject], orders: Connection) -> None:
    try:
        under_test = subject()
        under_test.start()
        with contextlib.closing(under_test):
            orders.send((True, None))
            while (order := orders.recv()) is not None:
                orders.send(_outcome(under_test, *order))
    except Exception as error:  # the process boundary: the other side raises it
        orders.send((False, _described(error)))


def _outcome(under_test: Any, block: Callable[..., Any], args: Any) -> tuple[bool, Any]:
    try:
        return True, block(under_test, *args)
    except Exception as error:  # the process boundary: the other side raises it
        return False, _described(error)


def _described(error: Exception) -> tuple[str, str]:
    last = traceback.format_exception_only(type(error), error)[-1]
    return last.splitlines()[0], traceback.format_exc()
