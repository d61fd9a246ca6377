"""Sums of the steps since the last report, merged over ranks, and the clock beside them."""

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
    """Sums of the steps since the last report, and where their time went."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.sums = torch.zeros(NUM_SUMS + 1, dtype=torch.float64, device=learner.runtime.device)
        self.train_psnr: float | None = None
        """Of the last report, on rank 0"""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to count time and images anew."""
        self.timed_images, self.since = 0, time.perf_counter()
        self.spent = {"data": 0.0, "checkpoint": 0.0}

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count the block's time on the host as spent on "data" or "checkpoint"."""
        since = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - since

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """`items`; the time until each is there counts as spent on "data"."""
        nothing: Any = object()
        while True:
            with self.timing("data"):
                item = next(items, nothing)
            if item is nothing:
                return
            yield item

    def add(self, sums: Float[Tensor, " sums"], images: int) -> None:
        """Add a step: `sums` of this rank from `Learner.step`, `images` of the global batch."""
        self.sums[:-1] += sums
        self.sums[-1] += float(images) / self.learner.runtime.world_size
        self.timed_images += images

    def require_finite(self, images_seen: int) -> None:
        """Raise on every rank if a loss or gradient since the last report or a weight now is not finite.

        No checkpoint may follow it.
        """
        weights = torch.stack(torch._foreach_norm([p.detach() for p in self.learner.decoder.parameters()])).sum()
        everything = float(self.learner.runtime.all_reduce_sum(self.sums.sum() + weights))
        if not math.isfinite(everything):
            config = self.learner.config
            raise DivergedError(
                f"a loss, gradient or weight is not finite at {images_seen} images: training diverged; lower "
                "`learning_rate` "
                f"(={config.learning_rate}) or `code.learning_rate` (={config.code.learning_rate}); "
                "the last checkpoint is kept"
            )

    def report(self, images_seen: int, rates: Rates) -> None:
        """Merge over ranks, hand to the runtime, begin anew.

        Raises:
            DivergedError: if the loss is not finite.
        """
        self.require_finite(images_seen)
        runtime, config = self.learner.runtime, self.learner.config
        *sums, images = runtime.all_reduce_sum(self.sums).tolist()
        self.sums.zero_()
        loss, squared, norm, norm_squared, pull, gradient = (value / images for value in sums)
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
                    "code_gradient_norm": pull,
                    "gradient_norm": gradient,
                    "learning_rate": rates.decoder * config.learning_rate,
                    "code_learning_rate": rates.codes * config.code.learning_rate,
                    "images_per_s": self.timed_images / elapsed,
                    **{f"{what}_share": seconds / elapsed for what, seconds in self.spent.items()},
                },
            )
        self.restart_clock()
