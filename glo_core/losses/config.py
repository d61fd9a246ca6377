"""Losses as a recipe names them: a weighted sum of terms."""

import math
import re
from dataclasses import dataclass

from glo_core.common.config import AutoInt, Config
from glo_core.common.limits import require_at_most

_TERM = re.compile(r"(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*\*?\s*)?([a-z][a-z0-9_]*)")


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(Config):
    """The Laplacian pyramid of the loss `pyramid`."""

    levels: AutoInt = None
    """Levels above the low-pass residual; auto takes as many as leave a residual of 4 px"""
    falloff: float = 0.25
    """Weight of a level's mean absolute error over that of the next finer one: 2^(-2j) at level j"""

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 1:
            raise ValueError(f"`levels` (={self.levels}) must be at least 1, or auto")
        if not self.falloff > 0:
            raise ValueError(f"`falloff` (={self.falloff}) must be above 0")
        require_at_most(self, levels=16, falloff=1e6)

    def depth(self, resolution: int) -> int:
        """Levels above the residual at `resolution`.

        Raises:
            ValueError: if a level would be smaller than 2 px.
        """
        most = int(math.log2(resolution)) - 1
        if self.levels is not None and self.levels > most:
            raise ValueError(f"`pyramid.levels` (={self.levels}) must be at most {most} at {resolution} px")
        return self.levels or max(most - 1, 1)


VGG16 = "vgg16"
"""The one feature network of the loss `perceptual` that is no code of the user's"""
TERMS = ("mse", "l1", "pairwise", "pyramid", "ssim", "perceptual")


def loss_terms(text: str) -> dict[str, float]:
    """Parse a sum such as "pyramid + 0.5 mse" into the weight of each term by its name.

    Raises:
        ValueError: if `text` is no sum of weighted terms of `TERMS`, each at most once.
    """
    weights: dict[str, float] = {}
    for part in text.split("+"):
        match = _TERM.fullmatch(part.strip())
        name = match.group(2) if match else ""
        if match is None or name not in TERMS or name in weights or not 0 < float(match.group(1) or 1) < math.inf:
            raise ValueError(
                f"`loss` (={text}) must be a sum of {', '.join(TERMS)}, each with a weight above 0 or none, such as "
                "pyramid + 0.5 mse"
            )
        weights[name] = float(match.group(1) or 1)
    return weights
