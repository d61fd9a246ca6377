"""How codes of unseen images are found."""

from dataclasses import dataclass

from glo_core.common.config import Config
from glo_core.common.limits import LARGEST_RATE, LARGEST_SEED, require_at_most


@dataclass(frozen=True, kw_only=True)
class InvertConfig(Config):
    """How codes of unseen images are found."""

    restarts: int = 3
    """Starts of each image: a ridge regression from its PCA scores, the mean code, then codes of training images"""
    steps: int = 100
    """Steps of Adam on the best start of each image, at a rate that falls to 0 along a cosine"""
    learning_rate: float = 0.05
    """Adam's step size at first; codes have norm 1 at most"""
    seed: int = 0
    """Seed of the choice of training images"""

    def __post_init__(self) -> None:
        for name in ("restarts", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` (={self.learning_rate}) must be above 0")
        require_at_most(self, restarts=10_000, steps=10**6, learning_rate=LARGEST_RATE, seed=LARGEST_SEED)
