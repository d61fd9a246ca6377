"""`decoder.json`: all that makes a decoder of the same kind."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import ResolvedDecoderConfig, Shape


@dataclass(frozen=True, kw_only=True)
class DecoderRecord(Record):
    """What `decoder.json` holds."""

    format: ClassVar[str] = "glo-decoder"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory"

    config: ResolvedDecoderConfig
    code_dim: int
    resolution: int
    """Side of the images in pixels"""
    channels: int

    @classmethod
    def of(cls, config: ResolvedDecoderConfig, shape: Shape) -> "DecoderRecord":
        """The record of a decoder that `make_decoder` makes of the same arguments."""
        # The widths in use are recorded, so that a later change of the default does not change this run.
        return cls(config=ResolvedDecoderConfig(**vars(config)), **shape._asdict())

    @property
    def shape(self) -> Shape:
        return Shape(self.code_dim, self.resolution, self.channels)

    def decoder(self) -> nn.Module:
        """The decoder, in its initial state.

        Raises:
            UserError: if it cannot be made.
        """
        return make_decoder(self.config, **self.shape._asdict())
