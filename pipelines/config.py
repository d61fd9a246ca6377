"""What each command after training is told, and the pipeline of all commands."""

from dataclasses import dataclass, field
from pathlib import Path

from glo_core.common.config import Config
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig
from glo_core.evaluation.config import InvertConfig
from glo_core.sampling.config import PriorConfig
from pipelines.common.tracking import TrackingConfig
from pipelines.train.config import TrainSettings


@dataclass(frozen=True, kw_only=True)
class RenderConfig(Config):
    """What is drawn."""

    columns: int = 8
    """Reconstructions, samples or steps of an interpolation in a row"""
    rows: int = 8
    """Rows of a grid"""
    neighbors: int = 5
    """Nearest training images beside each sample"""
    seed: int = 0
    """Seed of the samples and of the choice of training images"""

    def __post_init__(self) -> None:
        for name in ("columns", "rows", "neighbors"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RenderJob(RenderConfig, TrackingConfig):
    """Render the evaluation grids of a run's newest checkpoint and its priors."""

    run: Path
    """Directory of the run"""
    decoder_kind: str | None = None
    """The class of a decoder of your own, as --decoder.kind named it in training: files must not choose code"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InvertConfig):
    """What is measured, and how codes of held-out images are found."""

    held_out: int = 0
    """Held-out images to invert at most, those of the lowest ids; 0 for all"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out < 0:
            raise ValueError(f"`held_out` (={self.held_out}) must be at least 1, or 0 for all")


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(EvaluateConfig, TrackingConfig):
    """Measure a run's newest checkpoint on its training images and on the dataset's held-out ones, beside PCA."""

    run: Path
    """Directory of the run"""
    decoder_kind: str | None = None
    """The class of a decoder of your own, as --decoder.kind named it in training: files must not choose code"""


@dataclass(frozen=True, kw_only=True)
class FitPriorJob(PriorConfig, TrackingConfig):
    """Fit distributions to the learned codes of a run's newest checkpoint."""

    run: Path
    """Directory of the run"""


@dataclass(frozen=True, kw_only=True)
class InspectJob(Config):
    """Print what a dataset is."""

    dataset: Location
    """Directory or URI of the dataset"""
    verify: bool = False
    """Read every block and every row of the manifest, and check one against the other"""
    export: str = ""
    """Write one image as a PNG file: an id, or source/path as the manifest has them"""
    output: Path | None = None
    """Folder that the exported image is written to (default: the working directory)"""


@dataclass(frozen=True, kw_only=True)
class PipelineJob(TrackingConfig):
    """From folders of images to grids and figures in MLflow: preprocess, train, fit_prior, render, evaluate."""

    input: tuple[Location, ...]
    """Folders of image files, searched recursively; .tar shards, .parquet tables, .txt lists of paths; or URIs"""
    root: Path
    """Directory of everything that is made: dataset/, run/, mlflow.db, metrics.json"""
    preprocess: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainSettings = field(default_factory=TrainSettings)
    fit_prior: PriorConfig = field(default_factory=PriorConfig)
    render: RenderConfig = field(default_factory=RenderConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
