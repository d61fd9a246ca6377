"""Codes of images that a model never saw: the decoder stays as it is, and only the codes move.

image -> several starts: what its PCA scores regress to, the mean code, codes of training images
      -> a few steps from each, the best of each image -> Adam on the sphere or in the ball -> code
"""

import math

import numpy as np
import torch

from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.projection import PROJECTIONS
from glo_core.codes.ridge import apply_ridge
from glo_core.codes.table import CodeTable
from glo_core.common.arrays import Int64Array
from glo_core.common.counter_rng import key64, mix64
from glo_core.data.image_source import ImageSource
from glo_core.evaluation.config import InvertConfig
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target

_SCOUT_STEPS = 15
"""Steps from each start before the best is chosen"""


class Inverter:
    """Inverts one decoder."""

    def __init__(
        self,
        decoder: torch.nn.Module,
        projection: str,
        start: PcaInit,
        weights: torch.Tensor,
        learned: torch.Tensor,
        config: InvertConfig,
    ) -> None:
        """Invert `decoder`, in eval mode.

        Args:
            projection: of its codes, sphere or ball.
            start: the PCA of the training images.
            weights: from start codes to learned codes, of `RidgeRegression.solve`.
            learned: a fair sample of the learned codes, `[m, dim]`.
        """
        self.decoder, self.start, self.weights, self.config = decoder.requires_grad_(False), start, weights, config
        self.learned = learned.to(next(decoder.parameters()))
        self.code = ResolvedCodeConfig(dim=learned.shape[1], projection=projection, beta1=0.9, beta2=0.99)  # type: ignore[arg-type]

    def codes(self, images: ImageSource, rows: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes `[b, dim]` of the images at `rows` (int64 `[b]`), and their mean squared errors in [-1, 1], `[b]`."""
        target = to_target(images.take(rows).to(self.learned.device), self.learned.dtype)
        # One start after the other: all at once would need as much more memory.
        scouted = [self._descend(start, target, _SCOUT_STEPS) for start in self._init_codes(images, rows)]
        codes, losses = (torch.stack(each) for each in zip(*scouted, strict=True))
        chosen = codes[losses.argmin(0), torch.arange(len(rows), device=codes.device)]
        return self._descend(chosen, target, self.config.steps)

    def _init_codes(self, images: ImageSource, rows: Int64Array) -> list[torch.Tensor]:
        """Start codes, `[b, dim]` each."""
        project = PROJECTIONS[self.code.projection]
        scores = self.start.codes(self.code, images, rows, self.config.seed)
        found = [apply_ridge(scores, self.weights), self.learned.mean(0).expand(len(rows), -1)]
        for number in range(2, self.config.restarts):
            chosen = mix64(key64("invert", self.config.seed, number), images.ids[rows]) % np.uint64(len(self.learned))
            found.append(self.learned[torch.from_numpy(chosen.astype(np.int64))])
        return [project(codes.to(self.learned)) for codes in found[: self.config.restarts]]

    def _descend(self, codes: torch.Tensor, target: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and their losses after `steps` steps; a code that was better at its start stays there."""
        table = CodeTable(self.code, np.arange(len(codes)), codes.clone())
        every = torch.arange(len(codes), device=codes.device)
        first = codes.new_zeros(len(codes))
        for step in range(steps + 1):
            raw = table.raw.clone().requires_grad_(step < steps)
            losses = mse(self.decoder(table.project(raw)), target)
            if step == 0:
                first = losses.detach()
            if step < steps:
                (gradient,) = torch.autograd.grad(losses.sum(), raw)
                rate = 0.5 * (1 + math.cos(math.pi * step / steps)) * self.config.learning_rate
                table.update(every, gradient, rate)
        worse = losses > first
        found = torch.where(worse[:, None], codes, table.codes())
        return PROJECTIONS[self.code.projection](found), torch.where(worse, first, losses)
