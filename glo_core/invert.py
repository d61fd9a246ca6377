"""Codes of images that a model never saw: the decoder stays as it is, and only the codes move.

image -> several starts: what its PCA scores regress to, the mean code, codes of training images
      -> a few steps from each, the best of each image -> Adam on the sphere or in the ball -> code
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from glo_core.codes import PROJECTIONS, CodeConfig, CodeTable
from glo_core.config import Config
from glo_core.dataset import ImageSource
from glo_core.hashing import Int64Array, key64, mix64
from glo_core.losses import mse, to_target
from glo_core.regression import regressed
from glo_core.start import PcaStart

_SCOUT_STEPS = 15
"""Steps from each start before the best is chosen"""


@dataclass(frozen=True, kw_only=True)
class InvertConfig(Config):
    """How codes of unseen images are found."""

    starts: int = 3
    """Starts of each image: a ridge regression from its PCA scores, the mean code, then codes of training images"""
    steps: int = 100
    """Steps of Adam on the best start of each image, at a rate that falls to 0 along a cosine"""
    learning_rate: float = 0.05
    """Adam's step size at first; codes have norm 1 at most"""
    seed: int = 0
    """Seed of the choice of training images"""

    def __post_init__(self) -> None:
        for name in ("starts", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` (={self.learning_rate}) must be above 0")


class Inverter:
    """Inverts one decoder."""

    def __init__(
        self,
        decoder: torch.nn.Module,
        projection: str,
        start: PcaStart,
        weights: torch.Tensor,
        learned: torch.Tensor,
        config: InvertConfig,
    ) -> None:
        """Invert `decoder`, in eval mode.

        Args:
            projection: of its codes, sphere or ball.
            start: the PCA of the training images.
            weights: from start codes to learned codes, of `Regression.solve`.
            learned: a fair sample of the learned codes, `[m, dim]`.
        """
        self.decoder, self.start, self.weights, self.config = decoder.requires_grad_(False), start, weights, config
        self.learned = learned.to(next(decoder.parameters()))
        self.code = CodeConfig(dim=learned.shape[1], projection=projection, beta1=0.9, beta2=0.99)  # type: ignore[arg-type]

    def codes(self, images: ImageSource, rows: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes `[b, dim]` of the images at `rows` (int64 `[b]`), and their mean squared errors in [-1, 1], `[b]`."""
        target = to_target(images.gather(rows).to(self.learned.device), self.learned.dtype)
        # One start after the other: all at once would need as much more memory.
        scouted = [self._descend(start, target, _SCOUT_STEPS) for start in self._starts(images, rows)]
        codes, losses = (torch.stack(each) for each in zip(*scouted, strict=True))
        chosen = codes[losses.argmin(0), torch.arange(len(rows), device=codes.device)]
        return self._descend(chosen, target, self.config.steps)

    def _starts(self, images: ImageSource, rows: Int64Array) -> list[torch.Tensor]:
        """Start codes, `[b, dim]` each."""
        project = PROJECTIONS[self.code.projection]
        scores = self.start.codes(self.code, images, rows, self.config.seed)
        found = [regressed(scores, self.weights), self.learned.mean(0).expand(len(rows), -1)]
        for number in range(2, self.config.starts):
            chosen = mix64(key64("invert", self.config.seed, number), images.ids[rows]) % np.uint64(len(self.learned))
            found.append(self.learned[torch.from_numpy(chosen.astype(np.int64))])
        return [project(codes.to(self.learned)) for codes in found[: self.config.starts]]

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
