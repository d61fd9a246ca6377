"""The records of a stage: `run.json`, which it writes first, and `done.json`, which it writes last."""

from dataclasses import dataclass
from typing import ClassVar

from glo_core.checkpoint.run_record import RUN_FILE, PhaseRecord, RunRecord, read_run_record
from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record
from glo_core.evaluation.record import MetricsRecord
from glo_core.sampling.config import Kind

__all__ = ["DONE_FILE", "RUN_FILE", "PhaseRecord", "RunRecord", "read_run_record"]

DONE_FILE = "done.json"


class DoneRecord(Record):
    """`done.json`: what a stage has made. Each stage has a class of its own."""

    format: ClassVar[str] = "glo-done"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = RunRecord.anew


@dataclass(frozen=True, kw_only=True)
class TrainDone(DoneRecord):
    """The end of a run's newest finished phase."""

    images_seen: int
    psnr: float
    """dB, over the training images"""
    pca_psnr: float
    """dB, of PCA with as many components as a code has dimensions, over the same images"""
    phase: int
    """Its number, from 0"""
    snapshot: str
    """Digest of the snapshot that it trained on"""


@dataclass(frozen=True, kw_only=True)
class FitPriorDone(DoneRecord):
    """Priors, each in a folder that has its kind for a name."""

    kinds: tuple[Kind, ...]
    codes: int
    """How many codes they were fitted to"""


@dataclass(frozen=True, kw_only=True)
class RenderDone(DoneRecord):
    """Grids, each a PNG file."""

    grids: tuple[str, ...]
    """Names of the files, without the extension"""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Reconstructions beside their images, pixels in [0, 1]."""

    images: int
    psnr: float
    """dB, of the mean of all squared errors"""
    ssim: float
    mse: float


@dataclass(frozen=True, kw_only=True)
class SplitQuality:
    """The training or the held-out images, reconstructed in two ways."""

    glo: Quality
    pca: Quality


@dataclass(frozen=True, kw_only=True)
class EvaluateDone(DoneRecord):
    """The quality of a checkpoint."""

    images_seen: int
    train: SplitQuality
    held_out: SplitQuality | None = None
    """None if the dataset holds no image out"""


@dataclass(frozen=True, kw_only=True)
class PipelineMetrics(MetricsRecord):
    """`<root>/metrics.json`: a run's metrics, and its evaluation once there is one."""

    train: SplitQuality | None = None
    held_out: SplitQuality | None = None
