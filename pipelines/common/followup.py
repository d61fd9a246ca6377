"""What the stages after training share: each works on a run's newest checkpoint, and once for each checkpoint."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from glo_core.checkpoint.reader import Checkpoint
from glo_core.checkpoint.run_dataset import dataset_of_run, find_dataset
from glo_core.common.config import Config
from glo_core.common.digests import digest
from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.file_lock import file_lock
from glo_core.common.location import Location
from glo_core.common.records import read_record, write_record
from glo_core.data.dataset import Dataset
from pipelines.common.ray_session import ray_session
from pipelines.common.records import DONE_FILE, RUN_FILE, RunRecord, TrainDone, read_run_record
from pipelines.common.stage import DoneT, Input, Stage, identity_of, open_stage, run_id_of
from pipelines.common.tracking_config import TrackingConfig

REMOVED = "removed"
"""Name of the input that tells which images were removed since the checkpoint's snapshot"""


@dataclass(frozen=True)
class FollowUp(Generic[DoneT]):
    """A stage after training."""

    name: str
    folder: str
    """Folder in the run; a folder in it, named by images seen, has the results for a checkpoint"""
    config_type: type[Config]
    """Base of the job's config: its fields decide the result"""
    done_type: type[DoneT]

    def directory(self, run: Path, checkpoint: Checkpoint) -> Path:
        """Where the results for `checkpoint` lie."""
        return run / self.folder / str(checkpoint.position.images_seen)

    def run(
        self,
        job: TrackingConfig,
        run: Path,
        checkpoint: Checkpoint,
        prepare: Callable[[Stage[DoneT]], Callable[[], DoneT]],
        inputs: Mapping[str, Input] | None = None,
        *,
        place: Location | None = None,
    ) -> DoneT:
        """What `done.json` holds: of an earlier command, or else of the work that is done now.

        Results for another checkpoint of as many images seen, or for other inputs, are set aside.

        Args:
            job: of the class that `config_type` is a base of.
            run: directory of the run.
            prepare: opens what the work needs, and returns the work, which is called while Ray is connected. A
                finished stage opens nothing.
            inputs: what the results depend on beside `checkpoint`, by name.
            place: where the dataset is; None looks as `dataset_of_run` does.

        Raises:
            UserError: as of `open_stage`, `ray_session`, `prepare` and its work, or if MLflow does not answer at the
                beginning.
        """
        directory = self.directory(run, checkpoint)
        newest = Input(checkpoint.directory, checkpoint.digest, run_id_of(run))
        removed = removed_input(run, checkpoint, place, directory)
        with open_stage(
            self.name,
            directory,
            root=run.parent,
            identity=identity_of(job, self.config_type),
            inputs={"checkpoint": newest, **removed, **(inputs or {})},
            done_type=self.done_type,
            tracking=job,
            sets_aside=True,
        ) as stage:
            if stage.done is not None:
                logging.getLogger(f"glo.{self.name}").info("%s is up to date", directory)
                stage.send_rest()
                return stage.done
            work = prepare(stage)
            stage.begin(stage.record.identity)
            with ray_session():
                done = work()
            stage.finish(done)
        return done


def newest_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint of `run`; a warning says so where a finished run has lost the one that it ended with.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    checkpoint = Checkpoint.latest(run)
    done = read_record(run / DONE_FILE, TrainDone) if (run / DONE_FILE).exists() else None
    seen = checkpoint.position.images_seen
    if done is not None and done.images_seen > seen:
        logging.getLogger("glo").warning(
            "%s: its training ended at %d images seen, and that checkpoint is gone; this works on the one at %d, and "
            "jobs/train.py goes on from there",
            run,
            done.images_seen,
            seen,
        )
    return checkpoint


def removed_input(run: Path, checkpoint: Checkpoint, place: Location | None, directory: Path) -> dict[str, Input]:
    """`removed`: the ids that were removed since the snapshot of `checkpoint`; empty where none was.

    Where the dataset is not at hand, it is what the record of the results in `directory` says.
    """
    try:
        dataset = (
            find_dataset(run, checkpoint.snapshot) if place is None else Dataset.open(place).at(checkpoint.snapshot)
        )
    except (UserError, OSError):  # The work, if any is left to do, says so.
        dataset = None
    if dataset is None:
        saved = read_run_record(directory)
        digest_then = saved.inputs.get(REMOVED) if saved else None
        return {REMOVED: Input(Path(saved.paths[REMOVED]), digest_then, None)} if saved and digest_then else {}
    ids = dataset.removed_since()
    return {REMOVED: Input(dataset.path, digest(ids.astype("<i8").tobytes()).hex(), None)} if len(ids) else {}


def open_dataset(stage: Stage[Any], run: Path, checkpoint: Checkpoint, place: Location | None) -> Dataset:
    """The dataset that `run` was trained on, at the snapshot of `checkpoint`; the records get its place.

    Args:
        place: where it is; None looks as `dataset_of_run` does.

    Raises:
        CheckpointError: if the run has no whole record.
        UserError: if the dataset is nowhere, damaged, or another one.
    """
    dataset = dataset_of_run(run, checkpoint.snapshot, place)
    stage.record = _with_dataset(stage.record, dataset)
    record = read_run_record(run)
    if record is not None and record != _with_dataset(record, dataset):
        logging.getLogger(f"glo.{stage.name}").info("the dataset of %s is now %s", run, dataset.path)
        # A run that trains now, or that is not ours to write, keeps its record.
        with contextlib.suppress(UserError, OSError), file_lock(run, CheckpointError):
            write_record(run / RUN_FILE, _with_dataset(record, dataset))
    return dataset


def _with_dataset(record: RunRecord, dataset: Dataset) -> RunRecord:
    return dataclasses.replace(record, paths={**record.paths, "dataset": str(dataset.path.absolute())})


def shard_groups(code_shards: int) -> list[list[int]]:
    """Every code shard once, in at most eight groups of nearly equal size: one Ray task for each group."""
    return [list(range(first, code_shards, 8)) for first in range(min(8, code_shards))]
