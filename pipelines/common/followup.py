"""What the stages after training share: each works on a run's newest checkpoint, and once for each checkpoint."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.config import Config
from glo_core.common.errors import CheckpointError
from glo_core.data.dataset import Dataset
from pipelines.common.ray_session import ray_session
from pipelines.common.records import RUN_FILE, read_run_record
from pipelines.common.stage import DoneT, Input, Stage, identity_of, open_stage, run_id_of
from pipelines.common.tracking import TrackingConfig


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
        work: Callable[[Stage[DoneT]], DoneT],
        inputs: Mapping[str, Input] | None = None,
    ) -> DoneT:
        """What `done.json` holds: of an earlier command, or else what `work` returns, called while Ray is connected.

        Args:
            job: of the class that `config_type` is a base of.
            run: directory of the run.
            inputs: what the results depend on beside `checkpoint`, by name.

        Raises:
            UserError: as of `open_stage`, `ray_session` and `work`, or if MLflow does not answer.
        """
        directory = self.directory(run, checkpoint)
        newest = Input(checkpoint.directory, checkpoint.digest, run_id_of(run))
        with open_stage(
            self.name,
            directory,
            root=run.parent,
            identity=identity_of(job, self.config_type),
            inputs={"checkpoint": newest, **(inputs or {})},
            done_type=self.done_type,
            tracking=job,
        ) as stage:
            if stage.done is not None:
                logging.getLogger(f"glo.{self.name}").info("%s is up to date", directory)
                stage.send_rest()
                return stage.done
            stage.begin(stage.record.identity)
            with ray_session():
                done = work(stage)
            stage.finish(done)
        return done


def dataset_of(run: Path, checkpoint: Checkpoint) -> Dataset:
    """The dataset that `run` trains on, at the snapshot of `checkpoint`.

    Raises:
        CheckpointError: if the run has no whole record.
        UserError: if the dataset is not where it was, or lost that snapshot.
    """
    record = read_run_record(run)
    if record is None or "dataset" not in record.paths:
        raise CheckpointError(f"{run / RUN_FILE}: does not say where the dataset lies; copy it back")
    return Dataset.open(record.paths["dataset"]).at(checkpoint.snapshot)


def shard_groups(code_shards: int) -> list[list[int]]:
    """Every code shard once, in at most eight groups of nearly equal size: one Ray task for each group."""
    return [list(range(first, code_shards, 8)) for first in range(min(8, code_shards))]
