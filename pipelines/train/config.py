"""What a user says of a training: its recipe, its length, and how it is carried out."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glo_core.common.location import Location
from glo_core.data.config import Cache
from glo_core.training.config import Intervals, TrainConfig
from pipelines.common.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainConfig):
    """A recipe of training, its length, and how it is carried out."""

    images: int = 0
    """Images to see in all, a larger number on a finished run trains on; 0 for the rule's, see docs/training.md"""
    workers: int | str = 1
    """Ray Train workers, or a range such as 1:8 for as many as the cluster has room for while it
    grows and shrinks; the result does not depend on it"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU for each worker where the cluster has them"""
    cpus_per_worker: float = 0.0
    """CPUs of each worker; 0 for an even share of the cluster's"""
    max_failures: int = 3
    """Lost workers after which training gives up; each time it goes on from the last checkpoint"""
    cache: Cache = "auto"
    """Where images lie: on the device, in host memory, or in their mapped blocks; auto takes the fastest with room"""
    scratch: Path | None = None
    """Directory on each node's local disk for codes that `window` keeps out of memory (default: the temporary one)"""
    warm_start: Path | None = None
    """Another run, from whose decoder as it is now a new run starts"""
    intervals: Intervals = dataclasses.field(default_factory=Intervals)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 0:
            raise ValueError(f"`images` (={self.images}) must be at least 1, or 0 for the rule's")
        fewest, colon, most = str(self.workers).partition(":")
        numbers = [fewest, most] if colon else [fewest]
        if not all(number.isdecimal() and int(number) for number in numbers) or int(numbers[0]) > int(numbers[-1]):
            raise ValueError(f"`workers` (={self.workers}) must be a number from 1 on, or a range such as 1:8")

    @property
    def fewest_and_most_workers(self) -> tuple[int, int]:
        fewest, _, most = str(self.workers).partition(":")
        return int(fewest), int(most or fewest)


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainSettings, TrackingConfig):
    """Train codes and decoder on a dataset; the same command again goes on where it stopped."""

    dataset: Location
    """Directory or URI of the dataset"""
    run: Path
    """Directory of the run, made if it is not there"""
