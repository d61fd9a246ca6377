"""The latent codes and their optimizer, as a recipe names them."""

import math
from dataclasses import dataclass, field
from typing import Literal

from glo_core.common.config import AutoInt, Config
from glo_core.common.limits import LARGEST_RATE, require_at_most


@dataclass(frozen=True, kw_only=True)
class CodeConfig(Config):
    """The latent codes and their optimizer."""

    dim: AutoInt = None
    """Latent dimensions; auto takes the images' resolution, but 16 at least and 128 at most"""
    init: Literal["pca", "random"] = "pca"
    """Initial codes: the images' principal components, or draws from a Gaussian"""
    init_scale: float = 1.0
    """Root mean square norm of random initial codes"""
    projection: Literal["sphere", "ball"] = "sphere"
    """Unit sphere in the forward pass (seed), or unit ball after each update (paper)"""
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    """Row by row: Adam with each row's own count, Adagrad with one scalar per row, or plain gradient descent"""
    learning_rate: float = 2e-2
    """The optimizer's step size for codes at the schedule's peak"""
    schedule: Literal["same", "cosine", "constant", "step"] = "same"
    """Of the codes' learning rate: the decoder's, or one of its own"""
    beta1: float = 0.5
    """Decay of Adam's first moment, per update of the row (a row has one update an epoch)"""
    beta2: float = 0.9
    """Decay of Adam's second moment, per update of the row"""
    weight_decay: float = 0.0
    """Weight of half the squared norm of a raw code beside its image's loss"""

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"`dim` (={self.dim}) must be at least 1, or auto")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` (={self.learning_rate}) must be finite, and at least 0")
        if not 0 < self.init_scale < math.inf:
            raise ValueError(f"`init_scale` (={self.init_scale}) must be finite, and above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` (={self.weight_decay}) must be finite, and at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 0 and below 1")
        require_at_most(self, dim=2**16, learning_rate=LARGEST_RATE, init_scale=1e6, weight_decay=1e6)


@dataclass(frozen=True, kw_only=True)
class ResolvedCodeConfig(CodeConfig):
    """The latent codes of one training: nothing is left to choose."""

    dim: int = field()
    """Latent dimensions"""
