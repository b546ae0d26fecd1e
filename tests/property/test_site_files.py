"""Whatever a file of a site, a node or the environment says: it is used, or refused by its name."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exadask.config import SETTINGS, Config
from exadask.errors import InvalidRequest, SiteError
from exadask.pool import FACTS
from exadask.resources import NodeShape
from exadask.runtime.detection import detect_node, read_shape
from exadask.runtime.gpus import detect_gpus
from exadask.runtime.posting import Posting
from exadask.runtime.requests import preview
from exadask.sites.model import Profile
from exadask.sites.profile import SHIPPED, find_profile, load_site, read_profile
from exadask.sites.recognition import recognised_site
from tests.property.oddities import ANYTHING, TEXTS, tried

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(many, max_examples=60)

PROFILES = sorted(SHIPPED.glob("*.toml"))
NOWHERE: Mapping[str, str] = {}
VALUES = (
    *("nan", "inf", "-inf", "-1", "0", "1e400", "0x" + "f" * 5000, "9" * 5000, "true", '""'),
    *("[]", "{}", "[[]]", "[1, 'a']", "{a = 1}", '"\\u0000"', '"2h"', '"any"', "1979-05-27"),
    *("[-5, 3]", "[3, 1]", "[1, 2, 3]", '"' + "x" * 5000 + '"', "07:32:00", '"${x}"', "'a\tb'"),
    *('"../../etc/passwd"', '"/dev/null"', '"~\\u0000/x.toml"', '"mine"', '"\\n"', '"x\\ny"'),
)


@functools.cache
def lines_of(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").splitlines(keepends=True))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Change a shipped profile here and there, by lines, values and bytes."""
    lines = list(lines_of(draw(st.sampled_from(PROFILES))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(("drop", "double", "move", "value", "key", "value", "new"))):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "value" if "=" in lines[at]:
                key = lines[at].partition("=")[0]
                lines[at] = f"{key}= {draw(st.sampled_from(VALUES))}\n"
            case "key" if "=" in lines[at]:
                value = lines[at].partition("=")[2]
                lines[at] = f"{draw(st.sampled_from((*FACTS, 'extends', 'x')))} ={value}"
            case _:
                key = draw(st.sampled_from((*FACTS, "extends", "requires", "sources", "pools")))
                lines.insert(at, f"{key} = {draw(st.sampled_from(VALUES))}\n")
    content = "".join(lines).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        n_bytes = draw(st.integers(0, 8))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at + n_bytes :]
    return content


def read_or_refused(content: bytes) -> Profile | None:
    """Write a profile and use it in every way; each refusal must name it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mine.toml")
        path.write_bytes(content)
        recognised, problem = tried(
            lambda: recognised_site("host.example", NOWHERE, search=[path.parent]), SiteError
        )
        assert problem is None or recognised is None
        profile, refusal = tried(lambda: read_profile(path, environ=NOWHERE), SiteError)
        if profile is None:
            assert "mine" in str(refusal)
            return None
        for name in profile.pools:
            site, refusal = tried(
                lambda name=name: load_site(path, pools=[name], environ=NOWHERE)  # type: ignore[misc]  # bound now
            )
            if site is None:
                assert name in str(refusal) or "mine" in str(refusal)
                continue
            shown, _ = tried(lambda site=site: preview(site.pools[0], Path(folder)))  # type: ignore[misc]  # bound now
            if shown is not None:
                assert "\0" not in shown.scripts.job + shown.scripts.node
                (shown.scripts.job + shown.scripts.node).encode()
        return profile


@many
@given(mutated())
def test_a_mutated_profile_is_used_or_refused_by_its_name(content: bytes) -> None:
    read_or_refused(content)


@many
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text("[]{}=\"'.,#\n abxpools1-", max_size=60).map(str.encode),
        st.sampled_from((b"[" * 5000, b"a=" + b"[" * 5000, b"a." * 3000 + b"b=1", b"\xef\xbb\xbf")),
    )
)
def test_a_text_that_is_nearly_toml_is_used_or_refused(content: bytes) -> None:
    read_or_refused(content)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_what_is_shipped_is_used_under_another_name(path: Path) -> None:
    assert read_or_refused(path.read_bytes()) is not None


@few
@given(st.one_of(TEXTS, TEXTS.map(lambda text: f"~{text}.toml"), TEXTS.map(lambda one: f"/{one}")))
def test_any_name_of_a_profile_is_found_or_refused(name: str) -> None:
    for find in (find_profile, read_profile):
        found, refusal = tried(lambda find=find: find(name, environ=NOWHERE))  # type: ignore[misc]  # bound now
        assert found is not None or refusal


# -- files of nodes --------------------------------------------------------------------------------

KEYS = st.sampled_from(("cores", "gpus", "memory", "gpu_vendor", "other"))


@many
@given(st.dictionaries(KEYS, st.sampled_from((*VALUES, "4", '"8GiB"', '"amd"')), max_size=4))
def test_a_declared_shape_is_used_or_refused_by_its_name(facts: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shape.toml")
        path.write_text("".join(f"{key} = {value}\n" for key, value in facts.items()))
        for read in (read_shape, lambda path: detect_node(environ={"EXADASK_NODE_SHAPE": path})):
            shape, refusal = tried(lambda read=read: read(path))  # type: ignore[misc]  # bound now
            if shape is None:
                assert "shape.toml" in str(refusal)
            else:
                assert isinstance(shape, NodeShape)
                assert str(shape)


@many
@given(st.one_of(TEXTS, st.integers().map(str)), st.one_of(TEXTS, st.just("amd")))
def test_declared_gpus_are_used_or_refused_by_their_variable(count: str, vendor: str) -> None:
    environ = {"EXADASK_GPUS": count, "EXADASK_GPU_VENDOR": vendor}
    gpus, refusal = tried(lambda: detect_gpus(Path("/nowhere"), environ))
    assert gpus is not None or "EXADASK_GPU" in str(refusal)
    assert gpus is None or len(gpus.ids) == int(count)


@many
@given(st.one_of(st.binary(max_size=40), st.sampled_from((b"{}", b"[]", b"[" * 5000, b"1e999"))))
def test_the_orders_of_an_agent_are_read_or_refused_by_their_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "agent.json")
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=r"agent\.json"):
            Posting.read(path)


# -- settings --------------------------------------------------------------------------------------

NAMES = st.one_of(st.sampled_from(SETTINGS), st.text("abc_S", max_size=6))
VARIABLES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def require_sound(config: Config) -> None:
    for name in SETTINGS:
        value = getattr(config, name)
        if name.endswith("_s"):
            assert isinstance(value, float | int)
            assert 0 < value < float("inf")
        if name.endswith("_bytes"):
            assert 1 <= value < 2**63
    assert config.memo_path.is_absolute()


@many
@given(st.dictionaries(NAMES, st.one_of(VARIABLES, TEXTS), max_size=3))
def test_any_environment_is_used_or_refused_by_its_variable(said: dict[str, str]) -> None:
    environ = {f"EXADASK_{name.upper()}": value for name, value in said.items()}
    config, refusal = tried(lambda: Config.resolve(environ=environ), InvalidRequest)
    if config is None:
        assert any(name.upper() in str(refusal) or name in str(refusal) for name in said)
    else:
        require_sound(config)


@many
@given(st.dictionaries(NAMES, ANYTHING, max_size=3))
def test_any_setting_is_used_or_refused_by_its_name(said: dict[str, Any]) -> None:
    config, refusal = tried(lambda: Config.resolve(said, environ={}), InvalidRequest)
    if config is None:
        assert any(name in str(refusal) for name in said)
    else:
        require_sound(config)
