"""Folders of image files -> grids in MLflow: every job in order, skipping what is finished."""

from pathlib import Path
from typing import Any

from jobs import evaluate, fit_prior, preprocess, render, train
from jobs.cli import main
from pipelines.whole import PipelineJob, run_pipeline


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What the stages below the root recorded."""
    root = Path(values.get("root", ""))
    of_run = {"train": train, "fit_prior": fit_prior, "render": render, "evaluate": evaluate}
    return {
        "preprocess": preprocess.recorded({"dataset": str(root / "dataset")}),
        **{name: job.recorded({"run": root / "run"}) for name, job in of_run.items()},
    }


if __name__ == "__main__":
    main("pipeline", PipelineJob, run_pipeline, recorded=recorded)
