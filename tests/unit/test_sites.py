"""Site profiles: the shipped ones are whole and honest; a user's are found, merged and checked."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exadask.cpulist import parse_cpulist
from exadask.errors import InvalidRequest, SiteError
from exadask.pool import FACTS
from exadask.sites.model import PROVENANCES, Profile
from exadask.sites.profile import SHIPPED, list_profiles, load_site, read_profile
from exadask.sites.recognition import recognised_site, site_here

_NOWHERE: dict[str, str] = {}
_SHIPPED = sorted(path.stem for path in SHIPPED.glob("*.toml"))
_USABLE = [name for name in _SHIPPED if name != "fugaku"]
_HOSTS = {
    "frontier": "login12.frontier.olcf.ornl.gov",
    "aurora": "aurora-uan-0009",
    "polaris": "polaris-login-01",
    "tuolumne": "tuolumne1004",
    "lumi": "lumi-uan01.csc.fi",
    "leonardo": "login01.leonardo.cineca.it",
    "daint": "daint-ln003",
    "clariden": "clariden.alps.cscs.ch",
    "archer2": "login.archer2.ac.uk",
    "fugaku": "login.fugaku.r-ccs.riken.jp",
    "delta": "login.delta.ncsa.illinois.edu",
    "bridges2": "bridges2.psc.edu",
    "expanse": "login.expanse.sdsc.edu",
    "anvil": "login03.anvil.rcac.purdue.edu",
    "frontera": "login2.frontera.tacc.utexas.edu",
    "vista": "login1.vista.tacc.utexas.edu",
    "snellius": "snellius.surf.nl",
    "casper": "casper-login2",
}
_VARIABLES = {
    "frontier": {"LMOD_SYSTEM_NAME": "frontier"},
    "perlmutter": {"NERSC_HOST": "perlmutter"},
    "marenostrum5": {"BSC_MACHINE": "mn5"},
    "juwels-booster": {"SYSTEMNAME": "juwelsbooster"},
    "daint": {"CLUSTER_NAME": "daint"},
    "clariden": {"CLUSTER_NAME": "clariden"},
    "derecho": {"NCAR_HOST": "derecho"},
    "casper": {"NCAR_HOST": "casper"},
}
_MINIMAL = 'title = "mine"\n[pools.cpu]\nbatch = "slurm"\ncores = 8\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a user's own profiles lie."""
    folder = tmp_path / "config" / "exadask" / "sites"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def shipped(name: str) -> Profile:
    return read_profile(name, environ=_NOWHERE)


# -- the shipped profiles -------------------------------------------------------------------------


@pytest.mark.parametrize("name", _USABLE)
def test_shipped_profile_loads_with_what_it_requires(name: str) -> None:
    profile = shipped(name)
    required = {key for entry in profile.pools.values() for key in entry.requires}
    assert required <= set(profile.where_to_find)
    given_facts = dict.fromkeys(required, "abc")
    site = load_site(name, overrides=given_facts, pools=list(profile.pools), environ=_NOWHERE)
    assert [pool.name for pool in site.pools] == list(profile.pools)
    usual = load_site(name, overrides=given_facts, environ=_NOWHERE)
    assert tuple(pool.name for pool in usual.pools) == profile.default_pools


@pytest.mark.parametrize("name", _SHIPPED)
def test_shipped_profile_says_where_its_facts_come_from(name: str) -> None:
    profile = shipped(name)
    assert not profile.is_own
    for fact in profile.facts:
        assert fact.source.provenance in (*PROVENANCES, "chosen"), fact
        assert fact.source.title
        if fact.source.provenance != "chosen":
            assert fact.source.as_of, fact
        if fact.is_limit:
            assert fact.source.provenance in PROVENANCES, fact
    for note in profile.notes:
        assert note.source.provenance != "own", note
    assert profile.unusable or profile.pools


