"""What all stages share, without Ray and without MLflow."""

from pathlib import Path
from typing import Any

import pytest

from glo_core.files import UserError
from pipelines.stage import completed_record, open_stage
from pipelines.tracking import TrackingConfig


def opened(directory: Path, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    with open_stage(
        "train",
        directory,
        root=directory.parent,
        identity=identity,
        upgraded=lambda record: completed_record(record, defaults or {}),
        inputs={},
        tracking=TrackingConfig(),
    ) as stage:
        stage.save()


def test_a_record_of_an_older_version_has_the_defaults_of_newer_keys(tmp_path: Path) -> None:
    old = {"seed": 1, "code": {"dim": 2}}
    defaults = {"seed": 0, "window": 0, "code": {"dim": 64, "optimizer": "adam"}}
    new = {"seed": 1, "window": 0, "code": {"dim": 2, "optimizer": "adam"}}
    opened(tmp_path, old)
    with pytest.raises(UserError, match=r"another recipe \(window: 0 -> 7\)"):
        opened(tmp_path, {**new, "window": 7}, defaults)
    with pytest.raises(UserError, match=r"another recipe \(code.optimizer: adam -> sgd\)"):
        opened(tmp_path, {**new, "code": {"dim": 2, "optimizer": "sgd"}}, defaults)
    with pytest.raises(UserError, match=r"another recipe \(seed: 1 -> 0\)"):
        opened(tmp_path, {**new, "seed": 0}, defaults)
    opened(tmp_path, new, defaults)
