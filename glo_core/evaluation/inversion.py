"""Codes of images that a model has never seen: the decoder is frozen, and only the codes change.

image -> several starting codes: the ridge regression of its PCA scores, the mean code, codes of training images
      -> a few steps from each, the best of each image -> Adam on the sphere or in the ball -> code
"""

import copy
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
from glo_core.common.shapes import Float, Tensor
from glo_core.data.image_source import ImageSource
from glo_core.decoder.cost import cost
from glo_core.evaluation.config import InvertConfig
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target

_SCOUT_STEPS = 15
"""Steps from each start before the best is chosen"""
_MOST_IMAGES = 256
"""Images that are inverted together at most"""
_MOST_ACTIVATIONS = 1 << 27
"""Values that the backward pass may hold, where they can be counted: half a GiB"""


class Inverter:
    """Inverts one decoder."""

    def __init__(
        self,
        decoder: torch.nn.Module,
        projection: str,
        start: PcaInit | None,
        weights: Float[Tensor, "inputs_and_one dim"] | None,
        learned: Float[Tensor, "m dim"],
        config: InvertConfig,
    ) -> None:
        """Invert `decoder`, in eval mode; its weights no longer require gradients.

        Args:
            projection: of its codes, sphere or ball.
            start: the PCA of the training images; None leaves the start from the regression out.
            weights: from start codes to learned codes, of `RidgeRegression.solve`; None with `start`.
            learned: a fair sample of the learned codes, `[m, dim]`.
        """
        self.decoder, self.start, self.weights, self.config = decoder.requires_grad_(False), start, weights, config
        self.learned = learned.to(next(decoder.parameters()))
        self.code = ResolvedCodeConfig(dim=learned.shape[1], projection=projection, beta1=0.9, beta2=0.99)  # type: ignore[arg-type]

    def codes(self, images: ImageSource, rows: Int64Array) -> tuple[Float[Tensor, "b dim"], Float[Tensor, " b"]]:
        """Codes `[b, dim]` of the images at `rows` (int64 `[b]`), and their mean squared errors in [-1, 1], `[b]`."""
        target = to_target(images.take(rows).to(self.learned.device), self.learned.dtype)
        # One start after the other: all at once would need as much more memory.
        scouted = [self._descend(start, target, _SCOUT_STEPS) for start in self._init_codes(images, rows)]
        codes, losses = (torch.stack(each) for each in zip(*scouted, strict=True))
        chosen = codes[losses.argmin(0), torch.arange(len(rows), device=codes.device)]
        return self._descend(chosen, target, self.config.steps)

    def _init_codes(self, images: ImageSource, rows: Int64Array) -> list[Float[Tensor, "b dim"]]:
        """Start codes, `[b, dim]` each."""
        project = PROJECTIONS[self.code.projection]
        starts = [self.learned.mean(0).expand(len(rows), -1)]
        if self.start is not None and self.weights is not None:
            scores = self.start.codes(self.code, images, rows, self.config.seed)
            starts.insert(0, apply_ridge(scores, self.weights))
        for number in range(2, self.config.restarts + 1):
            choice = mix64(key64("invert", self.config.seed, number), images.ids[rows]) % np.uint64(len(self.learned))
            starts.append(self.learned[torch.from_numpy(choice.astype(np.int64))])
        return [project(codes.to(self.learned)) for codes in starts[: self.config.restarts]]

    def _descend(
        self, codes: Float[Tensor, "b dim"], target: Float[Tensor, "b channels h w"], steps: int
    ) -> tuple[Float[Tensor, "b dim"], Float[Tensor, " b"]]:
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
        best = torch.where(worse[:, None], codes, table.codes())
        return PROJECTIONS[self.code.projection](best), torch.where(worse, first, losses)


def images_at_once(decoder: torch.nn.Module, code_dim: int) -> int:
    """Images that an `Inverter` of `decoder` takes at once, so that the backward pass holds half a GiB at most."""
    # The copy is counted as it trains, and is left on the meta device.
    size = cost(copy.deepcopy(decoder).requires_grad_(), code_dim)
    return max(1, min(_MOST_IMAGES, _MOST_ACTIVATIONS // max(size.activations, 1))) if size else _MOST_IMAGES // 4
