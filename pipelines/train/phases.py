"""What a training does next: the recipe of its run, and the phase to train."""

import dataclasses
from pathlib import Path

from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.common.errors import CheckpointError
from glo_core.data.dataset import Dataset
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.phases import next_phases, recipe_of, require_own_imports
from glo_core.training.schedule import Phase
from pipelines.common.records import TrainDone, read_run_record
from pipelines.common.stage import Stage
from pipelines.train.config import TrainJob


def resolve_recipe(job: TrainJob, dataset: Dataset) -> ResolvedTrainConfig:
    """The recipe of `job` with nothing left to choose: as the run has it, or else by the rules for `dataset`.

    Raises:
        CheckpointError: if the run's record is damaged, or names code that `job` does not.
    """
    record, earlier = read_run_record(job.run), None
    if record is not None:
        earlier = recipe_of(job.run, record)
        require_own_imports(job.run, earlier, job)
    return resolve_defaults(
        job, dataset.num_train, dataset.config.resolution, earlier, code_shards=dataset.config.code_shards
    )


def next_phase(stage: Stage[TrainDone], job: TrainJob, dataset: Dataset) -> Phase | None:
    """The phase to train, which is then the last one in the stage's record; None if there is nothing to do.

    Raises:
        UserError: if the dataset lost what was trained on, or `job.images` is not above what was seen.
    """
    phases = stage.record.phases
    finished = stage.done is not None and stage.done.phase == len(phases) - 1 and _is_there(job.run, stage.done)
    seen, snapshot, num_images = _images_seen(job, dataset), dataset.digest, dataset.num_train
    coming = next_phases(job.run, phases, seen, job.images, snapshot, num_images, setting="images")
    if coming is None:
        if finished:
            return None
        coming = phases  # The target is reached, and `done.json` does not say so yet.
    last = coming[-1]
    dataset.at(last.snapshot)
    stage.record = dataclasses.replace(stage.record, phases=coming)
    return Phase(number=len(coming) - 1, start=last.start, target=last.target)


def _is_there(run: Path, done: TrainDone) -> bool:
    """Whether `run` still has, as far as can be seen without reading it, the checkpoint that `done` tells of."""
    from glo_core.checkpoint.reader import Checkpoint

    try:
        Checkpoint(run / "checkpoints" / str(done.images_seen)).require_parts()
    except CheckpointError:
        return False
    return True


def _images_seen(job: TrainJob, dataset: Dataset) -> int:
    """Of the newest checkpoint, whose snapshot `dataset` must hold; 0 if there is none."""
    marks = committed_checkpoints(job.run)
    if not marks:
        return 0
    from glo_core.checkpoint.reader import Checkpoint  # Brings PyTorch, which a new run does not wait for.

    newest = Checkpoint(marks[-1])
    dataset.at(newest.snapshot)
    return newest.position.images_seen
