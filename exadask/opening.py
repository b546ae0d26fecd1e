"""From what a user says about machines to a cluster: embedded, with pools, or one that stands."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from exadask.config import SETTINGS, Config
from exadask.errors import InvalidRequest, shown
from exadask.pool import FACTS, Pool
from exadask.resources import NodeShape
from exadask.texts import names_folder

if TYPE_CHECKING:
    from exadask.core.fleet_report import FleetSummary
    from exadask.runtime.bundling import Bundler
    from exadask.runtime.gateway import DaskGateway
    from exadask.runtime.run_folder import EarlierRun, RunFolder


_ARGUMENTS = ("nodes", "site", "pools", "attach", "resume")
_OF_CLIENTS = ("segment_bytes", "journal", "keep_results", "memo_folder")
"""Settings that count where tasks are submitted, whoever runs the scheduler."""


class Cluster(Protocol):
    """What an executor works on."""

    @property
    def gateway(self) -> DaskGateway:
        """The way to its scheduler."""

    @property
    def bundler(self) -> Bundler:
        """Takes calls."""

    @property
    def shapes(self) -> Mapping[str, NodeShape]:
        """The connected nodes, and what each offers."""

    @property
    def summary(self) -> Callable[[], FleetSummary] | None:
        """What says how its allocations are; None: it has none, or another process knows."""

    @property
    def standing(self) -> RunFolder | None:
        """The run of its scheduler, if that stays when this process ends."""

    def journal_folder(self) -> RunFolder | None:
        """Give the folder where what happens is written; None: a new one."""

    def close(self) -> None:
        """End it, or leave it."""


def open_cluster(
    nodes: Any = None,
    *,
    site: str | None = None,
    pools: Sequence[Any] | None = None,
    attach: str | Path | None = None,
    run: EarlierRun | None = None,
    settings: Mapping[str, Any],
) -> Cluster:
    """Open what `Executor` was asked for; the parameters are its own, and a run that goes on.

    Raises
    ------
    ExadaskError
        It cannot be opened, or what was said contradicts itself.
    """
    config, facts = split_settings(settings)
    if attach is not None:
        said = {"nodes": nodes, "site": site, "pools": pools, **settings}
        idle = [f"{name}=" for name in said if said[name] is not None and name not in _OF_CLIENTS]
        if idle:
            raise InvalidRequest(
                "attach= uses a scheduler that stands already, as it was started: "
                f"{', '.join(idle)} would change nothing.",
                f"Leave {'it' if len(idle) == 1 else 'them'} out, or give it to: exadask up",
            )
        from exadask.runtime.pooled_cluster import AttachedCluster
        from exadask.runtime.run_folder import RunFolder

        return AttachedCluster(RunFolder.find(attach))
    if site is not None or pools is not None:
        from exadask.runtime.pooled_cluster import PooledCluster

        if nodes is not None:
            facts["nodes"] = nodes
        return PooledCluster(resolve_pools(site, pools, facts), config, run)
    if facts:
        raise InvalidRequest(
            f"{', '.join(f'{name}=' for name in facts)}: a fact of a pool, but there is no pool.",
            'Say site="..." or pools=[...] as well (see: exadask sites).',
        )
    from exadask.runtime.cluster import EmbeddedCluster

    return EmbeddedCluster(_checked_shapes(nodes), config)


def find_run(given: str | Path, config: Config) -> RunFolder:
    """Find a run that is to be resumed; also below the folder where runs are kept.

    Raises
    ------
    RunFolderError
        There is none.
    """
    from exadask.runtime.run_folder import RunFolder

    below = Path(config.run_folder) / given
    return RunFolder.find(below if names_folder(below / "allocations") else given)


def split_settings(settings: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Tell settings from facts of pools.

    Raises
    ------
    InvalidRequest
        A name is neither, or a value makes no sense.
    """
    facts = {name: value for name, value in settings.items() if name in FACTS}
    rest = {name: value for name, value in settings.items() if name not in FACTS}
    for name in rest:
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, [*_ARGUMENTS, *SETTINGS, *FACTS], n=1)
            if near and near[0] not in SETTINGS:
                raise InvalidRequest(f"{name!r} is not a setting.", f"Did you mean {near[0]!r}?")
    return Config.resolve(rest), facts


def resolve_pools(
    site: str | None,
    pools: Sequence[Any] | None,
    facts: Mapping[str, Any],
    search: Sequence[Path] = (),
) -> list[Pool]:
    """Find the pools that were meant.

    Parameters
    ----------
    site : str, optional
        A site profile by its name or path; "here" is the one that is recognised.
    pools : sequence of Pool, mapping or str, optional
        Pools of one's own, as `Pool` or as a mapping of facts with a name; a text chooses one of
        the site's. None: those that the site proposes.
    facts : mapping
        Facts for all of them; see `Pool.declare`.
    search : sequence of Path
        Further folders with site profiles.

    Raises
    ------
    InvalidRequest, SiteError
        A profile, a pool or a fact is not known, or makes no sense.
    """
    given = [pools] if isinstance(pools, (str, Pool, Mapping)) else list(pools or ())
    names = [one for one in given if isinstance(one, str)]
    own = [_own_pool(one) for one in given if not isinstance(one, str)]
    if site is None:
        if names or not own:
            raise InvalidRequest(
                f"pools={shown(given)} names pools, but no site that has them."
                if names
                else "pools=[] has no pool.",
                'Say site="..." as well, or describe pools with Pool.declare(...).',
            )
        return [pool.updated(**facts) for pool in own]
    from exadask.sites.profile import load_site

    if own and not names:
        wanted: list[str] | None = []
    else:
        wanted = names or None
    found = (
        () if wanted == [] else load_site(site, overrides=facts, pools=wanted, search=search).pools
    )
    return [*found, *(pool.updated(**facts) for pool in own)]


def _own_pool(given: object) -> Pool:
    if isinstance(given, Pool):
        return given
    if isinstance(given, Mapping) and "name" in given:
        return Pool.declare(**given)
    raise InvalidRequest(
        f"pools has {shown(given)}, which is not a pool.",
        'Use Pool.declare("name", batch="slurm", ...), or a dict with a name.',
    )


def _checked_shapes(nodes: Any) -> list[NodeShape]:
    if nodes is None:
        from exadask.runtime.detection import detect_node

        return [detect_node()]
    if isinstance(nodes, (str, bytes, NodeShape)) or not isinstance(nodes, Iterable):
        raise InvalidRequest(
            f"nodes={nodes if isinstance(nodes, NodeShape) else repr(nodes)} is not valid.",
            "Give a list: nodes=[NodeShape.declare(cores=4)]; or, with site= or pools=, how many "
            "nodes an allocation has.",
        )
    shapes = list(nodes)
    for shape in shapes:
        if not isinstance(shape, NodeShape):
            raise InvalidRequest(
                f"nodes contains {shown(shape)}, which is not a NodeShape.",
                "Declare one: NodeShape.declare(cores=4, memory='8GiB').",
            )
    if not shapes:
        raise InvalidRequest("nodes is empty.", "Give at least one node.")
    return shapes
