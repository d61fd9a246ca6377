"""What all stages share, without Ray and without MLflow."""

from pathlib import Path
from typing import Any

import pytest

from glo_core.common.errors import UserError
from pipelines.common.stage import open_stage
from pipelines.common.tracking import TrackingConfig


def opened(directory: Path, identity: dict[str, Any]) -> None:
    with open_stage(
        "train",
        directory,
        root=directory.parent,
        identity=identity,
        inputs={},
        tracking=TrackingConfig(),
    ) as stage:
        stage.save()


def test_another_recipe_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    recipe = {"seed": 1, "window": 0, "code": {"dim": 2, "optimizer": "adam"}}
    opened(tmp_path, recipe)
    with pytest.raises(UserError, match=r"another recipe \(window: 0 -> 7\)"):
        opened(tmp_path, {**recipe, "window": 7})
    with pytest.raises(UserError, match=r"another recipe \(code.optimizer: adam -> sgd\)"):
        opened(tmp_path, {**recipe, "code": {"dim": 2, "optimizer": "sgd"}})
    opened(tmp_path, recipe)
