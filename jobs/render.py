"""Decoder, codes and priors of a run -> grids of images."""

from typing import Any

from jobs.cli import main
from pipelines.rendering import RenderJob, render
from pipelines.stage import recorded_for_newest


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when the newest checkpoint had its turn."""
    return recorded_for_newest(values.get("run", ""), "grids")


if __name__ == "__main__":
    main("render", RenderJob, render, recorded=recorded)
