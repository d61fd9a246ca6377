"""Folders of image files -> grids in MLflow: every stage in order, skipping what is finished."""

from typing import Any

from glo_core.common.location import Location
from jobs import evaluate, fit_prior, preprocess, render, train
from jobs.cli import main
from pipelines.config import PipelineJob


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The configs of the stages below the root."""
    if "root" not in values:
        return {}
    stages = {"train": train, "fit_prior": fit_prior, "render": render, "evaluate": evaluate}
    configs = {name: stage.saved_config({"run": values["root"] / "run"}) for name, stage in stages.items()}
    return configs | {"preprocess": preprocess.saved_config({"dataset": Location(values["root"] / "dataset")})}


def run(job: PipelineJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    from pipelines.pipeline import run_pipeline

    run_pipeline(job)


if __name__ == "__main__":
    main("pipeline", PipelineJob, run, saved_config=saved_config)
