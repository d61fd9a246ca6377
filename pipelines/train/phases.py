"""What a training does next: the recipe of its run, and the phase to train."""

from typing import Any

from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import UserError
from glo_core.common.files import read_json
from glo_core.common.records import parse_value
from glo_core.data.dataset import Dataset
from glo_core.training.auto_config import images_to_see, resolve_defaults
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.schedule import Phase
from pipelines.common.stage import Stage
from pipelines.train.config import TrainJob


def resolve_recipe(job: TrainJob, dataset: Dataset) -> ResolvedTrainConfig:
    """The recipe of `job` with nothing left to choose: as the run has it, or else by the rules for `dataset`."""
    record = job.run / "run.json"
    identity = read_json(record).get("identity", {}) if record.exists() else {}
    earlier = parse_value(identity, ResolvedTrainConfig) if identity else None
    return resolve_defaults(job, dataset.num_train, dataset.config.resolution, earlier)


def next_phase(stage: Stage, job: TrainJob, dataset: Dataset) -> tuple[Phase | None, str]:
    """The phase to train, entered in the record, and its snapshot; None if its target was reached before.

    Raises:
        UserError: if the dataset lost what was trained on, or the target is not ahead of what was seen.
    """
    phases: list[dict[str, Any]] = stage.record.setdefault("phases", [])
    marks = committed_checkpoints(job.run)
    seen = 0
    if marks:
        newest = Checkpoint(marks[-1])
        seen = newest.position.images_seen
        dataset.at(newest.snapshot)  # Refuse a dataset that no longer holds what was trained on.
    finished = stage.done is not None and stage.done["phase"] == len(phases) - 1
    if finished and not job.images and phases[-1]["snapshot"] == dataset.digest:
        return None, ""  # Nobody asked for more, whatever the rule has become.
    begun = phases[-1]["target"] if phases and not finished else 0
    target = job.images or begun or images_to_see(dataset.num_train)
    if finished and not job.images and phases[-1]["snapshot"] != dataset.digest:
        target = max(target, seen + dataset.num_train)  # New images are seen too, an epoch at least.
    if begun and begun == target:
        last = phases[-1]
        dataset.at(last["snapshot"])
    elif seen < target:
        last = {"start": seen, "target": target, "snapshot": dataset.digest}
        phases.append(last)
    elif finished:
        return None, ""
    else:
        raise UserError(
            f"{job.run}: has seen {seen} images on the way to {begun}; images={job.images} must be "
            f"{begun} to go on there, or more than {seen}"
        )
    phase = Phase(number=len(phases) - 1, start=last["start"], target=last["target"])
    return phase, last["snapshot"]
