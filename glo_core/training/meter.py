"""Sums over the steps since the last report, merged over ranks, and the time that they took."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from glo_core.common.errors import DivergedError
from glo_core.common.shapes import Float, Tensor
from glo_core.evaluation.metrics import psnr
from glo_core.training.learner import NUM_SUMS, Learner
from glo_core.training.schedule import Rates

T = TypeVar("T")


class Meter:
    """Sums over the steps since the last report, and the time that they took."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        # Axis [sum of `Learner.step`, and the number of images].
        self.sums = torch.zeros(NUM_SUMS + 1, dtype=torch.float64, device=learner.runtime.device)
        self.train_psnr: float | None = None
        """PSNR in dB of the last report; None before it, and on ranks above 0"""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to count time and images from zero."""
        self.timed_images, self.since = 0, time.perf_counter()
        self.seconds = {"data": 0.0, "checkpoint": 0.0}

    @contextlib.contextmanager
    def timing(self, activity: str) -> Iterator[None]:
        """Count the block's time on the host as spent on `activity`, "data" or "checkpoint"."""
        since = time.perf_counter()
        yield
        self.seconds[activity] += time.perf_counter() - since

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """Yield `items`, and count the time until each one is there as spent on "data"."""
        end: Any = object()
        while True:
            with self.timing("data"):
                item = next(items, end)
            if item is end:
                return
            yield item

    def add(self, sums: Float[Tensor, " sums"], images: int) -> None:
        """Add a step: the `sums` of this rank from `Learner.step`, and the number of images of the global batch."""
        self.sums[:-1] += sums
        self.sums[-1] += float(images) / self.learner.runtime.world_size
        self.timed_images += images

    def require_finite(self, images_seen: int) -> None:
        """Check the losses and gradients since the last report, and the weights. Call it before a checkpoint.

        Raises:
            DivergedError: on every rank, if a value is not finite on any rank.
        """
        weights = torch.stack(torch._foreach_norm([p.detach() for p in self.learner.decoder.parameters()])).sum()
        total = float(self.learner.runtime.all_reduce_sum(self.sums.sum() + weights))
        if not math.isfinite(total):
            config = self.learner.config
            raise DivergedError(
                f"a loss, gradient or weight is not finite at {images_seen} images: training diverged; lower "
                "`learning_rate` "
                f"(={config.learning_rate}) or `code.learning_rate` (={config.code.learning_rate}); "
                "checkpoints that were written before stay"
            )

    def report(self, images_seen: int, rates: Rates) -> None:
        """Hand means over the images since the last report to the runtime, and begin from zero.

        Args:
            images_seen: where training stands.
            rates: of the last step.

        Raises:
            DivergedError: on every rank, if a loss, a gradient or a weight is not finite.
        """
        self.require_finite(images_seen)
        runtime, config = self.learner.runtime, self.learner.config
        *sums, images = runtime.all_reduce_sum(self.sums).tolist()
        self.sums.zero_()
        loss, squared, norm, norm_squared, code_gradient, gradient = (value / images for value in sums)
        elapsed = time.perf_counter() - self.since
        if runtime.rank == 0:
            self.train_psnr = psnr(squared)
            runtime.report(
                images_seen,
                {
                    "loss": loss,
                    "train_psnr": self.train_psnr,
                    "code_norm": norm,
                    "code_norm_std": math.sqrt(max(norm_squared - norm * norm, 0.0)),
                    "code_gradient_norm": code_gradient,
                    "gradient_norm": gradient,
                    "learning_rate": rates.decoder * config.learning_rate,
                    "code_learning_rate": rates.codes * config.code.learning_rate,
                    "autocast": float(self.learner.autocast),
                    "compiled": float(self.learner.compiled),
                    "images_per_s": self.timed_images / elapsed,
                    **{f"{activity}_share": seconds / elapsed for activity, seconds in self.seconds.items()},
                },
            )
        self.restart_clock()
