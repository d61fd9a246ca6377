"""Folders of image files -> grids in MLflow: every job in order, skipping what is finished."""

from pathlib import Path
from typing import Any

from jobs import evaluate, fit_prior, preprocess, render, train
from jobs.cli import main
from pipelines.config import PipelineJob
from pipelines.pipeline import run_pipeline


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """What the stages below the root saved_config."""
    root = Path(values.get("root", ""))
    of_run = {"train": train, "fit_prior": fit_prior, "render": render, "evaluate": evaluate}
    return {
        "preprocess": preprocess.saved_config({"dataset": str(root / "dataset")}),
        **{name: job.saved_config({"run": root / "run"}) for name, job in of_run.items()},
    }


if __name__ == "__main__":
    main("pipeline", PipelineJob, run_pipeline, saved_config=saved_config)
