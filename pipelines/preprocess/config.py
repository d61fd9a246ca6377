"""What preprocessing is told."""

from dataclasses import dataclass
from typing import Annotated, Literal

from glo_core.common.config import Config, MustExist
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig
from pipelines.common.tracking_config import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class IngestOptions(Config):
    """What a preprocessing run does with files that it has met before."""

    on_change: Literal["keep", "replace"] = "keep"
    """Treatment of a file whose bytes changed: keep the old image beside the new one, or replace it"""
    retry_rejected: bool = False
    """Whether to try every rejected file again, changed or not"""
    yes: bool = False
    """Go on although more than a tenth of a source's files changed, or are gone while others came"""


@dataclass(frozen=True, kw_only=True)
class PreprocessJob(IngestOptions, DatasetConfig, TrackingConfig):
    """Turn folders of images into an indexed dataset, or append what is new to one."""

    example = "python jobs/preprocess.py --input ~/photos --dataset ~/staged/dataset --resolution 64"
    common_flags = (
        "input", "resolution", "channels", "holdout", "group_by", "tight_crop", "on_change", "yes", "remove",
        "erase", "retry_rejected", "discard_plan", "experiment",
    )  # fmt: skip

    input: Annotated[tuple[Location, ...], MustExist] = ()
    """Folders of image files, searched recursively; .tar shards, .parquet tables, .txt lists of paths; or URIs"""
    list_stores: tuple[Location, ...] = ()
    """Stores that lines of a list may name, such as s3://bucket, beside those of the inputs"""
    dataset: Location
    """Directory or URI of the dataset, made if it is not there"""
    remove: tuple[str, ...] = ()
    """Images to remove from the dataset, each by its id or as source/path"""
    erase: bool = False
    """Write zeros over the pixels of every removed image, so that they are gone from the dataset's disk"""
    discard_plan: bool = False
    """Forget the plan of an interrupted run, with what is decoded of it, so that the files are listed anew"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.input or self.remove or self.erase or self.discard_plan):
            raise ValueError("`input` is required: name at least one folder")
