"""A run -> its figures: PSNR, SSIM and MSE on training and held-out images, PCA beside them."""

from typing import Any

from jobs.cli import main
from pipelines.common.stage import saved_config_of_newest
from pipelines.config import EvaluateJob
from pipelines.evaluate import evaluate


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when the newest checkpoint had its turn."""
    return saved_config_of_newest(values.get("run", ""), "evaluation")


if __name__ == "__main__":
    main("evaluate", EvaluateJob, evaluate, saved_config=saved_config)