@pytest.mark.parametrize("name", _USABLE)
def test_shipped_limits_and_maps_make_sense(name: str) -> None:
    profile = shipped(name)
    facts = {key: "abc" for entry in profile.pools.values() for key in entry.requires}
    for pool in load_site(name, overrides=facts, pools=list(profile.pools), environ=_NOWHERE).pools:
        bins = sorted((one.least, one.most) for one in pool.limits.bins)
        assert all(below[1] < above[0] for below, above in itertools.pairwise(bins))
        assert all(least <= most for least, most in bins)
        if pool.limits.running and pool.limits.queued:
            assert pool.limits.running <= pool.limits.queued
        blocked = set(pool.hints.blocked_cores)
        near = [core for cores in pool.hints.gpu_cores for core in cores]
        assert blocked.isdisjoint(near)
        assert len(near) == len(set(near))
        if pool.hints.gpu_cores:
            assert pool.shape is not None
            assert len(pool.hints.gpu_cores) == pool.shape.gpus
            assert len(near) <= pool.shape.cores
        if pool.hints.gpu_ids:
            assert pool.shape is not None
            assert len(set(pool.hints.gpu_ids)) == pool.shape.gpus


def test_frontier_as_its_guide_says() -> None:
    site = load_site("frontier", overrides={"account": "abc123"}, environ=_NOWHERE)
    (pool,) = site.pools
    assert pool.shape is not None
    assert (pool.shape.cores, pool.shape.gpus) == (56, 8)
    assert pool.hints.gpu_cores[0] == parse_cpulist("49-55")
    assert pool.limits.longest_s(91) == 2 * 3600
    assert pool.limits.longest_s(92) == 6 * 3600
    assert pool.limits.queued == 100


def test_doubts_are_marked() -> None:
    sources = {
        (name, fact.key): fact.source.provenance
        for name in ("snellius", "perlmutter", "anvil")
        for fact in shipped(name).facts
    }
    assert sources["snellius", "cores"] == "recalled"
    assert sources["snellius", "bins"] == "recalled"
    assert sources["perlmutter", "max_queued"] in ("second-hand", "read")
    assert sources["anvil", "bins"] == "second-hand"


@pytest.mark.parametrize("name", _SHIPPED)
def test_what_would_end_an_agent_is_not_from_memory(name: str) -> None:
    for fact in shipped(name).facts:
        if fact.key in ("interface", "scheduler_interface", "scratch"):
            assert fact.source.provenance == "read", fact
        if fact.key == "scratch":  # a variable that is not set must not leave an empty path
            unsure = re.sub(r"\$\{\w+:-/tmp\}|\$USER", "", str(fact.value))
            assert "$" not in unsure, fact


def test_fugaku_says_why_not_and_what_instead() -> None:
    with pytest.raises(SiteError, match=r"PJM.*does not speak.*pjsub.*exadask run"):
        load_site("fugaku", overrides={"account": "abc"}, environ=_NOWHERE)


def test_missing_account_is_named_with_its_place() -> None:
    with pytest.raises(SiteError, match=r"needs account= \(pool standard\).*sacctmgr.*Say account"):
        load_site("archer2", environ=_NOWHERE)


# -- recognition ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "host"), _HOSTS.items())
def test_recognised_by_host_name(name: str, host: str) -> None:
    assert recognised_site(host, _NOWHERE) == name


@pytest.mark.parametrize(("name", "variables"), _VARIABLES.items())
def test_recognised_by_variable(name: str, variables: Mapping[str, str]) -> None:
    assert recognised_site("nid000123", variables) == name


@pytest.mark.parametrize("variable", ["PBS_O_HOST", "SLURM_SUBMIT_HOST"])
def test_recognised_in_a_job_by_its_submit_host(variable: str) -> None:
    assert recognised_site("x1000c0s0b0n0", {variable: "polaris-login-02"}) == "polaris"


@pytest.mark.parametrize("host", ["laptop", "login01", "uan01", "", "frontier.example.org"])
def test_other_machines_are_none(host: str) -> None:
    assert recognised_site(host, _NOWHERE) is None


def test_every_profile_with_a_match_is_tested() -> None:
    with_match = {
        name
        for name in _SHIPPED
        if shipped(name).match.hostnames or shipped(name).match.environment
    }
    assert with_match == {*_HOSTS, *_VARIABLES}


