"""Whatever the small files in the folder of a run have become: what reads them says so."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exadask.errors import ClusterUnreachable, RunFolderError
from exadask.journal.lock import RunLock
from exadask.runtime.certificates import create_certificates
from exadask.runtime.pooled_cluster import AttachedCluster
from exadask.runtime.run_folder import RunFolder
from exadask.runtime.standing import stop_standing
from tests.property.oddities import tried

many = settings(max_examples=150, deadline=None)

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
FACTS = st.fixed_dictionaries(
    {}, optional={"address": JSON, "host": JSON, "pid": JSON, "target": JSON, "began": JSON}
)
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from((b"", b"[" * 4096, b"{", b'{"pid": ' + b"9" * 4000 + b"}", b"\xff\xfe")),
    st.one_of(JSON, FACTS).map(lambda facts: json.dumps(facts).encode()),
)
WRONG: tuple[Any, ...] = (
    *([], 5, None, {}, {"address": "tls://x:1"}, {"address": 5, "host": "h", "pid": 7}),
    *({"address": "tls://x:1", "host": "h", "pid": pid} for pid in (-1, 0, "7", None, True)),
    *({"address": one, "host": "h", "pid": 7} for one in ("", "x", "tcp://x:1", "ftp://x:1")),
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path)
    create_certificates(made.tls)
    return made


@many
@given(CONTENTS)
def test_any_news_of_a_scheduler_are_understood_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder))
        (run.path / "cluster.json").write_bytes(content)
        (run.path / "run.json").write_bytes(content)
        facts, refusal = tried(run.published, RunFolderError)
        assert (facts is None) == (refusal is not None)
        if facts is not None:
            assert isinstance(facts["address"], str)
            assert facts["pid"] > 0
        assert run.target is None or isinstance(run.target, str)


@pytest.mark.parametrize("facts", WRONG, ids=repr)
def test_a_scheduler_that_is_wrongly_told_is_neither_joined_nor_ended(
    run: RunFolder, facts: Any
) -> None:
    (run.path / "cluster.json").write_text(json.dumps(facts))
    for use in (AttachedCluster, stop_standing):
        with pytest.raises(RunFolderError, match="no scheduler of this run listens"):
            use(run)


@pytest.mark.parametrize("address", ["tls://", "tls://a:b"])
def test_a_scheduler_at_an_address_that_is_none_cannot_be_reached(
    run: RunFolder, address: str
) -> None:
    run.publish({"address": address, "host": "here", "pid": 1, "version": "", "pools": []})
    with pytest.raises(ClusterUnreachable):
        AttachedCluster(run)


@many
@given(CONTENTS)
def test_whatever_a_lock_says_it_locks(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lock"
        path.write_bytes(content)
        first, second = RunLock(path), RunLock(path)
        first.acquire()
        path.write_bytes(content)
        with pytest.raises(RunFolderError, match="writes there"):
            second.acquire()
        first.release()
        second.acquire()
        second.release()
