"""`glo.train`: one call from images to a model, for notebooks and scripts.

images, settings -> recipe by the rules -> run.json -> `train_phase` -> model
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.checkpoint.reader import Checkpoint
from glo_core.checkpoint.run_record import RUN_FILE, PhaseRecord, RunRecord, without_imports
from glo_core.codes.config import CodeConfig
from glo_core.codes.table import CodeTable, raw_name
from glo_core.common.errors import CheckpointError, ConfigError
from glo_core.common.file_lock import file_lock
from glo_core.common.records import read_record, write_record
from glo_core.common.runtime import Runtime, SingleProcess
from glo_core.data.config import Cache
from glo_core.data.dataset import Dataset
from glo_core.data.image_source import ImageSource, TensorImages
from glo_core.decoder.config import MODULE, DecoderConfig
from glo_core.evaluation.record import MetricsRecord, metrics_path
from glo_core.losses.weighted_sum import Loss
from glo_core.open_run import default_device, image_source
from glo_core.training import phases as run_phases
from glo_core.training.auto_config import images_to_see, resolve_defaults
from glo_core.training.config import Intervals, ResolvedTrainConfig, TrainConfig
from glo_core.training.hooks import OnPreview, OnReport, ProgressBar, RuntimeWithHooks
from glo_core.training.loop import TrainResult, train_phase
from glo_core.training.schedule import Phase


def train(
    images: Any,
    *,
    config: TrainConfig | None = None,
    images_seen: float | None = None,
    run: str | Path | None = None,
    decoder: torch.nn.Module | None = None,
    loss: Loss | None = None,
    on_report: OnReport | None = None,
    on_preview: OnPreview | None = None,
    should_stop: Callable[[], bool] | None = None,
    intervals: Intervals | None = None,
    warm_start: str | Path | None = None,
    cache: Cache = "auto",
    scratch: str | Path | None = None,
    runtime: Runtime | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a model of `images`; `TrainResult.model` offers all that can be done with it.

    With a `run`, training keeps checkpoints there. The same call again resumes an interrupted training, and returns the
    trained model at once where it has reached `images_seen`. A larger `images_seen` trains on. So do images that were
    added: to a dataset, or behind those of the tensor.

    Args:
        images: uint8 `[n, H, W, C]`, or `[n, H, W]` of grey images, as a tensor or a NumPy array, square with a side of
            4 * 2^n px; or a `Dataset`; or any `ImageSource`.
        config: the recipe; the rules of `docs/training.md` choose what it leaves open. By default the recipe of `run`,
            if there is one.
        images_seen: images to see in all; None leaves it to the rule.
        run: directory of the run, made if it is not there; a leading ~ is the home directory. None keeps everything
            in memory.
        decoder: codes `[b, code_dim]` to images `[b, C, H, W]` in [-1, 1], in place of the one that `config` names. It
            is copied and trained from its weights as they are; its batch norms become exact at every world size. No
            file holds its class: `glo.load` and the next call need it again.
        loss: prediction and target, `[b, C, H, W]` in [-1, 1], to one loss per image `[b]`, in place of the one that
            `config` names.
        on_report: called with images seen and metrics at every report.
        on_preview: called with images seen, a name and a PIL image: reconstructions, and samples, as training goes on.
        should_stop: asked every eighth step; True ends training with a checkpoint.
        intervals: how often reports, previews and checkpoints come.
        warm_start: another run, whose EMA decoder is the initial one of a new run.
        cache: where images lie while training: "device", "host", "disk", or "auto".
        scratch: directory on a local disk for codes that `config.window` keeps out of memory.
        runtime: ranks and their device; by default one process on the GPU, if there is one.
        progress: show a bar, if the package tqdm is installed.

    Raises:
        ConfigError: if `images` or a setting has a wrong value, or they do not go together.
        CheckpointError: if `run` belongs to another recipe or other images, or is damaged.
        DivergedError: if the loss is no longer finite.
        UserError: if `run` is in use by another process, or the disk is full.
    """
    bar = ProgressBar(progress)
    hooks: list[OnReport] = [bar.report, *([on_report] if on_report is not None else [])]
    training = _Training(
        config=_with_module(config, decoder),
        target=_whole(images_seen),
        module=decoder,
        loss=loss,
        runtime=RuntimeWithHooks(runtime or SingleProcess(default_device()), hooks, on_preview, should_stop),
        bar=bar,
        options={
            "intervals": intervals,
            "cache": cache,
            "scratch": Path(scratch).expanduser() if scratch is not None else None,
            "warm_start": Checkpoint.latest(Path(warm_start).expanduser()).directory if warm_start else None,
        },
    )
    dataset = images if isinstance(images, Dataset) else None
    source = dataset.images() if dataset is not None else image_source(images)
    if run is None:
        return training.in_memory(source, dataset)
    directory = Path(run).expanduser()
    with file_lock(directory) if training.runtime.rank == 0 else contextlib.nullcontext():
        return training.in_run(directory, source, dataset)