def test_own_match_wins_and_specific_before_general(home: Path, environ: dict[str, str]) -> None:
    write(home, "mine", f'{_MINIMAL}[match]\nhostnames = ["polaris*"]')
    assert recognised_site("polaris-login-01", environ) == "mine"
    write(home, "closer", f'{_MINIMAL}[match]\nhostnames = ["polaris-login*"]')
    assert recognised_site("POLARIS-login-01", environ) == "closer"


def test_ambiguity_names_both(home: Path, environ: dict[str, str]) -> None:
    write(home, "one", f'{_MINIMAL}[match]\nhostnames = ["big*"]')
    write(home, "two", f'{_MINIMAL}[match]\nhostnames = ["*big"]')
    with pytest.raises(SiteError, match="one and as two"):
        recognised_site("big", environ)


def test_own_profile_of_a_shipped_name_is_recognised_as_that(
    home: Path, environ: dict[str, str]
) -> None:
    write(home, "polaris", 'extends = "polaris"\n[defaults]\naccount = "abc"')
    assert recognised_site("polaris-login-01", environ) == "polaris"


def test_broken_own_profile_does_not_stop_recognition(
    home: Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    write(home, "broken", "[[[")
    write(home, "wrong", f"{_MINIMAL}[match]\nhostnames = 3")
    assert recognised_site("polaris-login-01", environ) == "polaris"
    assert "broken.toml" in caplog.text
    assert "match.hostnames: 3 is not a list of texts" in caplog.text


def test_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "login.snellius.surf.nl")
    assert site_here(_NOWHERE) == "snellius"
    assert load_site("here", environ=_NOWHERE).name == "snellius"
    monkeypatch.setattr("socket.gethostname", lambda: "laptop.local")
    with pytest.raises(SiteError, match=r"laptop.local is none of the machines.*'slurm'"):
        load_site("here", environ=_NOWHERE)


# -- finding and choosing -------------------------------------------------------------------------


