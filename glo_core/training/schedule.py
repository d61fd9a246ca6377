"""Learning rates: pure functions of images seen."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from glo_core.training.config import ResolvedTrainConfig


class Rates(NamedTuple):
    """Factors of the learning rates at one step, in [0, 1]."""

    decoder: float
    """Of the decoder's learning rate"""
    codes: float
    """Of the codes' learning rate"""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a run to a target."""

    number: int = 0
    """From 0 on"""
    start: int = 0
    """Images seen at its start"""
    target: int
    """Images seen at its end"""

    def rates(self, images_seen: int, config: ResolvedTrainConfig) -> Rates:
        """The factors of the learning rates at `images_seen`.

        Cosine: (1 + cos(pi s)) / 2, where s is the part of the phase that is over. Step: `lr_gamma` to the power
        floor(images_seen / `lr_step_images`). All rise linearly over the phase's first `warm_up` images.
        """
        seen = max(images_seen - self.start, 0)
        rise = min((seen + config.batch_size) / config.warm_up, 1.0) if config.warm_up else 1.0
        factors = {
            "cosine": 0.5 * (1 + math.cos(math.pi * min(seen / max(self.target - self.start, 1), 1))),
            "step": config.lr_gamma ** (images_seen // config.lr_step_images),
            "constant": 1.0,
        }
        of_codes = config.schedule if config.code.schedule == "same" else config.code.schedule
        return Rates(rise * factors[config.schedule], rise * factors[of_codes])