def _with_module(config: TrainConfig | None, module: torch.nn.Module | None) -> TrainConfig | None:
    """`config` with the decoder kind "module" if the decoder is one."""
    if module is None:
        return config
    config = config or TrainConfig()
    if config.decoder not in (DecoderConfig(), DecoderConfig(kind=MODULE)):
        raise ConfigError(f"`decoder` (={type(module).__name__}) is a module: leave out the settings of config.decoder")
    return dataclasses.replace(config, decoder=DecoderConfig(kind=MODULE))


def _whole(images_seen: float | None) -> int | None:
    if images_seen is not None and (images_seen < 1 or images_seen != int(images_seen)):
        raise ConfigError(f"`images_seen` (={images_seen}) must be a whole number from 1 on, or None for the rule's")
    return None if images_seen is None else int(images_seen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Training:
    """A call of `train`, its arguments checked."""

    config: TrainConfig | None
    target: int | None
    module: torch.nn.Module | None
    loss: Loss | None
    runtime: Runtime
    bar: ProgressBar
    options: dict[str, Any]

    def in_memory(self, images: ImageSource, dataset: Dataset | None) -> TrainResult:
        recipe = _resolve(self.config, None, images)
        return self._train(recipe, images, dataset, Phase(target=self.target or images_to_see(len(images.ids))))

    def in_run(self, run: Path, images: ImageSource, dataset: Dataset | None) -> TrainResult:
        record = run_phases.read_training(run)
        recipe = _resolve(self.config, record, images)
        identity = run_phases.identity_of(recipe, self.module, self.loss)
        newest = Checkpoint.latest(run) if committed_checkpoints(run) else None
        phases: tuple[PhaseRecord, ...] = ()
        if record is not None:
            run_phases.require_recipe(run, record, identity)
            phases = record.phases
            _images_of(phases[-1], run, images, dataset)
        seen = newest.position.images_seen if newest is not None else 0
        coming = run_phases.next_phases(run, phases, seen, self.target, images.snapshot, len(images.ids))
        last = (coming or phases)[-1]
        images, dataset = _images_of(last, run, images, dataset)
        if coming is None and newest is not None and metrics_path(run, seen).exists():
            return self._finished(run, recipe, newest, images, dataset)
        self.runtime.all_gather(None)  # Every rank has read the record that rank 0 writes now.
        if self.runtime.rank == 0 and coming is not None:
            record = record or _new_record(identity, images, dataset)
            write_record(run / RUN_FILE, dataclasses.replace(record, phases=coming))
        phase = Phase(number=len(coming or phases) - 1, start=last.start, target=last.target)
        return self._train(recipe, images, dataset, phase, run, newest)

    def _train(
        self,
        recipe: ResolvedTrainConfig,
        images: ImageSource,
        dataset: Dataset | None,
        phase: Phase,
        run: Path | None = None,
        newest: Checkpoint | None = None,
    ) -> TrainResult:
        if newest is not None and self.module is not None:
            newest.decoder(self.module)  # Refuses a module of other weights in one line.
        with self._progress(newest.position.images_seen if newest is not None else 0, phase.target) as on_step:
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


def _resolve(config: TrainConfig | None, record: RunRecord | None, images: ImageSource) -> ResolvedTrainConfig:
    """`config` with nothing left to choose: as the run has it, or else by the rules for `images`."""
    earlier = run_phases.recipe_of(record) if record is not None else None
    if config is None and record is not None and without_imports(record.identity) != record.identity:
        raise CheckpointError(
            "the recipe of this run names code to import, which a file must not choose; give the recipe: config=..."
        )
    return resolve_defaults(config or earlier or TrainConfig(), len(images.ids), images.resolution, earlier)


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