def test_search_order(home: Path, environ: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    assert read_profile("slurm", environ=environ).path.parent == SHIPPED
    own = write(home, "slurm", _MINIMAL)
    assert read_profile("slurm", environ=environ).path == own
    beside = write(recipe, "slurm", _MINIMAL)
    assert read_profile("slurm", environ=environ, search=[recipe]).path == beside
    assert read_profile(str(own), environ=environ, search=[recipe]).path == own
    assert list_profiles(environ=environ, search=[recipe])["slurm"] == beside


def test_config_folder_follows_home(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "exadask" / "sites"
    folder.mkdir(parents=True)
    path = write(folder, "mine", _MINIMAL)
    for config in ("", "relative/path"):
        environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": config}
        assert read_profile("mine", environ=environ).path == path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fronteer", "no such profile. Did you mean 'frontier'"),
        ("Frontier", "Did you mean 'frontier'"),
        ("qqqq", "Known are: alps, anvil"),
        ("", "no such profile"),
        ("a\0b", "no such profile"),
        ("./a\0b.toml", "cannot be read"),
        ("nowhere/mine.toml", "nowhere/mine.toml cannot be read.*No such file"),
        ("/", "cannot be read.*directory"),
    ],
)
def test_unknown_profiles(name: str, words: str) -> None:
    with pytest.raises(SiteError, match=words):
        load_site(name, environ=_NOWHERE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(home: Path, environ: dict[str, str]) -> None:
    write(home, "mine", _MINIMAL).chmod(0)
    with pytest.raises(SiteError, match="Permission denied"):
        load_site("mine", environ=environ)


def test_dangling_link_is_not_passed_over(home: Path, environ: dict[str, str]) -> None:
    (home / "slurm.toml").symlink_to(home / "gone")
    with pytest.raises(SiteError, match="cannot be read"):
        load_site("slurm", environ=environ)


@pytest.mark.parametrize(
    "content",
    [b"[pools", b"\xff\xfe", b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"a = 1\na = 2"],
)
def test_broken_toml(home: Path, environ: dict[str, str], content: bytes) -> None:
    (home / "mine.toml").write_bytes(content)
    with pytest.raises(SiteError, match=r"mine\.toml cannot be read"):
        load_site("mine", environ=environ)


def test_unknown_pool() -> None:
    with pytest.raises(SiteError, match=r"no pool 'extendd'\. Did you mean 'extended'"):
        load_site("frontier", overrides={"account": "a"}, pools=["extendd"], environ=_NOWHERE)


def test_pools_by_name_keep_their_order_and_come_once() -> None:
    names = ["debug", "batch", "debug"]
    site = load_site("frontier", overrides={"account": "a"}, pools=names, environ=_NOWHERE)
    assert [pool.name for pool in site.pools] == ["debug", "batch"]


# -- what the user says ---------------------------------------------------------------------------


def test_overrides_win() -> None:
    said = {
        "account": "abc",
        "walltime": "30m",
        "nodes": 2,
        "interface": "lo",
        "env": {"MINE": "1", "http_proxy": "http://other:1"},
        "directives": ["-l filesystems=home", "-m n"],
        "queue": None,
    }
    site = load_site("aurora", overrides=said, environ=_NOWHERE)
    (pool,) = site.pools
    assert (pool.account, pool.walltime_s, pool.max_nodes) == ("abc", 1800, 2)
    assert (pool.interface, pool.queue) == ("lo", "debug")
    env = dict(pool.env)
    assert (env["MINE"], env["http_proxy"], env["TMPDIR"]) == ("1", "http://other:1", "/tmp")
    assert pool.directives == ("-l filesystems=home", "-m n")
    interface = next(fact for fact in site.facts if fact.key == "interface")
    assert interface.source.title == "given by the user"


def test_a_skipped_flag_removes_the_profile_s_directive() -> None:
    said = {"account": "abc", "skip_directives": ["-C"], "scratch": "/tmp"}
    (pool,) = load_site("frontier", overrides=said, environ=_NOWHERE).pools
    assert pool.directives == ()
    assert pool.skip_directives == ("-C",)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"walltime": "3h"}, r"more than the site allows"),
        ({"waltime": "1h"}, r"Did you mean 'walltime'"),
        ({"nodes": "many"}, r"nodes='many' is not valid"),
        ({"env": 3, "directives": 4, "skip_directives": 5}, r"directives=4.*env=3"),
    ],
)
def test_wrong_overrides(said: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        load_site("frontier", overrides={"account": "a", **said}, environ=_NOWHERE)


def test_limits_can_be_overridden() -> None:
    bins = [{"nodes": [1, 91], "walltime": "4h"}]
    said = {"account": "a", "walltime": "3h", "bins": bins}
    (pool,) = load_site("frontier", overrides=said, environ=_NOWHERE).pools
    assert pool.walltime_s == 3 * 3600


# -- extends --------------------------------------------------------------------------------------


def test_extends_merges_deeply(home: Path, environ: dict[str, str]) -> None:
    write(
        home,
        "mine",
        """
extends = "frontier"
default_pools = ["batch", "debug"]
notes = ["ours"]
[defaults]
account = "abc"
env = { OURS = "1" }
[pools.batch]
walltime = "90m"
""",
    )
    site = load_site("mine", environ=environ)
    assert site.title == "Frontier (OLCF)"
    batch, debug = site.pools
    assert (batch.account, batch.walltime_s, batch.queue) == ("abc", 5400, "batch")
    assert (debug.qos, debug.limits.queued) == ("debug", 1)
    whose = {(fact.pool, fact.key): fact.source for fact in site.facts}
    assert whose["batch", "walltime"].provenance == "own"
    assert whose["batch", "walltime"].title.endswith("mine.toml")
    assert whose["batch", "queue"].as_of == "2026-07-22"
    assert site.notes[0].text == "ours"
    assert len(site.notes) > 1


def test_own_frontier_extends_the_shipped(home: Path, environ: dict[str, str]) -> None:
    write(home, "frontier", 'extends = "frontier"\n[defaults]\naccount = "abc"')
    site = load_site("frontier", environ=environ)
    assert site.pools[0].account == "abc"


def test_unknown_base_is_told_with_who_extends_it(home: Path, environ: dict[str, str]) -> None:
    path = write(home, "mine", 'extends = "fronteer"\n[pools.cpu]\ncores = 4')
    with pytest.raises(SiteError, match=f"no such profile, which {path} extends. Did you mean"):
        load_site("mine", environ=environ)


def test_extends_a_path_beside_it(home: Path, environ: dict[str, str]) -> None:
    write(home, "base", _MINIMAL)
    write(home, "mine", 'extends = "./base.toml"\n[pools.cpu]\ncores = 4')
    (pool,) = load_site("mine", environ=environ).pools
    assert pool.shape is not None
    assert (pool.batch, pool.shape.cores) == ("slurm", 4)


@pytest.mark.parametrize("way", ["{}", "./{}.toml"])
def test_cycles_are_noticed(home: Path, environ: dict[str, str], way: str) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        write(home, name, f'extends = "{way.format(other)}"')
    with pytest.raises(SiteError, match=r"in a circle: .*a\.toml -> .*b\.toml -> .*c\.toml -> "):
        load_site("a", environ=environ)
    write(home, "self", f'extends = "{way.format("self")}"')
    with pytest.raises(SiteError, match="in a circle"):
        load_site("self", environ=environ)


def test_unusable_can_be_made_usable(home: Path, environ: dict[str, str]) -> None:
    write(home, "mine", f'extends = "fugaku"\nunusable = ""\n{_MINIMAL}')
    assert load_site("mine", environ=environ).pools[0].name == "cpu"


# -- wrong profiles -------------------------------------------------------------------------------


def test_all_problems_of_a_file_are_named_at_once(home: Path, environ: dict[str, str]) -> None:
    path = write(
        home,
        "mine",
        """
titel = "x"
docs = "https://example.org"
default_pools = ["gpu"]
extends = 3
notes = [1, { text = "a", source = "nobody" }]
[where_to_find]
acount = "x"
[match]
hostname = "x"
environment = { A = 1 }
[sources.guide]
title = "guide"
as_of = "yesterday"
provenance = "gossip"
[sources.bare]
[defaults]
requires = ["acount"]
sources = { queue = "elsewhere" }
[pools."a b"]
[pools.cpu]
walltime = "soon"
waltime = "1h"
cores = "many"
source = "giude"
batch = "slrum"
bins = [
  { nodes = [1, 8], walltime = "2h" },
  { nodes = [8, 9], walltime = "1h" },
  { nodes = "some", walltime = "2h" },
  { nodes = 4 },
  7,
]
""",
    )
    with pytest.raises(SiteError) as caught:
        load_site("mine", environ=environ)
    text = str(caught.value)
    assert str(path) in text
    for words in (
        "titel: is not known. Did you mean 'title'?",
        "docs: 'https://example.org' is not a list of texts.",
        "default_pools: 'gpu' is no pool. Did you mean 'cpu'?",
        "extends: 3 is not the name",
        "notes[0]: 1 is not a table.",
        "notes[1].source: 'nobody' is not in [sources].",
        "where_to_find.acount: is not known. Did you mean 'account'?",
        "match.hostname: is not known. Did you mean 'hostnames'?",
        "match.environment.A: 1 is not a text.",
        "sources.guide.as_of: 'yesterday' is not a date",
        "sources.guide.provenance: 'gossip'. Known are: read, second-hand, recalled.",
        "sources.bare: lacks title, as_of, provenance.",
        "defaults.requires: acount: is not known. Did you mean 'account'?",
        "defaults.sources.queue: 'elsewhere' is not in [sources].",
        "pools.a b: a pool cannot be called 'a b'.",
        "pools.cpu.walltime: walltime='soon' is not valid",
        "pools.cpu.waltime: is not known. Did you mean 'walltime'?",
        "pools.cpu.cores: cores='many' is not valid",
        "pools.cpu.source: 'giude' is not in [sources]. Did you mean 'guide'?",
        "pools.cpu.batch: batch='slrum' is not known. Did you mean 'slurm'?",
        "pools.cpu.bins: nodes = [1, 8] and nodes = [8, 9] overlap.",
        "pools.cpu.bins[2].nodes: nodes='some' is not valid",
        "pools.cpu.bins[3]: lacks walltime.",
        "pools.cpu.bins[4]: 7 is not a table.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "pools: there are none"),
        ("pools = 3", "pools: 3 is not a table"),
        ("[pools]\ncpu = 3", "pools.cpu: 3 is not a table"),
        ('title = ""\n[pools.a]', "title: '' is not a text"),
        ('[pools.a]\nbins = "x"', r"pools.a.bins: 'x' is not a list"),
        ("[pools.a]\nblocked_cores = [inf]", "pools.a.blocked_cores"),
        ("[pools.a]\nwalltime = 1979-05-27", "pools.a.walltime"),
        ('[pools.a]\nbatch = "sge"\nnodes = 2', "pools.a: nodes=2: sge gives one node per job"),
        (
            '[pools.a]\nwalltime = "2h"\nbins = [{ nodes = 1, walltime = "1h" }]',
            "pools.a: walltime=7200 s is more than the site allows",
        ),
    ],
)
def test_wrong_profiles(home: Path, environ: dict[str, str], text: str, words: str) -> None:
    write(home, "mine", text)
    with pytest.raises(SiteError, match=words):
        load_site("mine", environ=environ)


