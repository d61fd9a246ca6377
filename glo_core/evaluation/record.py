"""How good a run is, as its files have it."""

from dataclasses import dataclass
from typing import ClassVar

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record


@dataclass(frozen=True, kw_only=True)
class MetricsRecord(Record):
    """`metrics/<images seen>.json` of a run: its training images, at the end of a phase."""

    format: ClassVar[str] = "glo-metrics"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory"

    images_seen: int
    psnr: float
    """dB, of the reconstructions by the EMA decoder"""
    pca_psnr: float
    """dB, of projections on as many principal components as a code has dimensions"""
