"""One call of `glo.train`: in memory, or in a run that may be new, interrupted, finished or grown."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from glo_core.checkpoint.layout import committed_checkpoints, metrics_path
from glo_core.checkpoint.reader import Checkpoint
from glo_core.checkpoint.run_record import RUN_FILE, PhaseRecord, RunRecord
from glo_core.codes.config import CodeConfig
from glo_core.codes.table import CodeTable, raw_name
from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.failures import in_users_words
from glo_core.common.records import read_record, write_record
from glo_core.common.runtime import Runtime
from glo_core.data.dataset import Dataset
from glo_core.data.image_source import ImageSource, TensorImages
from glo_core.evaluation.record import MetricsRecord
from glo_core.losses.weighted_sum import Loss
from glo_core.training import phases as run_phases
from glo_core.training.auto_config import images_to_see, resolve_defaults
from glo_core.training.config import ResolvedTrainConfig, TrainConfig
from glo_core.training.hooks import ProgressBar
from glo_core.training.loop import TrainResult, train_phase
from glo_core.training.schedule import Phase


class _Plan(NamedTuple):
    """What a call of `train` does with a run."""

    recipe: ResolvedTrainConfig
    phases: tuple[PhaseRecord, ...]
    """The last one is trained"""
    newest: Path | None
    """Directory of the newest checkpoint"""
    finished: bool
    """Whether the last phase has reached its target, and was measured"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSession:
    """One call of `glo.train`, its arguments checked."""

    config: TrainConfig | None
    """None for the run's own, or the default"""
    target: int | None
    """Images to see in all; None to let the number of images decide"""
    module: torch.nn.Module | None
    """The decoder of the kind `module`"""
    loss: Loss | None
    runtime: Runtime
    bar: ProgressBar
    options: dict[str, Any]
    """Further arguments of `train_phase`"""

    def in_memory(self, images: ImageSource, dataset: Dataset | None) -> TrainResult:
        """Train without a run."""
        recipe = _resolve(self.config, images)
        return self._train(recipe, images, dataset, Phase(target=self.target or images_to_see(len(images.ids))))

    def in_run(self, run: Path, images: ImageSource, dataset: Dataset | None) -> TrainResult:
        """Train what is left of `run`, whose directory rank 0 has locked.

        Raises:
            UserError: on every rank, if the run is of another recipe or other images, or damaged.
        """
        plan = self._agree(lambda: self._plan(run, images, dataset))
        number, last = len(plan.phases) - 1, plan.phases[-1]
        images, dataset = _images_of(last, run, images, dataset)
        if plan.finished and plan.newest is not None:
            return self._finished(run, plan.recipe, Checkpoint(plan.newest), images, dataset)
        phase = Phase(number=number, start=last.start, target=last.target)
        return self._train(plan.recipe, images, dataset, phase, run, plan.newest)

    def _agree(self, decide: Callable[[], _Plan]) -> _Plan:
        """What rank 0 decides, on every rank: between two looks at the same files, another rank may write one."""
        outcome: _Plan | UserError | None = None
        if self.runtime.rank == 0:
            try:
                outcome = decide()
            except UserError as error:
                outcome = error
        outcome = self.runtime.all_gather(outcome)[0]
        if isinstance(outcome, UserError):
            raise outcome
        assert outcome is not None
        return outcome

    def _plan(self, run: Path, images: ImageSource, dataset: Dataset | None) -> _Plan:
        """What is left to train, entered in the record of `run`."""
        record = run_phases.read_training(run)
        recipe = _resolve(self.config, images, run, record)
        identity = run_phases.identity_of(recipe, self.module, self.loss)
        if record is None:
            record = _new_record(identity, images, dataset)
        elif not record.phases:
            raise CheckpointError(f"{run / RUN_FILE}: has no phase; the file is damaged, copy it back")
        else:
            run_phases.require_recipe(run, record, identity)
            _images_of(record.phases[-1], run, images, dataset)
        newest = Checkpoint.latest(run) if committed_checkpoints(run) else None
        seen = newest.position.images_seen if newest is not None else 0
        phases = run_phases.next_phases(run, record.phases, seen, self.target, images.snapshot, len(images.ids))
        if phases is not None and phases != record.phases:
            write_record(run / RUN_FILE, dataclasses.replace(record, phases=phases))
        return _Plan(
            recipe=recipe,
            phases=phases or record.phases,
            newest=newest.directory if newest is not None else None,
            finished=phases is None and metrics_path(run, seen).exists(),
        )

    def _train(
        self,
        recipe: ResolvedTrainConfig,
        images: ImageSource,
        dataset: Dataset | None,
        phase: Phase,
        run: Path | None = None,
        newest: Path | None = None,
    ) -> TrainResult:
        if newest is not None and self.module is not None:
            Checkpoint(newest).decoder(self.module)  # Refuses a module of other weights in one line.
        with self._progress(int(newest.name) if newest is not None else 0, phase.target) as on_step, in_users_words():
            result = train_phase(
                recipe,
                images,
                phase,
                runtime=self.runtime,
                run=run,
                decoder=self.module,
                loss=self.loss,
                on_step=on_step,
                **self.options,
            )
        return dataclasses.replace(result, dataset=dataset)

    @contextlib.contextmanager
    def _progress(self, images_seen: int, target: int) -> Iterator[Callable[[int], None]]:
        if self.runtime.rank == 0:
            self.bar.begin(images_seen, target)
        try:
            yield self.bar.step
        finally:
            self.bar.end()

    def _finished(
        self, run: Path, recipe: ResolvedTrainConfig, newest: Checkpoint, images: ImageSource, dataset: Dataset | None
    ) -> TrainResult:
        """The result of a training that has reached its target, as the run has it."""
        metrics = read_record(metrics_path(run, newest.position.images_seen), MetricsRecord)
        return TrainResult(
            decoder=newest.decoder(self.module, recipe.decoder.kind).to(self.runtime.device),
            table=_table_of(newest, recipe.code, self.runtime.device),
            position=newest.position,
            metrics={"psnr": metrics.psnr, "pca_psnr": metrics.pca_psnr},
            finished=True,
            images=images,
            dataset=dataset,
            run=run,
        )


