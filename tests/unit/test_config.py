"""Settings and their origins."""

from __future__ import annotations

import pytest

from exadask.config import Config
from exadask.errors import InvalidRequest


def test_argument_wins_over_environment_over_default() -> None:
    environ = {"EXADASK_KILL_GRACE_S": "7s", "EXADASK_INLINE_BYTES": "1KiB", "HOME": "/"}
    config = Config.resolve({"kill_grace_s": 3}, environ=environ)
    assert (config.kill_grace_s, config.inline_bytes, config.reserve_after_s) == (3, 1024, 10)
    assert config.origins["kill_grace_s"] == "argument"
    assert config.origins["inline_bytes"] == "EXADASK_INLINE_BYTES"
    assert config.origins["reserve_after_s"] == "default"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Config.resolve(
            {"kill_grace": "1s", "poll_interval_s": "soon"}, environ={"EXADASK_KIL_GRACE_S": "1"}
        )
    text = str(caught.value)
    assert "Did you mean 'kill_grace_s'?" in text
    assert "poll_interval_s='soon'" in text
    assert "Did you mean 'EXADASK_KILL_GRACE_S'?" in text


def test_other_variables_of_exadask_are_not_settings() -> None:
    assert Config.resolve(environ={"EXADASK_GPUS": "4"}) == Config()
