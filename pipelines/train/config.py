"""What a user says of a training: its recipe, its length, and how it is carried out."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from glo_core.common.config import AutoFloat, AutoInt, AutoPath, MustExist, NoneWord
from glo_core.common.limits import MANY, require_at_most
from glo_core.common.location import Location
from glo_core.data.config import Cache
from glo_core.training.config import Autocast, Compile, Intervals, TrainConfig
from pipelines.common.tracking_config import TrackingConfig

_MOST_WORKERS = 2**16


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainConfig):
    """A recipe of training, its length, and how it is carried out."""

    images: AutoInt = None
    """Images to see in all; a larger number on a finished run trains on; auto chooses by the number of images"""
    workers: str = "1"
    """Ray Train workers: a number, or a range such as 1:8 for as many as the cluster has room for"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of each worker; auto takes a GPU where the cluster has them"""
    cpus_per_worker: AutoFloat = None
    """CPUs of each worker; auto takes an even share of the cluster's"""
    max_failures: int = 3
    """Lost workers after which training gives up; each time it goes on from the last checkpoint"""
    cache: Cache = "auto"
    """Where images lie: on the device, in host memory, or in their mapped blocks; auto takes the fastest with room"""
    autocast: Autocast = "auto"
    """Whether the decoder computes in bfloat16 instead of float32; auto where the device does so in hardware"""
    compile: Compile = "auto"
    """Whether torch.compile compiles a step; auto on a GPU"""
    scratch: AutoPath = None
    """Directory on each node's local disk for codes that `window` keeps out of memory; auto: the temporary one"""
    warm_start: Annotated[Path | None, NoneWord("off"), MustExist] = None
    """Another run, from whose decoder as it is now a new run starts"""
    intervals: Intervals = dataclasses.field(default_factory=Intervals)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and self.images < 1:
            raise ValueError(f"`images` (={self.images}) must be at least 1, or auto")
        if self.cpus_per_worker is not None and not self.cpus_per_worker > 0:
            raise ValueError(f"`cpus_per_worker` (={self.cpus_per_worker}) must be above 0, or auto")
        if self.max_failures < 0:
            raise ValueError(f"`max_failures` (={self.max_failures}) must be at least 0")
        fewest, colon, most = self.workers.partition(":")
        numbers = [fewest, most] if colon else [fewest]
        if not all(number.isdecimal() and int(number) for number in numbers) or int(numbers[0]) > int(numbers[-1]):
            raise ValueError(f"`workers` (={self.workers}) must be a number from 1 on, or a range such as 1:8")
        if int(numbers[-1]) > _MOST_WORKERS:
            raise ValueError(f"`workers` (={self.workers}) must be at most {_MOST_WORKERS:,}")
        if self.autocast == "bfloat16" and self.precision == "float64":
            raise ValueError("`autocast` (=bfloat16) needs `precision` float32; float64 excludes it")
        require_at_most(self, images=MANY, cpus_per_worker=10_000, max_failures=10**9)

    @property
    def fewest_and_most_workers(self) -> tuple[int, int]:
        """Both ends of the range of workers."""
        fewest, _, most = self.workers.partition(":")
        return int(fewest), int(most or fewest)


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainSettings, TrackingConfig):
    """Train codes and decoder on a dataset; the same command again resumes where it stopped."""

    example = "python jobs/train.py --dataset ~/staged/dataset --run ~/staged/run --images 1e6"
    common_flags = (
        "images", "workers", "device", "batch_size", "learning_rate", "code.dim", "decoder.kind", "loss",
        "warm_start", "experiment",
    )  # fmt: skip

    dataset: Annotated[Location, MustExist]
    """Directory or URI of the dataset"""
    run: Path
    """Directory of the run, made if it is not there"""