def test_problems_of_a_base_name_its_file(home: Path, environ: dict[str, str]) -> None:
    base = write(home, "base", "[pools.a]\ncores = 0")
    write(home, "mine", 'extends = "base"')
    with pytest.raises(SiteError, match=rf"in {base}: pools\.a\.cores"):
        load_site("mine", environ=environ)


# -- any values -----------------------------------------------------------------------------------

_TEXTS = st.text(alphabet="ab 1hG-_,.=*\"'[]\\é\t", max_size=8)
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    _TEXTS,
    st.dates(),
    st.times(),
    st.datetimes(),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)
    ),
    max_leaves=5,
)
_KEYS = st.one_of(
    st.sampled_from(
        [
            *("title", "extends", "unusable", "instead", "default_pools", "docs", "notes"),
            *("sources", "match", "where_to_find", "defaults", "pools"),
        ]
    ),
    _TEXTS,
)
_FACT_KEYS = st.one_of(st.sampled_from([*FACTS, "requires", "source", "sources", "title"]), _TEXTS)
_PROFILES = st.fixed_dictionaries(
    {
        "pools": st.dictionaries(
            _TEXTS, st.dictionaries(_FACT_KEYS, _VALUES, max_size=4), max_size=2
        )
    },
    optional={"defaults": st.dictionaries(_FACT_KEYS, _VALUES, max_size=3)},
)


