"""A run -> its figures: PSNR, SSIM and MSE on training and held-out images, PCA beside them."""

from typing import Any

from jobs.cli import main
from pipelines.evaluation import EvaluateJob, evaluate
from pipelines.stage import recorded_for_newest


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when the newest checkpoint had its turn."""
    return recorded_for_newest(values.get("run", ""), "evaluation")


if __name__ == "__main__":
    main("evaluate", EvaluateJob, evaluate, recorded=recorded)
