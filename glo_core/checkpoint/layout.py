"""Where the parts of a checkpoint lie. It is committed whole: parts first, `checkpoint.json` last."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record, read_record

CODES_METADATA = {"format": "glo-codes", "format_version": "1"}
"""Of the schema of every Parquet file of codes"""
MARK = "checkpoint.json"
"""Written last: a checkpoint without it is none"""
DECODER_PARTS = ("decoder.json", "ema.safetensors")
"""What a decoder alone needs"""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands: at the boundary before `step` of `epoch`."""

    images_seen: int = 0
    phase: int = 0
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a checkpoint."""

    bytes: int
    blake3: str
    """BLAKE3-128 of the file, in hex"""


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(Record):
    """What `checkpoint.json` holds."""

    format: ClassVar[str] = "glo-checkpoint"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory (a warm start from it is not possible)"

    position: Position
    snapshot: str
    """Digest of the dataset's snapshot that was trained on"""
    code_shards: int
    code_dim: int
    projection: Literal["sphere", "ball"]
    code_optimizer: Literal["adam", "adagrad", "sgd"]
    precision: Literal["float32", "float64"]
    train_psnr: float | None
    """PSNR in dB of the last report before the checkpoint"""
    parts: dict[str, Part]
    """By the file's name in the checkpoint's directory"""


def shard_name(shard: int) -> str:
    """The file of a code shard, relative to the checkpoint's directory."""
    return f"codes/shard={shard:03d}.parquet"


def committed_checkpoints(run: Path) -> list[Path]:
    """Committed checkpoints of a run, oldest first."""
    marks = (run / "checkpoints").glob(f"*/{MARK}")
    return sorted((mark.parent for mark in marks if mark.parent.name.isdigit()), key=lambda path: int(path.name))


def newest_checkpoint_directory(run: Path) -> Path:
    """The newest committed checkpoint of a run.

    Raises:
        CheckpointError: if the run has none.
    """
    checkpoints = committed_checkpoints(run)
    if not checkpoints:
        raise CheckpointError(f"{run}: no checkpoint here; jobs/train.py --run {run} makes one")
    return checkpoints[-1]


def prune(run: Path, keep: int) -> None:
    """Delete committed checkpoints but for the last `keep` and the one of the highest training PSNR."""
    marks = committed_checkpoints(run)
    best = max(
        marks, key=lambda path: read_record(path / MARK, CheckpointRecord).train_psnr or float("-inf"), default=None
    )
    for old in marks[:-keep]:
        if old != best:
            (old / MARK).unlink()  # First the mark, so that a half deleted checkpoint is none.
            shutil.rmtree(old)


def sweep_uncommitted(run: Path) -> None:
    """Delete what killed writers left. Call it on one rank, before any rank writes."""
    for path in (run / "checkpoints").glob("*"):
        if not (path / MARK).exists():
            shutil.rmtree(path, ignore_errors=True)
