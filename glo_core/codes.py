"""The code table of one rank: a row per image, its projection, and the row-wise optimizer.

A step touches the rows of its batch and no other, so that it costs the same however long the table is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from glo_core.config import Config
from glo_core.hashing import Int64Array


@dataclass(frozen=True, kw_only=True)
class CodeConfig(Config):
    """The latent codes and their optimizer."""

    dim: int = 64
    """Latent dimensions"""
    start: Literal["pca", "random"] = "pca"
    """Codes start from the images' principal components, or from a Gaussian"""
    projection: Literal["sphere", "ball"] = "sphere"
    """Unit sphere in the forward pass (seed), or unit ball after each update (paper)"""
    learning_rate: float = 5e-3
    """Adam's step size for codes at the schedule's peak"""
    beta1: float = 0.5
    """Decay of Adam's first moment, per update of the row (a row has one update an epoch)"""
    beta2: float = 0.9
    """Decay of Adam's second moment, per update of the row"""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"`code.dim` (={self.dim}) must be at least 1")
        if not self.learning_rate >= 0:
            raise ValueError(f"`code.learning_rate` (={self.learning_rate}) must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`code.{name}` (={getattr(self, name)}) must be at least 0 and below 1")


def to_sphere(codes: torch.Tensor) -> torch.Tensor:
    """z / |z|, for codes `[..., dim]`."""
    return torch.nn.functional.normalize(codes, dim=-1)


def to_ball(codes: torch.Tensor) -> torch.Tensor:
    """z / max(1, |z|), for codes `[..., dim]` (arXiv 1707.05776, section 3.3)."""
    return codes / codes.norm(dim=-1, keepdim=True).clamp_min(1)


PROJECTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"sphere": to_sphere, "ball": to_ball}


class CodeTable:
    """Codes of the images of one rank, with their Adam state.

    Attributes:
        ids: image ids, int64 `[n]`.
        raw: the optimized values, `[n, dim]`. On the sphere the projection acts in the forward pass and these
            are never normalized; in the ball they are the codes themselves.
        exp_avg, exp_avg_sq: Adam's moments, `[n, dim]`.
        num_updates: how often each row was updated, int32 `[n]`.
    """

    def __init__(self, config: CodeConfig, ids: Int64Array, raw: torch.Tensor) -> None:
        self.config, self.ids = config, ids
        self.raw = raw
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(raw), torch.zeros_like(raw)
        self.num_updates = torch.zeros(len(raw), dtype=torch.int32, device=raw.device)

    def project(self, raw: torch.Tensor) -> torch.Tensor:
        """Codes as the decoder receives them, from raw rows `[..., dim]`."""
        return to_sphere(raw) if self.config.projection == "sphere" else raw

    def codes(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Codes as the decoder receives them, `[rows, dim]`."""
        return self.project(self.raw[rows])

    @torch.no_grad()
    def update(self, rows: torch.Tensor, grad: torch.Tensor, learning_rate: float) -> None:
        """One step of Adam (Kingma and Ba, algorithm 1) on `rows`, each with its own count of updates.

        Args:
            rows: unique row numbers, int64 `[b]`.
            grad: gradient of the sum of the images' losses by the raw rows, `[b, dim]`.
        """
        config = self.config
        count = self.num_updates[rows] + 1
        mean = torch.lerp(grad, self.exp_avg[rows], config.beta1)
        square = torch.lerp(grad * grad, self.exp_avg_sq[rows], config.beta2)
        # A step count of the whole run would leave rarely met rows without bias correction.
        unbiased_mean = mean / (1 - config.beta1 ** count.to(mean)).unsqueeze(1)
        unbiased_square = square / (1 - config.beta2 ** count.to(mean)).unsqueeze(1)
        raw = self.raw[rows] - learning_rate * unbiased_mean / (unbiased_square.sqrt() + 1e-8)
        self.raw[rows] = to_ball(raw) if config.projection == "ball" else raw
        self.exp_avg[rows], self.exp_avg_sq[rows], self.num_updates[rows] = mean, square, count
