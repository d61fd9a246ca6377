"""The records of a stage: `run.json`, which it writes first, and `done.json`, which it writes last."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record, read_record
from glo_core.evaluation.record import MetricsRecord
from glo_core.sampling.config import Kind

RUN_FILE, DONE_FILE = "run.json", "done.json"


class StageRecord(Record):
    """Base of both records."""

    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory (a warm start from this run is not possible)"


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One training of a run to a target."""

    start: int
    """Images seen at its start"""
    target: int
    """Images seen at its end"""
    snapshot: str
    """Digest of the snapshot that it trains on"""


@dataclass(frozen=True, kw_only=True)
class RunRecord(StageRecord):
    """`run.json`: what a stage works on, and with which settings."""

    format: ClassVar[str] = "glo-run"

    stage: str
    identity: dict[str, Any]
    """The settings that decide the result, nested; of defaults, the values that they were resolved to"""
    inputs: dict[str, str]
    """Digest of each input, by name"""
    paths: dict[str, str]
    """Where each input lies, by name; not identity"""
    versions: dict[str, str]
    """Version of each library; not identity"""
    mlflow_run_id: str | None = None
    phases: tuple[PhaseRecord, ...] = ()
    """Of a training, oldest first"""


def read_run_record(directory: Path) -> RunRecord | None:
    """The record of the stage that made `directory`; None if there is no record.

    Raises:
        CheckpointError: if the record is damaged, or of another format or version.
    """
    path = directory / RUN_FILE
    return read_record(path, RunRecord) if path.exists() else None


class DoneRecord(StageRecord):
    """`done.json`: what a stage has made. Each stage has a class of its own."""

    format: ClassVar[str] = "glo-done"


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
