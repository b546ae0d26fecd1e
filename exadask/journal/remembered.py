"""Results that are found again: those of this run when it is resumed, and memoised ones.

Every call has a *digest*: what its function does, and what its arguments are. For memoised tasks
that is all, so that equal calls share one result, in this run and in later ones. For a run that can
be resumed the second, third, ... equal call has a digest of its own, since nobody said that the
function gives the same result each time.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exadask.errors import UnhashableValue
from exadask.future import Future
from exadask.journal.fingerprint import arguments_fingerprint, function_fingerprint
from exadask.journal.reading import Lookup
from exadask.journal.rows import ResultRow, checksum_of
from exadask.runtime.call import Call
from exadask.runtime.kind import Kind
from exadask.runtime.parcel import Parcel, is_plain
from exadask.runtime.stored import StoredResults
from exadask.tasks import Task

logger = logging.getLogger(__name__)

_PLAIN, _PACKED = b"V", b"P"


class Unsettled(Exception):
    """What a call computes cannot be said before its inputs are there."""


class Remembered:
    """Names calls by what they compute, and finds and keeps their results.

    Parameters
    ----------
    memo : StoredResults
        Results of memoised tasks, of all runs.
    own : StoredResults, optional
        Large results of this run. None: it keeps none.
    lookup : Lookup, optional
        The journal of the run that is resumed.
    save_there : callable
        Writes a result that is in the cluster into a file of a folder, under a name; calls back
        with the error, or None.
    """

    def __init__(
        self,
        memo: StoredResults,
        own: StoredResults | None,
        lookup: Lookup | None,
        save_there: Callable[[Call, Path, str, Callable[[BaseException | None], None]], None],
    ) -> None:
        self._memo, self._own, self._lookup, self._save_there = memo, own, lookup, save_there
        self._n_seen: dict[bytes, int] = {}
        self._recent: weakref.WeakValueDictionary[bytes, Call] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._functions: dict[Kind, bytes] = {}
        self._told: set[str] = set()
        self._late: list[ResultRow] = []

    def wants(self, kind: Kind) -> bool:
        """Whether results of these calls are kept."""
        return kind.memo or self._own is not None

    def identify(
        self, call: Call, task: Task[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Name what a call computes, now or when its inputs are there.

        Raises
        ------
        UnhashableValue
            An argument of a memoised task cannot be hashed.
        """
        name = call.kind.name
        try:
            function = self._function(call.kind, task)
            digest_of = self._lasting_digest_of if call.kind.memo else self._digest_of
            arguments = arguments_fingerprint(args, dict(kwargs), name, digest_of)
        except UnhashableValue as error:
            if call.kind.memo:
                raise
            self._warn(name, f"its results are not kept, and a resumed run computes them: {error}")
        except Unsettled:
            if call.kind.memo:
                call.settle = lambda: self._settle(call, task, args, kwargs)
            # Otherwise an input is not kept, and neither is what depends on it.
        else:
            call.digest = self._digest(call.kind, function, arguments)
            call.is_lasting = call.kind.memo

    def identify_value(self, call: Call, value: object) -> None:
        """Name a value that calls share."""
        try:
            call.digest = arguments_fingerprint((value,), {}, call.kind.name, _no_future)
        except UnhashableValue as error:
            self._warn(call.kind.name, f"what depends on it is not looked for: {error}")
        else:
            call.is_lasting = True

    def find(self, call: Call) -> bool:
        """Give a call its result, if that is there, and still what it was."""
        if not self._find(call):
            return False
        if call.check is None or not call.has_value:
            return True
        value = call.value.load() if isinstance(call.value, Parcel) else call.value
        if call.check(value):
            return True
        call.value, call.has_value = None, False
        return False

    def _find(self, call: Call) -> bool:
        if call.digest is None:
            return False
        if call.kind.memo:
            return self._find_memo(call, call.digest)
        row = self._lookup.result(call.digest) if self._lookup is not None else None
        if row is None:
            return False
        if row.value is not None:
            kind, packed = row.value[:1], row.value[1:]
            call.value = pickle.loads(packed) if kind == _PLAIN else Parcel(packed)
        else:
            stored = self._own.read(bytes.fromhex(row.file)) if self._own and row.file else None
            if stored is None:
                return False
            call.value = stored[0]
        call.has_value = True
        return True

    def _find_memo(self, call: Call, digest: bytes) -> bool:
        known = self._recent.get(digest)
        is_done = known is not None and known.observer is None and known.error is None
        if known is not None and is_done and (known.has_value or known.remote is not None):
            # It may not be in its file yet.
            call.value, call.has_value, call.remote = known.value, known.has_value, known.remote
            return True
        stored = self._memo.read(digest)
        if stored is None:
            self._recent[digest] = call
            return False
        call.value, call.has_value = stored[0], True
        return True

    def save(self, call: Call, number: int) -> ResultRow | None:
        """Keep the result of a call that is done; gives the row for it if there is one.

        Runs on the journal's thread.
        """
        digest = call.digest
        assert digest is not None, "nobody wants its result"
        if not call.has_value:
            self._keep_there(call, digest, number)
            return None
        if call.kind.memo:
            value = call.value
            parcel = value if isinstance(value, Parcel) else Parcel(pickle.dumps(value, 5))
            self._write_memo(call, digest, parcel)
            return None
        if isinstance(call.value, Parcel):
            head = call.value.head
            assert isinstance(head, bytes), "what came with the news is small"
            packed = _PACKED + head
        elif is_plain(call.value):
            packed = _PLAIN + pickle.dumps(call.value, 5)
        else:
            return None
        return ResultRow(digest, number, packed, checksum_of(packed), None)

    def late_rows(self) -> list[ResultRow]:
        """Give the rows of large results that were written since this was called last."""
        late, self._late = self._late, []
        return late

    def _keep_there(self, call: Call, digest: bytes, number: int) -> None:
        """Let the node that has a large result write it."""
        files = self._memo if call.kind.memo else self._own
        if files is None:
            return

        def written(error: BaseException | None) -> None:
            if error is not None:
                self._warn(call.kind.name, f"a large result could not be kept: {error}")
            elif not call.kind.memo:
                self._late.append(ResultRow(digest, number, None, None, digest.hex()))

        self._save_there(call, files.folder, digest.hex(), written)

    def _write_memo(self, call: Call, digest: bytes, parcel: Parcel) -> None:
        try:
            self._memo.write(digest, parcel, {"name": call.kind.name, "made": time.time()})
        except OSError as error:
            self._warn(call.kind.name, f"its results cannot be kept for later runs: {error}")

    def _settle(
        self, call: Call, task: Task[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """Name a call whose inputs are there, and find its result; runs on the client's loop."""
        function = self._function(call.kind, task)
        try:
            arguments = arguments_fingerprint(args, dict(kwargs), call.kind.name, self._value_of)
        except (UnhashableValue, Unsettled) as error:
            why = str(error) or "an input is large, and its task is not memoised too"
            self._warn(call.kind.name, f"its result is not looked for: {why}")
            return False
        call.digest = self._digest(call.kind, function, arguments)
        call.is_lasting = True
        return self.find(call)

    def _function(self, kind: Kind, task: Task[Any, Any]) -> bytes:
        known = self._functions.get(kind)
        if known is None:
            if len(self._functions) > 4096:
                self._functions.clear()
            version = task.options.version or ""
            known = self._functions[kind] = function_fingerprint(task, version=version)
        return known

    def _digest(self, kind: Kind, function: bytes, arguments: bytes) -> bytes:
        digest = hashlib.blake2b(function + arguments, digest_size=16).digest()
        if kind.memo:
            return digest
        with self._lock:
            n_before = self._n_seen.get(digest, 0)
            self._n_seen[digest] = n_before + 1
        if n_before:
            text = digest + n_before.to_bytes(8, "little")
            digest = hashlib.blake2b(text, digest_size=16).digest()
        return digest

    @staticmethod
    def _digest_of(one: object) -> bytes | None:
        """Name a future among arguments by what it computes."""
        if not isinstance(one, Future):
            return None
        if one._call.digest is None:
            raise Unsettled
        return one._call.digest

    @staticmethod
    def _lasting_digest_of(one: object) -> bytes | None:
        """The same, if that is good for other runs too."""
        if not isinstance(one, Future):
            return None
        if one._call.digest is None or not one._call.is_lasting:
            raise Unsettled
        return one._call.digest

    @staticmethod
    def _value_of(one: object) -> bytes | None:
        """Name a future that is done by its value, if nothing else names it."""
        if not isinstance(one, Future):
            return None
        call = one._call
        if call.digest is not None and call.is_lasting:
            return call.digest
        if not call.has_value:
            raise Unsettled
        if not isinstance(call.value, Parcel):
            return arguments_fingerprint((call.value,), {}, call.kind.name, _no_future)
        return call.value.digest()

    def _warn(self, name: str, text: str) -> None:
        """Tell the user once for each task."""
        if name not in self._told:
            self._told.add(name)
            logger.warning("task %r: %s", name, text)


def _no_future(_: object) -> None:
    """Nothing in a value is a future."""
