"""Decoder, codes and priors of a run -> grids of images."""

from typing import Any

from glo_core.checkpoint.layout import newest_checkpoint_directory
from jobs.cli import main
from pipelines.config import RenderConfig, RenderJob


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The config of this stage when it last ran on the newest checkpoint."""
    if "run" not in values:
        return {}
    from pipelines.common.stage import saved_config_of_newest  # Brings NumPy and Arrow.

    return saved_config_of_newest(values["run"], "grids", RenderConfig)


def run(job: RenderJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    newest_checkpoint_directory(job.run)
    from pipelines.render import render

    render(job)


if __name__ == "__main__":
    main("render", RenderJob, run, saved_config=saved_config)
