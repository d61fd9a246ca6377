"""What a training does next: the recipe of its run, and the phase to train."""

import dataclasses

from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import CheckpointError, ConfigError
from glo_core.common.records import parse_value
from glo_core.data.dataset import Dataset
from glo_core.training.auto_config import images_to_see, resolve_defaults
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.schedule import Phase
from pipelines.common.records import RUN_FILE, PhaseRecord, TrainDone, read_run_record
from pipelines.common.stage import Stage
from pipelines.train.config import TrainJob


def resolve_recipe(job: TrainJob, dataset: Dataset) -> ResolvedTrainConfig:
    """The recipe of `job` with nothing left to choose: as the run has it, or else by the rules for `dataset`.

    Raises:
        CheckpointError: if the run's record is damaged.
    """
    record, earlier = read_run_record(job.run), None
    if record is not None:
        try:
            earlier = parse_value(record.identity, ResolvedTrainConfig)
        except ValueError as error:
            raise CheckpointError(
                f"{job.run / RUN_FILE}: identity: {error}; the file is damaged, copy it back"
            ) from None
    return resolve_defaults(job, dataset.num_train, dataset.config.resolution, earlier)


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
