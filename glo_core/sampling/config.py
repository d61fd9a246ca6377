"""Which priors are fitted."""

from dataclasses import dataclass
from typing import Literal

from glo_core.common.config import Config

Kind = Literal["unit", "diagonal", "full"]


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Config):
    """Which distributions are fitted to the learned codes."""

    kinds: tuple[Kind, ...] = ("unit", "diagonal", "full")
    """Gaussians: of unit covariance (nothing fitted), of diagonal and of full covariance"""

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("`kinds` (=[]) must name at least one of unit, diagonal, full")
