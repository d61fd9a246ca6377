"""Learning rates: pure functions of images seen."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from glo_core.training.config import ResolvedTrainConfig


class Rates(NamedTuple):
    """What the schedules multiply the learning rates with at some step."""

    decoder: float
    codes: float


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a run to a target."""

    number: int = 0
    start: int = 0
    """Images seen at its start"""
    target: int
    """Images seen at its end"""

    def rates(self, images_seen: int, config: ResolvedTrainConfig) -> Rates:
        """What the learning rates are multiplied with at `images_seen`."""
        seen = max(images_seen - self.start, 0)
        rise = min((seen + config.batch_size) / config.warm_up, 1.0) if config.warm_up else 1.0
        factors = {
            "cosine": 0.5 * (1 + math.cos(math.pi * min(seen / max(self.target - self.start, 1), 1))),
            "step": config.lr_gamma ** (images_seen // config.lr_step_images),
            "constant": 1.0,
        }
        of_codes = config.schedule if config.code.schedule == "same" else config.code.schedule
        return Rates(rise * factors[config.schedule], rise * factors[of_codes])
