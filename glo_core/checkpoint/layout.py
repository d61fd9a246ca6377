"""The files of a checkpoint. It is committed whole: parts first, `checkpoint.json` last."""

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.files import sync_directory
from glo_core.common.records import Record

CODES_METADATA = {"format": "glo-codes", "format_version": "1"}
"""Of the schema of every file of codes"""
MARK = "checkpoint.json"
"""The commit mark, written last: a directory without it is no checkpoint"""
_TRASH = ".trash-"
_UNCOMMITTED = re.compile(rf"\d+(\.[0-9a-f]{{32}})?|{re.escape(_TRASH)}.*")
"""Names of directories beside the committed checkpoints that no user gave"""
DECODER_PARTS = ("decoder.json", "ema.safetensors")
"""The parts that a decoder without codes needs"""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands: at the boundary before `step` of `epoch`."""

    images_seen: int = 0
    phase: int = 0
    """Number of the phase"""
    epoch: int = 0
    step: int = 0
    """Number of the next step in its epoch"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a checkpoint."""

    bytes: int
    """The file's length"""
    blake3: str
    """BLAKE3-128 of the file, in hex"""


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(Record):
    """The content of `checkpoint.json`."""

    format: ClassVar[str] = "glo-checkpoint"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory (a warm start from it is not possible)"

    position: Position
    snapshot: str
    """Digest of the dataset's snapshot that was trained on"""
    code_shards: int
    """S"""
    code_dim: int
    """Dimensions of a code"""
    projection: Literal["sphere", "ball"]
    code_optimizer: Literal["adam", "adagrad", "sgd"]
    precision: Literal["float32", "float64"]
    autocast: Literal["off", "bfloat16"] = "off"
    """What the decoder computed in besides its precision; not identity"""
    train_psnr: float | None
    """PSNR in dB of the last report before the checkpoint"""
    parts: dict[str, Part]
    """By the file's name in the checkpoint's directory"""

    def __post_init__(self) -> None:
        for name in ("code_shards", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


def shard_name(shard: int) -> str:
    """The file of a code shard, relative to the checkpoint's directory."""
    return f"codes/shard={shard:03d}.arrow"


def committed_checkpoints(run: Path) -> list[Path]:
    """Directories of the committed checkpoints of a run, oldest first."""
    committed = [path for path in (run / "checkpoints").glob("*") if is_committed(path)]
    return sorted(committed, key=lambda path: int(path.name))


def is_committed(directory: Path) -> bool:
    """Whether `directory`, in the folder of a run's checkpoints, is a committed checkpoint."""
    return directory.name.isdigit() and (directory / MARK).exists()


def newest_checkpoint_directory(run: Path) -> Path:
    """The newest committed checkpoint of a run.

    Raises:
        CheckpointError: if the run has none.
    """
    checkpoints = committed_checkpoints(run)
    if not checkpoints:
        raise CheckpointError(f"{run}: no checkpoint here; jobs/train.py --run {run} makes one")
    return checkpoints[-1]


def staging_directory(run: Path, images_seen: int, token: str) -> Path:
    """Where the attempt of `token` writes the parts of a checkpoint; its rename to `<images seen>` commits them."""
    return run / "checkpoints" / f"{images_seen}.{token}"


def metrics_path(run: Path, images_seen: int) -> Path:
    """The `MetricsRecord` of the checkpoint at `images_seen`, the end of a phase; beside it `.safetensors`, the PCA."""
    return run / "metrics" / f"{images_seen}.json"


def forget_metrics(run: Path, images_seen: int) -> None:
    """Delete the figures of an earlier checkpoint at `images_seen`, which is gone, before a new one is committed."""
    path = metrics_path(run, images_seen)
    for stale in (path, path.with_suffix(".safetensors")):
        if stale.exists():
            stale.unlink(missing_ok=True)
            sync_directory(stale.parent)  # The commit must not reach the disk before it.


def sweep_uncommitted(run: Path, token: str) -> None:
    """Delete uncommitted checkpoints, but for those of the attempt of `token`, which has begun.

    A directory is moved away before it is deleted: an older attempt that goes on can then rename it no more. What
    cannot be deleted stays, and is no checkpoint.
    """
    for path in (run / "checkpoints").glob("*"):
        if _UNCOMMITTED.fullmatch(path.name) and path.suffix != f".{token}" and not is_committed(path):
            discard(path)


def discard(directory: Path) -> None:
    """Move `directory` away, and delete what can be deleted of it."""
    trash = directory
    if not directory.name.startswith(_TRASH):
        trash = directory.with_name(f"{_TRASH}{directory.name}.{secrets.token_hex(4)}")
        try:
            directory.rename(trash)
        except OSError:
            return
    shutil.rmtree(trash, ignore_errors=True)
