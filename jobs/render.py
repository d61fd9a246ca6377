"""Decoder, codes and priors of a run -> grids of images."""

from typing import Any

from jobs.cli import main
from pipelines.common.stage import saved_config_of_newest
from pipelines.config import RenderJob
from pipelines.render import render


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when the newest checkpoint had its turn."""
    return saved_config_of_newest(values.get("run", ""), "grids")


if __name__ == "__main__":
    main("render", RenderJob, render, saved_config=saved_config)
