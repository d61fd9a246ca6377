"""What each command after training is told, and the pipeline of all commands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from glo_core.common.config import AllInt, Config, MustExist, NoneWord, OffText
from glo_core.common.limits import LARGEST_SEED, MANY, require_at_most
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig
from glo_core.evaluation.config import InvertConfig
from glo_core.sampling.config import PriorConfig
from pipelines.common.tracking_config import TrackingConfig
from pipelines.preprocess.config import IngestOptions
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
        require_at_most(self, columns=1000, rows=1000, neighbors=1000, seed=LARGEST_SEED)


@dataclass(frozen=True, kw_only=True)
class RenderJob(RenderConfig, TrackingConfig):
    """Render the grids of a run's newest checkpoint and its priors."""

    example = "python jobs/render.py --run ~/staged/run"
    common_flags = ("columns", "rows", "neighbors", "seed", "dataset", "tracking_uri", "experiment")

    run: Annotated[Path, MustExist]
    """Directory of the run"""
    decoder_kind: OffText = None
    """Class of a decoder of your own, package.module:Class, as `decoder.kind` named it in training"""
    dataset: Annotated[Location | None, NoneWord("auto"), MustExist] = None
    """Where the dataset is, if it has moved; auto: where the run says, or in the same place beside a moved run"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InvertConfig):
    """What is measured, and how codes of held-out images are found."""

    held_out: AllInt = None
    """Held-out images to invert at most: those of the lowest ids"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out is not None and self.held_out < 1:
            raise ValueError(f"`held_out` (={self.held_out}) must be at least 1, or all")
        require_at_most(self, held_out=MANY)


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(EvaluateConfig, TrackingConfig):
    """Measure a run's newest checkpoint on its training images and on held-out ones, beside PCA."""

    example = "python jobs/evaluate.py --run ~/staged/run"
    common_flags = ("held_out", "restarts", "steps", "learning_rate", "seed", "dataset", "tracking_uri", "experiment")

    run: Annotated[Path, MustExist]
    """Directory of the run"""
    decoder_kind: OffText = None
    """Class of a decoder of your own, package.module:Class, as `decoder.kind` named it in training"""
    dataset: Annotated[Location | None, NoneWord("auto"), MustExist] = None
    """Where the dataset is, if it has moved; auto: where the run says, or in the same place beside a moved run"""


@dataclass(frozen=True, kw_only=True)
class FitPriorJob(PriorConfig, TrackingConfig):
    """Fit priors to the learned codes of a run's newest checkpoint."""

    example = "python jobs/fit_prior.py --run ~/staged/run"
    common_flags = ("kinds", "tracking_uri", "experiment")

    run: Annotated[Path, MustExist]
    """Directory of the run"""


@dataclass(frozen=True, kw_only=True)
class InspectJob(Config):
    """Print what a dataset is, verify it, or export one of its images."""

    example = "python jobs/inspect_dataset.py --dataset ~/staged/dataset --verify"
    common_flags = ("verify", "export", "output")

    dataset: Annotated[Location, MustExist]
    """Directory or URI of the dataset"""
    verify: bool = False
    """Whether to read every block and every row of the manifest, and check one against the other"""
    export: OffText = None
    """Image to write as a PNG file: an id, or source/path as the manifest has them"""
    output: Path = Path()
    """Folder that the exported image is written to; by default the working directory"""


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings(IngestOptions, DatasetConfig):
    """What the dataset is, and what happens to files that preprocessing has met before."""


@dataclass(frozen=True, kw_only=True)
class PipelineJob(TrackingConfig):
    """Run every stage from folders of images to grids in MLflow, skipping what is finished."""

    example = "python jobs/pipeline.py --input ~/photos --root ~/glo"
    common_flags = (
        "preprocess.resolution", "preprocess.holdout", "train.images", "train.workers", "train.batch_size",
        "train.code.dim", "train.decoder.kind", "train.loss", "evaluate.held_out", "experiment",
    )  # fmt: skip

    input: Annotated[tuple[Location, ...], MustExist]
    """Folders of image files, searched recursively; .tar shards, .parquet tables, .txt lists of paths; or URIs"""
    list_stores: tuple[Location, ...] = ()
    """Stores that lines of a list may name, such as s3://bucket, beside those of the inputs"""
    root: Path
    """Directory of everything that is made: dataset/, run/, mlflow.db, metrics.json"""
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    fit_prior: PriorConfig = field(default_factory=PriorConfig)
    render: RenderConfig = field(default_factory=RenderConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
