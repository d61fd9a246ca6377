"""What a worker is told; this module brings no PyTorch, so that the driver need not."""

from dataclasses import dataclass
from pathlib import Path

from glo_core.data.config import Cache
from glo_core.training.config import Autocast, Compile, Intervals, ResolvedTrainConfig
from glo_core.training.schedule import Phase


@dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """What each worker is told."""

    recipe: ResolvedTrainConfig
    phase: Phase
    intervals: Intervals
    dataset: str
    """Directory or URI"""
    snapshot: str
    """Digest of the snapshot to train on"""
    run: Path
    scratch: Path | None
    cache: Cache
    autocast: Autocast
    compile: Compile
    warm_start: Path | None
    """Directory of a checkpoint whose decoder a new run starts from"""
    threads: int
    """Of PyTorch, in each worker"""
    gpu: bool
    """Whether each worker has a GPU"""
