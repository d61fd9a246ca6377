"""The phases of a run that `glo.train` keeps, and the recipe that they share, as `run.json` has them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from glo_core.checkpoint.run_record import RUN_FILE, PhaseRecord, RunRecord, read_run_record
from glo_core.common.errors import CheckpointError, ConfigError
from glo_core.common.files import differences
from glo_core.common.records import parse_value
from glo_core.training.auto_config import images_to_see
from glo_core.training.config import ResolvedTrainConfig, TrainConfig


def read_training(run: Path) -> RunRecord | None:
    """The record of the training `run`; None if the directory holds nothing yet.

    Raises:
        CheckpointError: if the record is missing beside checkpoints, damaged, or of another stage.
    """
    record = read_run_record(run)
    if record is None and (run / "checkpoints").exists():
        raise CheckpointError(f"{run}: has checkpoints and no {RUN_FILE}; train into another directory")
    if record is not None and record.stage != "train":
        raise CheckpointError(f"{run}: holds the outcome of {record.stage}, not of a training; give another directory")
    return record


def identity_of(config: Any, decoder: object | None, loss: object | None) -> dict[str, Any]:
    """Every setting of `config` as JSON has it, and the names of a decoder and a loss that are objects."""
    identity: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    names = {key: _name(value) for key, value in (("decoder", decoder), ("loss", loss)) if value is not None}
    return identity | ({"objects": names} if names else {})


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def recipe_of(run: Path, record: RunRecord) -> ResolvedTrainConfig:
    """The recipe of `run`, by its `record`.

    Raises:
        CheckpointError: if the record lacks a setting, or has one of another type.
    """
    try:
        return parse_value(record.identity, ResolvedTrainConfig)
    except ValueError as error:
        raise CheckpointError(f"{run / RUN_FILE}: identity: {error}; the file is damaged, copy it back") from None


def saved_settings(run: Path, record: RunRecord) -> dict[str, Any]:
    """The recipe of `run` by setting, nested, without those that name code to import.

    A file must not choose which code is run: such a setting comes from the user's own command or recipe.

    Raises:
        CheckpointError: as of `recipe_of`.
    """
    recipe = recipe_of(run, record)
    settings = dataclasses.asdict(recipe)
    for name in recipe.imports:
        section, _, field = name.rpartition(".")
        del (settings[section] if section else settings)[field]
    return settings


def require_own_imports(run: Path, saved: TrainConfig, requested: TrainConfig | None) -> None:
    """Raise `CheckpointError` if the recipe of `run` names code to import that `requested` does not name."""
    for name, value in saved.imports.items():
        if requested is None or requested.imports.get(name) != value:
            raise CheckpointError(
                f"{run / RUN_FILE}: names code to import (`{name}` {value}), which a file must not choose; "
                f"if you trust it, give `{name}` yourself"
            )


def require_recipe(run: Path, record: RunRecord, identity: dict[str, Any]) -> None:
    """Raise `CheckpointError` if `run` was trained by another recipe."""
    changed = differences(record.identity, identity)
    if changed:
        raise CheckpointError(
            f"{run}: was trained by another recipe ({'; '.join(changed)}); give the old values, or another directory"
        )


def next_phases(
    run: Path,
    phases: tuple[PhaseRecord, ...],
    seen: int,
    target: int | None,
    snapshot: str,
    num_images: int,
    *,
    setting: str = "images_seen",
) -> tuple[PhaseRecord, ...] | None:
    """The phases of a run, the next one to train last; None if it has reached its target.

    Args:
        seen: images seen at the newest checkpoint.
        target: images to see in all; None leaves it to the rule.
        snapshot: digest of the images at hand.
        num_images: their number.
        setting: what the user calls `target`.

    Raises:
        ConfigError: if an unfinished phase has seen more than `target` already.
    """
    last = phases[-1] if phases else None
    if last is not None and seen >= last.target:
        if target is None and last.snapshot != snapshot:
            # New images are seen too, at least once.
            target = max(images_to_see(num_images), seen + num_images)
        if target is None or target <= seen:
            return None
    elif last is not None and target in (None, last.target):
        return phases
    target = target or images_to_see(num_images)
    if last is not None and target <= seen:
        raise ConfigError(
            f"`{setting}` (={target}) must be above the {seen} images that {run} has seen, or be {last.target}, where "
            "its phase ends"
        )
    return (*phases, PhaseRecord(start=seen, target=target, snapshot=snapshot, images=num_images))
