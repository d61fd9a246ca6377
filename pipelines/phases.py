"""What a training does next: the recipe of its run, and the phase to train."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from glo_core.checkpoint import Checkpoint, committed
from glo_core.dataset import Dataset
from glo_core.decoder import settings_of_record
from glo_core.defaults import completed, images_to_see
from glo_core.files import UserError, read_json
from glo_core.loop import Phase
from glo_core.step import TrainConfig
from pipelines.settings import TrainJob
from pipelines.stage import Stage, completed_record, identity_of


def recipe_of_record(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that `run.json` of any version holds, with every key of this one."""
    decoder = settings_of_record(identity.get("decoder", {}))
    return completed_record({**identity, "decoder": decoder}, identity_of(TrainConfig(), TrainConfig))


def complete(job: TrainJob, dataset: Dataset) -> TrainJob:
    """`job` with a batch size, a code dimension and filters: the run's own, or else by the rule for this dataset.

    Raises:
        UserError: if the rule's do not go with what was given.
    """
    record = job.run / "run.json"
    if record.exists():
        identity = read_json(record).get("identity", {})
        code = dataclasses.replace(job.code, dim=job.code.dim or identity.get("code", {}).get("dim", 0))
        filters = job.decoder.filters or tuple(identity.get("decoder", {}).get("filters", ()))
        decoder = dataclasses.replace(job.decoder, filters=filters)
        batch_size = job.batch_size or identity.get("batch_size", 0)
        job = dataclasses.replace(job, batch_size=batch_size, code=code, decoder=decoder)
    try:
        return completed(job, dataset.num_train, dataset.config.resolution)
    except ValueError as error:  # What was given does not go with what the rule chose.
        raise UserError(str(error)) from None


def next_phase(stage: Stage, job: TrainJob, dataset: Dataset) -> tuple[Phase | None, str]:
    """The phase to train, entered in the record, and its snapshot; None if its target was reached before.

    Raises:
        UserError: if the dataset lost what was trained on, or the target is not ahead of what was seen.
    """
    phases: list[dict[str, Any]] = stage.record.setdefault("phases", [])
    marks = committed(job.run)
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
