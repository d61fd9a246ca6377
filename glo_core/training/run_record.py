"""The records of a run that `glo.train` keeps: its recipe, its phases, and its figures.

run.json (recipe, phases) -> training -> checkpoints/<images seen>/ -> metrics/<images seen>.json
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.files import differences, read_json
from glo_core.common.records import Record, parse_record, parse_value
from glo_core.training.auto_config import images_to_see
from glo_core.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One training of a run to a target."""

    start: int
    """Images seen at its start"""
    target: int
    """Images seen at its end"""
    snapshot: str
    """Digest of the images that it trains on"""
    images: int
    """Their number"""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """What `run.json` of a run by `glo.train` holds."""

    format: ClassVar[str] = "glo-run"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another directory"

    identity: dict[str, Any]
    """The recipe: every setting that decides the result"""
    paths: dict[str, str]
    """`dataset`, if the run was trained on one"""
    phases: tuple[PhaseRecord, ...]


@dataclass(frozen=True, kw_only=True)
class MetricsRecord(Record):
    """What `metrics/<images seen>.json` holds, over the training images at the end of a phase."""

    format: ClassVar[str] = "glo-training-metrics"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train on, and it is written anew"

    images_seen: int
    psnr: float
    """In dB, of the EMA decoder at the learned codes"""
    pca_psnr: float
    """In dB, of principal components, as many as a code has dimensions"""


def metrics_path(run: Path, images_seen: int) -> Path:
    return run / "metrics" / f"{images_seen}.json"


def read_run(run: Path) -> RunRecord | None:
    """The record of `run`; None if the directory holds nothing yet.

    Raises:
        CheckpointError: if the record is damaged, or of a run that `glo.train` did not make.
    """
    path = run / "run.json"
    if not path.exists():
        if (run / "checkpoints").exists():
            raise CheckpointError(f"{run}: has checkpoints and no run.json; train into another directory")
        return None
    values = read_json(path)
    if values.get("format") != RunRecord.format:
        raise CheckpointError(f"{run}: was not made by glo.train; go on with jobs/train.py --run {run}")
    return parse_record(values, RunRecord, path)


def identity_of(config: Any, decoder: object | None, loss: object | None) -> dict[str, Any]:
    """Every setting of `config` as JSON has it, and the names of a decoder and a loss that are objects."""
    identity: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    names = {key: _name(value) for key, value in (("decoder", decoder), ("loss", loss)) if value is not None}
    return {**identity, "objects": names}


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def recipe_of(record: RunRecord) -> TrainConfig:
    """The recipe of a run.

    Raises:
        CheckpointError: if the record lacks a setting, or has one of another type.
    """
    try:
        return parse_value(record.identity, TrainConfig)
    except ValueError as error:
        raise CheckpointError(f"run.json: identity.{error}; the file is damaged, copy it back") from None


def require_recipe(run: Path, record: RunRecord, identity: dict[str, Any]) -> None:
    """Raise `CheckpointError` if `run` was trained by another recipe."""
    changed = differences(record.identity, identity)
    if changed:
        raise CheckpointError(
            f"{run}: was trained by another recipe ({'; '.join(changed)}); give the old values, or another directory"
        )


def next_phases(
    run: Path, phases: tuple[PhaseRecord, ...], seen: int, target: int | None, snapshot: str, images: int
) -> tuple[PhaseRecord, ...] | None:
    """The phases of a run, the next one to train last; None if it has reached its target.

    Args:
        seen: images seen at the newest checkpoint.
        target: images to see in all; None leaves it to the rule.
        snapshot: digest of the images at hand.
        images: their number.

    Raises:
        CheckpointError: if an unfinished phase has seen more than `target` already.
    """
    last = phases[-1] if phases else None
    if last is not None and seen >= last.target:
        if target is None and last.snapshot != snapshot:
            # New images are seen too, at least once.
            target = max(images_to_see(images), seen + images)
        if target is None or target <= seen:
            return None
    elif last is not None and target in (None, last.target):
        return phases
    target = target or images_to_see(images)
    if last is not None and target <= seen:
        raise CheckpointError(
            f"{run}: has seen {seen} images on the way to {last.target}; `images_seen` (={target}) must be "
            f"{last.target} to go on there, or more than {seen}"
        )
    return (*phases, PhaseRecord(start=seen, target=target, snapshot=snapshot, images=images))
