"""Any amount that is written is understood exactly, or refused with what to write instead."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exadask.cpulist import END_OF_IDS, parse_cpulist, render_cpulist
from exadask.errors import InvalidQuantity, InvalidRequest, shown
from exadask.pool import FACTS, Pool
from exadask.resources import GPU_UNIT, NodeShape, Resources
from exadask.tasks import TaskOptions
from exadask.units import (
    parse_bytes,
    parse_node_seconds,
    parse_seconds,
    render_seconds,
)
from tests.property.oddities import ANYTHING, HUGE, OBJECTS, TEXTS, Unspeakable, tried

T = TypeVar("T")
many = settings(max_examples=300, deadline=None)

BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SECONDS: dict[str, Fraction | int] = {
    "ms": Fraction(1, 1000),
    "s": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "d": 86400,
}
NODE_SECONDS = {"": 3600, "h": 3600, "node-hours": 3600, " node hours": 3600, "node-h": 3600}
NODE_SECONDS |= {
    "node-minutes": 60,
    "minutes": 60,
    "m": 60,
    "node-seconds": 1,
    "s": 1,
    "hour": 3600,
}

SPACES = st.sampled_from(("", " ", "\t", "  "))


@st.composite
def decimals(draw: st.DrawFn, n_digits: int = 6) -> str:
    whole = str(draw(st.integers(0, 10**n_digits - 1)))
    return whole + draw(st.sampled_from(("", ".5", ".25", ".1", ".3", ".007", ".999999")))


def require_refusal(parse: Callable[[], T], value: object) -> T | None:
    """Give what was understood; a refusal must be ours, and say what was given and what to give."""
    understood, message = tried(parse)
    if message is not None:
        assert "give " in message
        assert len(message) < 500
        assert shown(value) in message
    return understood


@many
@given(decimals(), st.sampled_from(sorted(BYTES)), SPACES, SPACES, st.booleans())
def test_memory_is_exact(number: str, unit: str, before: str, between: str, upper: bool) -> None:
    text = f"{before}{number}{between}{unit.upper() if upper else unit}{before}"
    expected = Fraction(number) * BYTES[unit]
    if 1 <= expected < 2**63:
        assert parse_bytes(text) == math.floor(expected)
    else:
        with pytest.raises(InvalidQuantity, match="more than zero bytes"):
            parse_bytes(text)


@given(st.integers(1, 2**63 - 1))
def test_bytes_are_kept_to_the_last(n_bytes: int) -> None:
    assert (
        parse_bytes(n_bytes) == parse_bytes(str(n_bytes)) == parse_bytes(f"{n_bytes}B") == n_bytes
    )


@many
@given(
    st.lists(
        st.tuples(decimals(), st.sampled_from(sorted(SECONDS)), SPACES), min_size=1, max_size=6
    )
)
def test_time_is_the_sum_of_its_parts(parts: list[tuple[str, str, str]]) -> None:
    text = "".join(f"{number}{unit}{space}" for number, unit, space in parts)
    expected = sum((Fraction(number) * SECONDS[unit] for number, unit, _ in parts), Fraction(0))
    if expected > 0:
        assert parse_seconds(text) == pytest.approx(float(expected), rel=1e-12)
    else:
        with pytest.raises(InvalidQuantity, match="longer than zero"):
            parse_seconds(text)


@given(st.integers(0, 400), st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_clock_is_exact(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
    assert parse_seconds(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@given(decimals(), st.sampled_from(sorted(NODE_SECONDS)))
def test_cost_is_exact(number: str, unit: str) -> None:
    expected = Fraction(number) * NODE_SECONDS[unit]
    if expected > 0:
        assert parse_node_seconds(f"{number}{unit}") == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    "text", ["3 months", "1 million", "2 node-days", "1 ms", "5 houses", "1 \u017f"]
)
def test_cost_in_another_unit_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(InvalidQuantity, match="node-hours"):
        parse_node_seconds(text)


@many
@given(ANYTHING)
def test_any_amount_is_understood_or_refused(value: Any) -> None:
    for parse in (parse_bytes, parse_seconds, parse_node_seconds):
        amount = require_refusal(lambda parse=parse: parse(value), value)  # type: ignore[misc]  # bound now
        assert amount is None or (isinstance(amount, (int, float)) and 0 < amount < math.inf)
        if isinstance(value, float) and amount is not None and parse is not parse_node_seconds:
            assert amount == (int(value) if parse is parse_bytes else value)


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_every_odd_object_is_understood_or_refused(value: Any) -> None:
    for name in ("cores", "gpus", "memory", "time"):
        require_refusal(lambda name=name: Resources.parse(**{name: value}), value)  # type: ignore[misc]  # bound now
    for name in ("cores", "gpus", "memory"):
        require_refusal(lambda name=name: NodeShape.declare(**{"cores": 1, name: value}), value)  # type: ignore[misc]  # bound now


@many
@given(cores=ANYTHING, gpus=ANYTHING, memory=ANYTHING, time=ANYTHING)
def test_any_request_is_understood_or_refused(**asked: Any) -> None:
    for name, value in asked.items():
        request = require_refusal(lambda one={name: value}: Resources.parse(**one), value)  # type: ignore[misc]  # bound now
        if request is None:
            continue
        assert isinstance(request, Resources)
        assert 1 <= request.cores < 2**31
        assert 0 <= request.gpu_units < 2**31 * GPU_UNIT
        assert request.gpu_units < GPU_UNIT or request.gpu_units % GPU_UNIT == 0
        if name == "cores":
            assert request.cores == value
        if name == "gpus":
            assert abs(request.gpus - value) < 1 / GPU_UNIT if value < 1 else request.gpus == value
        assert str(request)
        assert repr(request)


@given(st.integers(1, 2**31 - 1), st.integers(0, 1000), st.floats(1e-3, 1e9), st.integers(1, 2**62))
def test_request_that_is_shown_reads_back_nearly_the_same(
    cores: int, gpus: int, time_s: float, memory: int
) -> None:
    request = Resources.parse(cores=cores, gpus=gpus, time=time_s, memory=memory)
    shown: Resources = eval(repr(request), {"Resources": Resources.parse})
    assert (shown.cores, shown.gpu_units) == (request.cores, request.gpu_units)
    assert shown.memory_bytes == pytest.approx(memory, rel=1e-3)
    assert shown.time_s == pytest.approx(time_s, rel=0.05)


@given(st.floats(min_value=1e-7, max_value=1e15))
def test_any_time_that_is_shown_reads_back(seconds: float) -> None:
    assert parse_seconds(render_seconds(seconds)) == pytest.approx(seconds, rel=0.05)


@pytest.mark.parametrize("gpus", [1.0001, 2.0001, 1.5, 3.9999])
def test_more_than_a_gpu_is_whole(gpus: float) -> None:
    with pytest.raises(InvalidQuantity, match=f"gpus={gpus}"):
        Resources.parse(gpus=gpus)


@pytest.mark.parametrize("n", [2**20, 2**30, 10**9, 2**31 - 1])
def test_a_node_of_a_billion_cores_is_refused_before_they_are_counted(n: int) -> None:
    for wrong in ({"cores": n}, {"cores": 1, "gpus": n}):
        with pytest.raises(InvalidQuantity, match="less than 1048576"):
            NodeShape.declare(**wrong)
        with pytest.raises(InvalidRequest, match="less than 1048576"):
            Pool.declare("large", **wrong)


@pytest.mark.parametrize("text", ["9" * 200_000 + "!", "1" + " " * 200_000 + "!", "1h" * 100_000])
def test_a_text_without_end_is_refused_at_once(text: str) -> None:
    for parse in (parse_bytes, parse_seconds, parse_node_seconds):
        with pytest.raises(InvalidQuantity) as caught:
            parse(text)
        assert len(str(caught.value)) < 400


def test_a_version_that_cannot_be_hashed_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="version="):
        TaskOptions.parse({"version": "\ud800"})


@pytest.mark.parametrize("name", ["retries", "priority"])
def test_a_count_that_cannot_be_sent_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}=.*Give "):
        TaskOptions.parse({name: 2**64})


def test_a_number_that_python_does_not_write_is_refused_in_words() -> None:
    for name in ("cores", "gpus", "memory", "time"):
        with pytest.raises(InvalidQuantity) as caught:
            Resources.parse(**{name: HUGE})
        assert f"{name}=" in str(caught.value)


def test_an_object_without_a_repr_is_refused_by_its_type() -> None:
    with pytest.raises(InvalidQuantity) as caught:
        parse_bytes(Unspeakable())  # type: ignore[arg-type]  # what is tested
    assert "Unspeakable" in str(caught.value)


# -- ladders, options, pools -----------------------------------------------------------------------

OPTIONS = st.sampled_from(
    (
        *("cores", "gpus", "memory", "time", "retries", "retry_on", "priority", "env", "setup"),
        *("isolation", "name", "pool", "bundle", "memo", "version", "checkpoint", "notice"),
    )
)
LISTS = st.lists(ANYTHING, max_size=4)
ENVIRONMENTS = st.dictionaries(st.one_of(TEXTS, st.integers()), ANYTHING, max_size=2)


@many
@given(st.dictionaries(OPTIONS, st.one_of(ANYTHING, LISTS, ENVIRONMENTS), max_size=3))
def test_any_option_of_a_task_is_understood_or_refused(options: dict[str, Any]) -> None:
    parsed, refusal = tried(lambda: TaskOptions.parse(options))
    assert refusal != ""
    if parsed is not None:
        assert parsed.request.cores >= 1
        assert parsed.retries >= 0
        assert all(low != high for low, high in itertools.pairwise(parsed.rungs))


@many
@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=5), st.booleans())
def test_a_ladder_only_climbs(memory: list[int], is_text: bool) -> None:
    written = [f"{one}B" if is_text else one for one in memory]
    is_climbing = all(low < high for low, high in itertools.pairwise(memory))
    parsed, refusal = tried(lambda: TaskOptions.parse({"memory": written}), InvalidRequest)
    if parsed is None:
        assert not is_climbing
        assert refusal is not None
        assert "ladder" in refusal
    else:
        assert is_climbing or len(set(memory)) == 1
        assert parsed.request.memory_bytes == memory[0]


@many
@given(
    st.dictionaries(
        st.sampled_from(FACTS), st.one_of(ANYTHING, LISTS, ENVIRONMENTS), min_size=1, max_size=2
    )
)
def test_any_fact_of_a_pool_is_understood_or_refused(stated: dict[str, Any]) -> None:
    pool, refusal = tried(lambda: Pool.declare("any", **stated), InvalidRequest)
    if pool is None:
        assert any(name in str(refusal) for name in stated)
    else:
        assert 1 <= pool.min_nodes <= pool.max_nodes < 2**31
        assert 0 < pool.walltime_s < math.inf
        assert 0 < pool.idle_s < math.inf


@many
@given(ANYTHING)
def test_any_name_of_a_pool_is_taken_or_refused(name: Any) -> None:
    pool, refusal = tried(lambda: Pool.declare(name), InvalidRequest)
    if pool is None:
        assert "a pool cannot be called" in str(refusal)
    else:
        assert pool.name == name
        assert not set(pool.name) & set("/\0\n ")


# -- lists of cores --------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 5000), max_size=60))
def test_list_of_cores_reads_back(ids: set[int]) -> None:
    assert parse_cpulist(render_cpulist(ids)) == tuple(sorted(ids))


@many
@given(st.one_of(TEXTS, st.text("0123456789-, ", max_size=16)))
def test_any_list_of_cores_is_understood_or_refused(text: str) -> None:
    ids, refusal = tried(lambda: parse_cpulist(text), ValueError)
    if ids is None:
        assert refusal
    else:
        assert all(0 <= one < END_OF_IDS for one in ids)
