"""What a training does next: the recipe of its run, and the phase to train."""

import dataclasses

from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import ConfigError
from glo_core.data.dataset import Dataset
from glo_core.training.auto_config import completed, images_to_see
from glo_core.training.schedule import Phase
from pipelines.common.records import PhaseRecord, TrainDone, read_run_record
from pipelines.common.stage import Stage
from pipelines.train.config import TrainJob


def complete(job: TrainJob, dataset: Dataset) -> TrainJob:
    """`job` with a batch size, a code dimension and filters: the run's own, or else by the rule for this dataset.

    Raises:
        ConfigError: if the rule's do not go with what was given.
        CheckpointError: if the run's record is damaged.
    """
    record = read_run_record(job.run)
    if record is not None:
        identity = record.identity
        code = dataclasses.replace(job.code, dim=job.code.dim or identity.get("code", {}).get("dim", 0))
        filters = job.decoder.filters or tuple(identity.get("decoder", {}).get("filters", ()))
        decoder = dataclasses.replace(job.decoder, filters=filters)
        batch_size = job.batch_size or identity.get("batch_size", 0)
        job = dataclasses.replace(job, batch_size=batch_size, code=code, decoder=decoder)
    try:
        return completed(job, dataset.num_train, dataset.config.resolution)
    except ValueError as error:  # What was given does not go with what the rule chose.
        raise ConfigError(str(error)) from None


def next_phase(stage: Stage[TrainDone], job: TrainJob, dataset: Dataset) -> Phase | None:
    """The phase to train, which is then the last one in the stage's record; None if there is nothing to do.

    Raises:
        UserError: if the dataset lost what was trained on, or `job.images` is not above what was seen.
    """
    phases = stage.record.phases
    last = phases[-1] if phases else None
    seen = _images_seen(job, dataset)
    finished = stage.done is not None and stage.done.phase == len(phases) - 1
    grown = last is not None and last.snapshot != dataset.digest
    if finished and not job.images and not grown:
        return None  # Also if the rule for the length has changed since.
    target = job.images or (0 if finished or last is None else last.target) or images_to_see(dataset.num_train)
    if finished and not job.images:
        target = max(target, seen + dataset.num_train)  # At least one epoch of the new images.
    if last is not None and not finished and target == last.target:
        dataset.at(last.snapshot)
        return Phase(number=len(phases) - 1, start=last.start, target=target)
    if seen < target:
        phase = PhaseRecord(start=seen, target=target, snapshot=dataset.digest)
        stage.record = dataclasses.replace(stage.record, phases=(*phases, phase))
        return Phase(number=len(phases), start=seen, target=target)
    if finished:
        return None
    end = f", or be {last.target}, where its phase ends" if last else ""
    raise ConfigError(f"`images` (={target}) must be above the {seen} images that {job.run} has seen{end}")


def _images_seen(job: TrainJob, dataset: Dataset) -> int:
    """Of the newest checkpoint, whose snapshot `dataset` must hold; 0 if there is none."""
    marks = committed_checkpoints(job.run)
    if not marks:
        return 0
    newest = Checkpoint(marks[-1])
    dataset.at(newest.snapshot)
    return newest.position.images_seen