def _resolve(
    config: TrainConfig | None, images: ImageSource, run: Path | None = None, record: RunRecord | None = None
) -> ResolvedTrainConfig:
    """`config` with nothing left to choose: as the `record` of `run` has it, or else by the rules for `images`."""
    earlier = run_phases.recipe_of(run, record) if run is not None and record is not None else None
    if run is not None and earlier is not None:
        run_phases.require_own_imports(run, earlier, config)
    return resolve_defaults(
        config or earlier or TrainConfig(),
        len(images.ids),
        images.resolution,
        earlier,
        code_shards=images.code_shards,
    )


def _new_record(identity: dict[str, Any], images: ImageSource, dataset: Dataset | None) -> RunRecord:
    return RunRecord(
        stage="train",
        identity=identity,
        inputs={"images": images.snapshot} if dataset is None else {"dataset": dataset.root_digest},
        paths={} if dataset is None else {"dataset": str(dataset.path.absolute())},
        versions={"torch": torch.__version__, "numpy": np.__version__},
    )


def _images_of(
    phase: PhaseRecord, run: Path, images: ImageSource, dataset: Dataset | None
) -> tuple[ImageSource, Dataset | None]:
    """The images that `phase` trains on, out of those of the caller.

    Raises:
        CheckpointError: if the caller's are others.
    """
    if images.snapshot == phase.snapshot:
        return images, dataset
    if dataset is not None:
        earlier_dataset = dataset.at(phase.snapshot)
        return earlier_dataset.images(), earlier_dataset
    if isinstance(images, TensorImages) and phase.images is not None and phase.images < len(images.ids):
        earlier = images.first(phase.images)
        if earlier.snapshot == phase.snapshot:
            return earlier, None
    raise CheckpointError(
        f"{run}: was trained on other images; give the same ones in the same order, with new ones behind them, or "
        "another directory"
    )


def _table_of(checkpoint: Checkpoint, config: CodeConfig, device: torch.device) -> CodeTable:
    """The code table of a checkpoint, shard by shard."""
    shards = [checkpoint.shard(shard) for shard in range(checkpoint.code_shards)]
    columns = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    ids = columns.pop("image_id")
    raw = torch.from_numpy(columns.pop(raw_name(config))).to(device)
    table = CodeTable(config, ids, raw)
    table.write(0, {name: torch.from_numpy(columns[name]) for name in table.columns() if name in columns})
    return table
