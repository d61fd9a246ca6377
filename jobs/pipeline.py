"""Folders of image files -> grids in MLflow: every job in order, skipping what is finished."""

from pathlib import Path
from typing import Any

from jobs import preprocess, train
from jobs.cli import main
from pipelines.whole import PipelineJob, run_pipeline


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What the stages below the root recorded."""
    root = Path(values.get("root", ""))
    return {
        "preprocess": preprocess.recorded({"dataset": str(root / "dataset")}),
        "train": train.recorded({"run": root / "run"}),
    }


if __name__ == "__main__":
    main("pipeline", PipelineJob, run_pipeline, recorded=recorded)
