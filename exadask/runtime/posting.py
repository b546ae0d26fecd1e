"""What an agent on a remote node is told: where to report, and what it may use."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exadask.config import Config
from exadask.errors import InvalidRequest
from exadask.pool import NodeHints
from exadask.runtime.granted import Grant

POSTING = "agent.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """The orders of the agents of one allocation.

    Parameters
    ----------
    address : str
        Where the scheduler listens.
    pool, allocation : str
        Where they belong.
    walltime_s : float
        How long the allocation lasts [s].
    interface : str, optional
        Network interface of the node.
    hints : NodeHints
        What a node cannot find out about itself.
    asked : Grant
        What was asked of the batch system for each node.
    is_whole_node : bool
        Whether nobody else can be on the node.
    is_told : bool
        Whether the batch system itself says what `asked` says; a profile may be wrong.
    config : Config
        Limits and intervals.
    """

    address: str
    pool: str
    allocation: str
    walltime_s: float
    interface: str | None = None
    hints: NodeHints = field(default_factory=NodeHints)
    asked: Grant = field(default_factory=Grant)
    is_whole_node: bool = True
    is_told: bool = False
    config: Config = field(default_factory=Config)

    def as_json(self) -> dict[str, Any]:
        """Write it as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Posting:
        """Read it again.

        Raises
        ------
        InvalidRequest
            The file is not there, or not of this version of exadask.
        """
        try:
            facts = with_tuples(json.loads(path.read_text()))
            facts["hints"] = NodeHints(**facts["hints"])
            facts["asked"] = Grant(**facts["asked"])
            facts["config"] = Config(**facts["config"])
            return cls(**facts)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidRequest(
                f"the agent's orders in {path} cannot be read: {error}.",
                "Is the run folder on a file system that all nodes see, and exadask of the same "
                "version there?",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Berth:
    """Where one agent sits: its allocation, and until when it may stay there.

    Parameters
    ----------
    pool, allocation : str
        Where it belongs.
    ends_at : float
        When the allocation ends [s, by `time.monotonic` of this process].
    """

    pool: str
    allocation: str
    ends_at: float

    @classmethod
    def of(cls, posting: Posting, began: float, environ: Mapping[str, str]) -> Berth:
        """Find out when the allocation ends; the batch system's own word counts most.

        Parameters
        ----------
        posting : Posting
            The agent's orders.
        began : float
            When the job script began [s since the epoch].
        environ : mapping
            Environment variables: Slurm (since 22.05) gives ``SLURM_JOB_END_TIME``.
        """
        stated = environ.get("SLURM_JOB_END_TIME", "")
        ends_at = float(stated) if stated.isdigit() else began + posting.walltime_s
        left_s = ends_at - time.time()
        if left_s <= 0:  # it has just begun, so this node's clock is wrong
            left_s = posting.walltime_s
        ends_at = time.monotonic() + left_s  # whatever happens to the clock from now on
        return cls(pool=posting.pool, allocation=posting.allocation, ends_at=ends_at)

    @property
    def left_s(self) -> float:
        """Time until the end [s]; a difference, so that clocks of nodes may disagree."""
        return self.ends_at - time.monotonic()


def with_tuples(value: Any) -> Any:
    """Turn JSON's lists into the tuples that they were."""
    if isinstance(value, dict):
        return {key: with_tuples(one) for key, one in value.items()}
    return tuple(with_tuples(one) for one in value) if isinstance(value, list) else value
