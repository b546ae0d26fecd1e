"""What a user may write of a pool, what becomes of it, and what is said about the rest."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exadask.cpulist import END_OF_IDS, parse_cpulist
from exadask.errors import InvalidRequest
from exadask.pool import (
    BATCH_SYSTEMS,
    FACTS,
    LAUNCHERS,
    GpuOption,
    Limits,
    MemoryOption,
    NodeBin,
    Pool,
)
from exadask.resources import NodeShape

_HUGE = 0xFFFF_FFFF_FFFF
_BINS = [{"nodes": [256, 1024], "walltime": "12h"}, {"nodes": [1025, 1999], "walltime": "18h"}]

GOOD: dict[str, tuple[Any, str, Any]] = {
    "batch": ("slurm", "batch", "slurm"),
    "nodes": ([2, 8], "min_nodes", 2),
    "max_allocations": (3, "max_allocations", 3),
    "walltime": ("1h30m", "walltime_s", 5400.0),
    "idle": (5, "idle_s", 5.0),
    "cores": (4, "shape.cores", 4),
    "gpus": (2, "shape.gpus", 2),
    "memory": ("4GiB", "shape.memory_bytes", 2**32),
    "queue": ("gpu", "queue", "gpu"),
    "account": ("abc", "account", "abc"),
    "qos": ("debug", "qos", "debug"),
    "exclusive": (False, "exclusive", False),
    "memory_option": ("all", "memory_option", "all"),
    "gpu_option": ("gres", "gpu_option", "gres"),
    "gpu_type": ("v100-32", "gpu_type", "v100-32"),
    "select": ("system=polaris", "select", "system=polaris"),
    "place": ("scatter", "place", "scatter"),
    "directives": (["-C nvme", ""], "directives", ("-C nvme",)),
    "skip_directives": ("--mem", "skip_directives", ("--mem",)),
    "launcher": ("srun", "launcher", "srun"),
    "launcher_options": ("-v", "launcher_options", ("-v",)),
    "prologue": ("a\n\nb", "prologue", ("a", "b")),
    "setup": ("x=1", "setup", ("x=1",)),
    "modules": (["gcc", "python"], "setup", ("module load gcc", "module load python")),
    "venv": ("/v", "setup", ("source /v/bin/activate",)),
    "conda": ("e", "setup", ('eval "$(conda shell.bash hook)" && conda activate e',)),
    "env": ({"B": "$HOME", "A": ""}, "env", (("A", ""), ("B", "$HOME"))),
    "python": ("/usr/bin/python3", "python", "/usr/bin/python3"),
    "interface": ("hsn0", "interface", "hsn0"),
    "scheduler_interface": ("eth0", "scheduler_interface", "eth0"),
    "scratch": ("$TMPDIR", "scratch", "$TMPDIR"),
    "blocked_cores": ("0,8-9", "hints.blocked_cores", (0, 8, 9)),
    "threads_per_core": (1, "hints.threads_per_core", 1),
    "gpu_ids": (["0.0", "0.1"], "hints.gpu_ids", ("0.0", "0.1")),
    "gpu_vendor": ("amd", "hints.gpu_vendor", "amd"),
    "gpu_cores": (["0-1", [4, 5]], "hints.gpu_cores", ((0, 1), (4, 5))),
    "rank_launcher": (
        "srun -w {node} -n {ranks} -c {cores}",
        "hints.rank_launcher",
        "srun -w {node} -n {ranks} -c {cores}",
    ),
    "max_queued": (100, "limits.queued", 100),
    "max_running": (10, "limits.running", 10),
    "bins": (
        [{"nodes": [1, 8], "walltime": "2h"}],
        "limits.bins",
        (NodeBin(least=1, most=8, walltime_s=7200.0),),
    ),
}

_NO_TEXTS = [3, True, "", "  ", "a\nb", "a\rb", ["a"], {}, b"a"]
_NO_COUNTS = [0, -1, 1.0, "1", True, None, 2**31, [], float("nan")]
_NO_LINES: list[Any] = [3, None, True, {}, [1], ["a", None], b"a"]
_NO_DURATIONS = ["", "soon", 0, -1, "0s", float("inf"), float("nan"), True, None, [], "1h1"]
_NO_CORES = [
    *("a", "1-", "-3", "3-1", "0-1-2", "0;1", "1.5", "0x1", "0-99999999999", f"{END_OF_IDS}"),
    *("9" * 5000, ",".join(["0-1048575"] * 3)),
    *(3, None, True, [-1], [1.0], ["0"], [True], [END_OF_IDS], {0: 1}, [float("inf")], b"0"),
]

BAD: dict[str, list[Any]] = {
    "batch": ["", "Slurm", "slrum", 3, None, [], "slurm:x", "psij:", "psij:a b", "psij"],
    "nodes": [*_NO_COUNTS, [1], [1, 2, 3], [0, 1], [2, 1], ["1", 2], "1-2", {}],
    "max_allocations": _NO_COUNTS,
    "walltime": _NO_DURATIONS,
    "idle": _NO_DURATIONS,
    "cores": _NO_COUNTS,
    "gpus": [-1, *_NO_COUNTS[2:]],
    "memory": ["", "much", 0, -1, "0GB", "1XB", True, None, [], float("inf"), "9999999TB"],
    "queue": _NO_TEXTS,
    "account": _NO_TEXTS,
    "qos": _NO_TEXTS,
    "exclusive": [0, 1, "true", None, []],
    "memory_option": ["", "ALL", None, 3, []],
    "gpu_option": ["", "gpu", None, 3, []],
    "gpu_type": ["", "a b", "a:b", "a\n", 3, True, ["a"]],
    "select": _NO_TEXTS,
    "place": _NO_TEXTS,
    "directives": _NO_LINES,
    "skip_directives": _NO_LINES,
    "launcher": ["", "sruns", None, 3, []],
    "launcher_options": _NO_LINES,
    "prologue": _NO_LINES,
    "setup": _NO_LINES,
    "modules": _NO_LINES,
    "venv": _NO_LINES,
    "conda": _NO_LINES,
    "env": [
        3,
        None,
        [],
        "A=1",
        {"A": 1},
        {"1A": "x"},
        {"A B": "x"},
        {"": "x"},
        {1: "x"},
        {"Ä": ""},
    ],
    "python": _NO_TEXTS,
    "interface": _NO_TEXTS,
    "scheduler_interface": _NO_TEXTS,
    "scratch": _NO_TEXTS,
    "blocked_cores": _NO_CORES,
    "threads_per_core": _NO_COUNTS,
    "gpu_ids": [3, None, [0], "0,1", ["0 1"], {}],
    "gpu_vendor": ["", "AMD", None, 3, []],
    "gpu_cores": ["0-7", 3, None, {}, *([one] for one in _NO_CORES)],
    "rank_launcher": [*_NO_TEXTS, "srun -n {rank}", "srun {}", "srun {", "srun '-n", "{node.x}"],
    "max_queued": _NO_COUNTS,
    "max_running": _NO_COUNTS,
    "bins": [
        *("x", 3, None, {}, [3], [[]], [{}]),
        *([{"nodes": 4}], [{"walltime": "1h"}], [{"nodes": 0, "walltime": "1h"}]),
        *([{"nodes": [9, 8], "walltime": "1h"}], [{"nodes": 4, "walltime": "x"}]),
        [{"nodes": 4, "walltime": "1h", "wall": 3}],
    ],
}


def part(pool: Pool, place: str) -> object:
    found: object = pool
    for name in place.split("."):
        found = getattr(found, name)
    return found


# -- each fact ------------------------------------------------------------------------------------


def test_every_fact_is_tested() -> None:
    assert set(GOOD) == set(BAD) == set(FACTS)


@pytest.mark.parametrize("key", FACTS)
def test_good_values_find_their_place(key: str) -> None:
    value, place, wanted = GOOD[key]
    pool = Pool.declare("x", **{key: value})
    assert part(pool, place) == wanted
    assert pool.updated() == pool
    assert pickle.loads(pickle.dumps(pool)) == pool


@pytest.mark.parametrize("key", FACTS)
def test_bad_values_are_refused_with_the_name_of_the_fact(key: str) -> None:
    for value in BAD[key]:
        with pytest.raises(InvalidRequest) as caught:
            Pool.declare("x", **{key: value})
        assert "pool 'x' cannot be used" in str(caught.value), value
        assert key in str(caught.value), value


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("batch", [one for one in BATCH_SYSTEMS if one != "psij"]),
        ("launcher", LAUNCHERS),
        ("memory_option", [one for one in get_args(MemoryOption) if one != "shape"]),
        ("gpu_option", get_args(GpuOption)),
    ],
)
def test_all_choices_are_taken(key: str, choices: list[str]) -> None:
    for one in choices:
        assert getattr(Pool.declare("x", **{key: one}), key) == one


@pytest.mark.parametrize("key", ["queue", "account", "select", "scratch", "interface", "gpu_type"])
def test_a_text_can_be_taken_back(key: str) -> None:
    pool = Pool.declare("x", batch="slurm", **{key: "a"})
    assert getattr(pool.updated(**{key: None}), key) is None


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ({"waltime": "1h"}, "'waltime' is not a fact of a pool. Did you mean 'walltime'?"),
        ({"core": 4}, "Did you mean 'cores'?"),
        ({"gpu_typ": "x"}, "Did you mean 'gpu_type'?"),
        ({"zzz": 1}, "Known are: batch, nodes,"),
        ({"min_nodes": 1}, "'min_nodes' is not a fact of a pool. Did you mean"),
        ({"batch": "slrum"}, "batch='slrum' is not known. Did you mean 'slurm'?"),
        ({"batch": "zzz"}, f"Known are: {', '.join(BATCH_SYSTEMS)}."),
        ({"batch": "slurm:x"}, "write 'psij:slurm'"),
        ({"launcher": "mpiexe"}, "Did you mean 'mpiexec'?"),
        ({"gpu_option": "gpu-per-node"}, "Did you mean 'gpus-per-node'?"),
        ({"memory_option": "al"}, "Did you mean 'all'?"),
        ({"gpu_vendor": "nvida"}, "gpu_vendor='nvida' is not known. Did you mean 'nvidia'?"),
        ({"blocked_cores": "0-99999999999"}, "each below 1048576"),
        ({"nodes": [5, 2]}, "5 is more than 2"),
    ],
)
def test_messages_say_what_to_write_instead(said: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Pool.declare("x", **said)
    assert hint in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    said = {"waltime": "1h", "cores": 0, "batch": "slrum", "env": 3, "queue": "fine", "nodes": "x"}
    with pytest.raises(InvalidRequest) as caught:
        Pool.declare("gpu", **said)
    text = str(caught.value)
    assert text.startswith("pool 'gpu' cannot be used:")
    for words in ("'waltime'", "cores=0", "batch='slrum'", "env=3", "nodes='x'"):
        assert words in text
    assert "queue" not in text.replace("Known are", "")


@pytest.mark.parametrize("name", ["gpu", "a-b_c.1", "1", "Ü"])
def test_names(name: str) -> None:
    assert Pool.declare(name).name == name


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "-a", ".a", "a\n", "a'b", 3, None])
def test_bad_names(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="a pool cannot be called"):
        Pool.declare(name)


# -- what facts do together -----------------------------------------------------------------------


def test_declared_at_once_or_one_after_the_other() -> None:
    said = {"batch": "slurm", "nodes": 4, "cores": 8, "gpus": 2, "memory": "4GB", "queue": "q"}
    pool = Pool.declare("x")
    for key, value in said.items():
        pool = pool.updated(**{key: value})
    assert pool == Pool.declare("x", **said)
    assert (pool.min_nodes, pool.max_nodes) == (4, 4)


def test_an_update_keeps_what_it_does_not_name() -> None:
    pool = Pool.declare("x", cores=8, gpus=2, memory="4GB", blocked_cores="0", max_queued=9)
    changed = pool.updated(cores=4, threads_per_core=1, max_running=3)
    assert changed.shape == NodeShape.declare(cores=4, gpus=2, memory="4GB")
    assert changed.hints.blocked_cores == (0,)
    assert changed.limits == Limits(queued=9, running=3)
    assert pool.shape == NodeShape.declare(cores=8, gpus=2, memory="4GB")


def test_environments_come_before_the_setup_and_in_an_order_that_works() -> None:
    pool = Pool.declare("x", setup="last", venv="/v", modules=["gcc", "python"])
    wanted = ("module load gcc", "module load python", "source /v/bin/activate", "last")
    assert pool.setup == wanted
    assert pool.updated(queue="q").setup == wanted
    assert pool.updated(modules="cuda").setup == ("module load cuda", *wanted)
    assert pool.updated(setup="other").setup == ("other",)


def test_psij_names_its_executor_and_forgets_it() -> None:
    pool = Pool.declare("x", batch="psij:slurm")
    assert (pool.batch, pool.psij_executor) == ("psij", "slurm")
    assert pool.updated(batch="slurm").psij_executor is None
    with pytest.raises(InvalidRequest, match=r"batch=.psij. needs an executor"):
        pool.updated(batch="psij")


def test_is_batch() -> None:
    assert not Pool.declare("x").is_batch
    assert Pool.declare("x", batch="slurm").is_batch


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"batch": "sge", "nodes": 2}, "nodes=2: sge gives one node per job"),
        ({"batch": "htcondor", "nodes": [1, 2]}, "htcondor gives one node per job"),
        ({"gpus": 2, "gpu_cores": ["0", "1", "2"]}, "cores of 3 GPUs, but a node has 2"),
        ({"batch": "pbs", "gpu_type": "a100"}, "gpu_type='a100': only Slurm.*select="),
        ({"cores": 4, "memory_option": "shape"}, "not stated: say memory=, or memory_option"),
    ],
)
def test_contradictions(said: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Pool.declare("x", **said)


def test_contradictions_are_named_together() -> None:
    with pytest.raises(InvalidRequest, match=r"one node per job.*only Slurm.*more than the site"):
        Pool.declare(
            "x",
            batch="sge",
            nodes=2,
            gpu_type="a",
            walltime="2h",
            bins=[{"nodes": 4, "walltime": "1h"}],
        )


# -- memory ---------------------------------------------------------------------------------------


def test_memory_that_nobody_stated_is_no_promise() -> None:
    pool = Pool.declare("x", cores=4, gpus=1)
    assert pool.shape is not None
    assert not pool.shape.is_memory_stated
    assert str(pool.shape) == "4 cores, 1 GPU, memory not stated"
    assert pool.memory_asked_bytes is None
    changed = pool.updated(gpus=2)
    assert changed.shape is not None
    assert not changed.shape.is_memory_stated


def test_memory_that_was_stated_stays_stated() -> None:
    shape = Pool.declare("x", cores=4, memory="1TiB").updated(cores=8).shape
    assert shape is not None
    assert shape.is_memory_stated
    assert str(shape) == "8 cores, 1 TiB of memory"
    assert str(pickle.loads(pickle.dumps(shape))) == str(shape)


@pytest.mark.parametrize(
    ("steps", "option", "asked"),
    [
        ([{"cores": 4}], "none", None),
        ([{"memory": "2GB"}], "none", None),
        ([{"exclusive": False}], "none", None),
        ([{"exclusive": False, "memory": "2GB"}], "shape", 2 * 10**9),
        ([{"exclusive": False}, {"memory": "2GB"}], "shape", 2 * 10**9),
        ([{"memory": "2GB"}, {"exclusive": False}], "shape", 2 * 10**9),
        ([{"exclusive": False, "memory": "2GB"}, {"memory": "4GB"}], "shape", 4 * 10**9),
        ([{"exclusive": False, "memory": "2GB"}, {"exclusive": True}], "none", None),
        ([{"exclusive": False, "memory": "2GB", "memory_option": "none"}], "none", None),
        ([{"exclusive": False, "memory_option": "none"}, {"memory": "2GB"}], "none", None),
        ([{"memory_option": "none"}, {"exclusive": False, "memory": "2GB"}], "none", None),
        ([{"memory_option": "all"}, {"exclusive": False, "memory": "2GB"}], "all", None),
        ([{"memory": "2GB", "memory_option": "shape"}], "shape", 2 * 10**9),
    ],
)
def test_who_decides_whether_memory_is_asked_for(
    steps: list[dict[str, Any]], option: str, asked: int | None
) -> None:
    pool = Pool.declare("x")
    for one in steps:
        pool = pool.updated(**one)
    assert (pool.memory_option, pool.memory_asked_bytes) == (option, asked)


# -- the rules of a site --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "walltime"),
    [
        (256, "12h"),
        (1999, "18h"),
        ([1, 2000], "12h"),  # both ends are refused, sizes in between are not
        ([1, 2000], "18h"),
        ([1, 300], "12h"),
        ([1998, 5000], "18h"),
        ([300, 301], "1h"),
    ],
)
def test_one_size_that_is_allowed_is_enough(nodes: Any, walltime: str) -> None:
    pool = Pool.declare("x", nodes=nodes, walltime=walltime, bins=_BINS)
    assert pool.limits.bins[0] == NodeBin(least=256, most=1024, walltime_s=12 * 3600)


@pytest.mark.parametrize(
    ("nodes", "walltime", "words"),
    [
        (1, "1h", "no allocations of 1 node here, but of 256 to 1024, 1025 to 1999"),
        ([1, 255], "1h", "no allocations of 1 to 255 nodes here"),
        ([2000, 9000], "1h", "no allocations of 2000 to 9000 nodes here"),
        (256, "13h", r"walltime=46800 s is more than the site allows for 256 nodes \(43200 s\)"),
        ([1, 2000], "19h", r"for 1 to 2000 nodes \(64800 s\)"),
    ],
)
def test_no_size_that_is_allowed(nodes: Any, walltime: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Pool.declare("x", nodes=nodes, walltime=walltime, bins=_BINS)


def test_a_gap_between_rules_is_no_size() -> None:
    bins = [{"nodes": 2, "walltime": "1h"}, {"nodes": [8, 9], "walltime": "1h"}]
    with pytest.raises(InvalidRequest, match="no allocations of 3 to 7 nodes"):
        Pool.declare("x", nodes=[3, 7], bins=bins)
    assert Pool.declare("x", nodes=[3, 8], bins=bins).max_nodes == 8


def test_rules_can_be_lifted() -> None:
    pool = Pool.declare("x", nodes=256, bins=_BINS)
    assert pool.updated(nodes=1, bins=[]).limits.longest_s(1) is None


def test_longest_walltime() -> None:
    limits = Pool.declare("x", nodes=256, bins=_BINS).limits
    assert [limits.longest_s(nodes) for nodes in (1, 256, 1025, 2000)] == [0, 43200, 64800, 0]
    assert Limits().longest_s(1) is None


# -- lists of cores -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", ()),
        ("\n", ()),
        ("0", (0,)),
        ("0-2,8\n", (0, 1, 2, 8)),
        (" 1 - 2 , 4 ,", (1, 2, 4)),
        ("3,1", (3, 1)),
        (f"{END_OF_IDS - 1}", (END_OF_IDS - 1,)),
    ],
)
def test_cpu_lists(text: str, ids: tuple[int, ...]) -> None:
    assert parse_cpulist(text) == ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "'a' is no id"),
        ("1-", "no range"),
        ("0,-3", "'-3' is no id"),
        ("5-3", "ends before it begins"),
        ("0-7:2/4", "no range"),
        ("\u0663", "is no id"),
        (f"0-{_HUGE}", "goes beyond 1048575"),
        (f"{_HUGE}-{_HUGE}", "goes beyond 1048575"),
        ("0-1048575,0", "goes beyond 1048575"),
    ],
)
def test_bad_cpu_lists_are_refused_before_anything_is_allocated(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_cpulist(text)


@given(st.text(alphabet="0123456789-, x\n", max_size=12))
def test_any_cpu_list_is_read_or_refused(text: str) -> None:
    try:
        ids = parse_cpulist(text)
    except ValueError:
        return
    assert all(0 <= one < END_OF_IDS for one in ids)
    assert len(ids) <= END_OF_IDS
