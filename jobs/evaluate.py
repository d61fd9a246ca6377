"""A run -> its figures: PSNR, SSIM and MSE on training and held-out images, PCA beside them."""

from jobs.cli import main
from pipelines.evaluation import EvaluateJob, evaluate

if __name__ == "__main__":
    main("evaluate", EvaluateJob, evaluate)