def as_toml(value: object) -> str:
    """Write a value as TOML, inline."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(float(value)))
        case int():
            return str(value)
        case dt.date() | dt.time():
            return value.isoformat()
        case str():
            return quoted(value)
        case list():
            return f"[{', '.join(as_toml(one) for one in value)}]"
        case dict():
            pairs = (f"{quoted(key)} = {as_toml(one)}" for key, one in value.items())
            return f"{{ {', '.join(pairs)} }}"
    raise AssertionError(value)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return f'"{escaped}"'


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=st.one_of(st.dictionaries(_KEYS, _VALUES, max_size=4), _PROFILES))
def test_any_profile_loads_or_says_what_is_wrong(table: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mine.toml")
        path.write_text("\n".join(f"{quoted(key)} = {as_toml(one)}" for key, one in table.items()))
        with contextlib.suppress(SiteError):
            load_site(path, environ=_NOWHERE)


@settings(max_examples=100, deadline=None)
@given(said=st.dictionaries(st.sampled_from(FACTS), _VALUES, max_size=3))
def test_any_override_is_used_or_refused(said: dict[str, Any]) -> None:
    with contextlib.suppress(SiteError, InvalidRequest):
        load_site("aurora", overrides={"account": "abc", **said}, environ=_NOWHERE)
