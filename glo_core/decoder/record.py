"""`decoder.json`: the config and the shape of a decoder."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record
from glo_core.decoder.build import make_decoder, require_allowed_kind
from glo_core.decoder.config import MODULE, DecoderConfig, ResolvedDecoderConfig, Shape


@dataclass(frozen=True, kw_only=True)
class DecoderRecord(Record):
    """The content of `decoder.json`."""

    format: ClassVar[str] = "glo-decoder"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory"

    config: ResolvedDecoderConfig
    code_dim: int
    """Dimensions of a code"""
    resolution: int
    """Side of the images in pixels"""
    channels: int
    """1 for gray, 3 for color"""

    @classmethod
    def of(cls, config: ResolvedDecoderConfig, shape: Shape) -> "DecoderRecord":
        """The record of a decoder that `make_decoder` makes of the same arguments."""
        # The widths in use are recorded, so that a later change of the default does not change this run.
        return cls(config=ResolvedDecoderConfig(**vars(config)), **shape._asdict())

    @property
    def shape(self) -> Shape:
        """What the decoder maps between."""
        return Shape(self.code_dim, self.resolution, self.channels)

    def decoder(self, module: nn.Module | None = None, allow_kind: str | None = None) -> nn.Module:
        """The decoder, in its initial state.

        Args:
            module: the decoder itself, where the record's kind is one of the user's own; it is copied.
            allow_kind: the class of the user's that may be imported, as package.module:Class.

        Raises:
            CheckpointError: if the record names a class that neither of the two gives.
            UserError: if the decoder cannot be made.
        """
        require_allowed_kind(self.config.kind, module, allow_kind)
        config = self.config if module is None else DecoderConfig(kind=MODULE)
        return make_decoder(config, **self.shape._asdict(), module=module)
