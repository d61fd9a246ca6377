"""Sums of the steps since the last report, merged over ranks, and the clock beside them."""

import math
import time

import torch

from glo_core.files import UserError
from glo_core.metrics import psnr
from glo_core.step import Learner


class Meter:
    """Sums of the steps since the last report, and the clock beside them."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.sums = torch.zeros(4, dtype=torch.float64, device=learner.runtime.device)
        self.restart_clock()

    def restart_clock(self) -> None:
        self.timed_images, self.since = 0, time.perf_counter()

    def add(self, sums: torch.Tensor, images: int) -> None:
        """Add a step: `sums` of this rank from `Learner.step`, `images` of the global batch."""
        self.sums[:3] += sums
        self.sums[3] += float(images) / self.learner.runtime.world_size
        self.timed_images += images

    def require_finite(self, images_seen: int) -> None:
        """Raise on every rank if a loss since the last report is not finite; no checkpoint may follow it."""
        loss = float(self.learner.runtime.all_sum(self.sums[0].clone()))
        if not math.isfinite(loss):
            config = self.learner.config
            raise UserError(
                f"loss={loss} at {images_seen} images: training diverged; lower learning_rate "
                f"(={config.learning_rate}) or code.learning_rate (={config.code.learning_rate}); "
                "the last checkpoint is kept"
            )

    def report(self, images_seen: int, factor: float) -> None:
        """Merge over ranks, hand to the runtime, begin anew.

        Raises:
            UserError: if the loss is not finite.
        """
        self.require_finite(images_seen)
        runtime, config = self.learner.runtime, self.learner.config
        loss, squared, norm, images = runtime.all_sum(self.sums).tolist()
        self.sums.zero_()
        if runtime.rank == 0:
            runtime.report(
                images_seen,
                {
                    "loss": loss / images,
                    "train_psnr": psnr(squared / images),
                    "code_norm": norm / images,
                    "learning_rate": factor * config.learning_rate,
                    "code_learning_rate": factor * config.code.learning_rate,
                    "images_per_s": self.timed_images / (time.perf_counter() - self.since),
                },
            )
        self.restart_clock()
