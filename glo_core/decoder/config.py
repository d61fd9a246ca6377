"""What kind of decoder, and how large."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from glo_core.common.config import AutoInt, AutoInts, Config
from glo_core.common.limits import require_at_most

DecoderKind = Literal["seed", "dcgan", "residual"]
KINDS: tuple[DecoderKind, ...] = get_args(DecoderKind)
MODULE = "module"
"""The kind of a decoder that a notebook gives as an `nn.Module`"""

_WIDTHS = {"seed": (12, 512), "dcgan": (8, 384), "residual": (6, 256)}
"""Channels at 4 px for `filters` auto, by kind: per pixel of the images' side, and at most. All kinds then take about
as many operations"""
_NARROWEST = 16
"""The least number of channels of a layer for `filters` auto"""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """What kind of decoder, and how large."""

    kind: str = "dcgan"
    """seed, dcgan, residual, or your own: package.module:Class, called with code_dim, resolution and channels"""
    filters: AutoInts = None
    """Channels at 4, 8, 16, ... px, one number for each doubling; auto chooses by the resolution"""
    kernel_size: int = 3
    """Seed only: side of the transposed convolutions but for the first and the last"""
    batch_norm_momentum: float = 0.01
    """Weight of a new batch in the running statistics"""
    norm_group: AutoInt = None
    """Rows of a global batch that share batch statistics: whole lanes; auto takes the fewest that make 32 rows"""
    modulation: bool = False
    """Residual only: the code also scales and shifts each group norm"""

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, MODULE) and not all(self.kind.partition(":")):
            raise ValueError(f"`kind` (={self.kind}) must be {', '.join(KINDS)}, or package.module:Class")
        if self.filters is not None and any(width < 1 for width in self.filters):
            raise ValueError(f"`filters` (={list(self.filters)}) must be at least 1 each, or auto")
        if self.kernel_size < 2:
            raise ValueError(f"`kernel_size` (={self.kernel_size}) must be at least 2")
        if self.kernel_size != DecoderConfig.kernel_size and self.kind != "seed":
            raise ValueError(f"`kernel_size` (={self.kernel_size}) needs `kind` seed, not {self.kind}")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"`batch_norm_momentum` (={self.batch_norm_momentum}) must be in (0, 1]")
        if self.norm_group is not None and self.norm_group < 1:
            raise ValueError(f"`norm_group` (={self.norm_group}) must be at least 1 row, or auto")
        if self.modulation and self.kind != "residual":
            raise ValueError(f"`modulation` needs `kind` residual, not {self.kind}")
        require_at_most(self, filters=2**16, kernel_size=64, norm_group=2**20)

    def widths(self, resolution: int) -> tuple[int, ...]:
        """Channels of each hidden layer at `resolution`.

        Raises:
            ValueError: if `filters` is of another length than `resolution` needs.
        """
        doublings = _doublings(resolution)
        widths = self.filters if self.filters is not None else self.default_widths(resolution)
        if len(widths) != doublings:
            raise ValueError(
                f"`decoder.filters` (={list(widths)}) must have {doublings} entries for images of {resolution} px"
            )
        return widths

    def default_widths(self, resolution: int) -> tuple[int, ...]:
        """The rule's channels of each hidden layer; none for a decoder of the user's."""
        if self.kind not in KINDS:
            return ()
        per_pixel, widest = _WIDTHS[self.kind]
        first = min(per_pixel * resolution, widest)
        # Halved where the area is four times as large: every doubling takes as many operations.
        return tuple(max(first >> level, _NARROWEST) for level in range(_doublings(resolution)))


@dataclass(frozen=True, kw_only=True)
class ResolvedDecoderConfig(DecoderConfig):
    """The decoder of one training: nothing is left to choose."""

    filters: tuple[int, ...] = field()
    """Channels at 4, 8, 16, ... px, one number for each doubling; none for a decoder of your own"""
    norm_group: int = field()
    """Rows of a global batch that share batch statistics"""


def _doublings(resolution: int) -> int:
    return (resolution // 4).bit_length() - 1


class Shape(NamedTuple):
    """What a decoder maps between: codes `[b, code_dim]` and images `[b, channels, resolution, resolution]`."""

    code_dim: int
    resolution: int
    channels: int
