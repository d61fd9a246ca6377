"""A learner brought to the state of a checkpoint."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from glo_core.checkpoint.layout import Position, committed_checkpoints, sweep_uncommitted
from glo_core.checkpoint.reader import Checkpoint
from glo_core.codes.table import Table, raw_name
from glo_core.common.errors import UserError
from glo_core.common.files import differences
from glo_core.common.runtime import Runtime
from glo_core.data.image_source import ImageSource, rows_of_shards
from glo_core.decoder.config import ResolvedDecoderConfig, Shape
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.growth import Growth
from glo_core.training.learner import Learner
from glo_core.training.schedule import Phase


def newest_checkpoint(
    config: ResolvedTrainConfig, images: ImageSource, runtime: Runtime, run: Path | None
) -> Checkpoint | None:
    """The newest committed checkpoint of `run`, the same one on every rank; None if there is none.

    Raises:
        UserError: if it is of another recipe.
    """
    if run is not None and runtime.rank == 0:
        sweep_uncommitted(run)
    # All ranks must load the same checkpoint: rank 0 chooses.
    newest = runtime.all_gather(committed_checkpoints(run)[-1:] if run is not None else [])[0]
    if not newest:
        return None
    checkpoint = Checkpoint(newest[0])
    _require_recipe(checkpoint, config, images)
    return checkpoint


def restore_or_begin(
    learner: Learner, epochs: EpochBatches, phase: Phase, checkpoint: Checkpoint | None, warm_start: Path | None
) -> Position:
    """Bring `learner` to the state of `checkpoint`, or else of `warm_start`'s decoder; where training begins.

    Raises:
        UserError: if the checkpoint is damaged, or of other images than `epochs` has.
    """
    if checkpoint is None:
        if warm_start is not None:
            _start_decoder(Checkpoint(warm_start), learner)
        return Position(phase=phase.number)
    growth = _restore(checkpoint, learner, epochs.images)
    position = checkpoint.position
    if position.phase == phase.number:
        too_far = position.step >= epochs.steps
        if too_far and learner.runtime.all_reduce_sum(torch.tensor(growth.removed, device=learner.runtime.device)):
            # Without the removed images the epoch has fewer steps, and is over.
            position, too_far = dataclasses.replace(position, epoch=position.epoch + 1, step=0), False
        if checkpoint.snapshot != epochs.snapshot or too_far:
            raise UserError(
                f"{checkpoint.directory}: is of other images or another batch size than those given (snapshot "
                f"{checkpoint.snapshot[:12]}, step {position.step} of an epoch); give the ones it was trained with"
            )
        return position
    growth.start_new_rows(learner, epochs.images)
    # A new phase begins at an epoch's boundary.
    return Position(images_seen=position.images_seen, phase=phase.number, epoch=position.epoch + 1)


def require_decoder(checkpoint: Checkpoint, config: ResolvedDecoderConfig, shape: Shape) -> None:
    """Raise `UserError` if the decoder of `checkpoint` is not of this kind and shape."""
    changed = checkpoint.decoder_differences(config, shape)
    if changed:
        raise UserError(
            f"`warm_start` (={checkpoint.directory}): has another decoder ({'; '.join(changed)}); give the same "
            "settings, or start without it"
        )


def _start_decoder(checkpoint: Checkpoint, learner: Learner) -> None:
    """Give `learner` the averaged decoder of a checkpoint, and nothing else of it."""
    require_decoder(checkpoint, learner.config.decoder, learner.shape)
    tensors = checkpoint.tensors("ema")
    learner.decoder.load_state_dict(tensors)
    learner.ema.decoder.load_state_dict(tensors)


def _require_recipe(checkpoint: Checkpoint, config: ResolvedTrainConfig, images: ImageSource) -> None:
    """Raise `UserError` if the codes and the decoder are not those of a training by `config`."""
    names = ("dim", "projection", "optimizer")
    held = dict(zip(names, (checkpoint.code_dim, checkpoint.projection, checkpoint.optimizer), strict=True))
    requested = {name: getattr(config.code, name) for name in names}
    shape = Shape(config.code.dim, images.resolution, images.channels)
    _refuse(
        checkpoint,
        differences(
            {"code": held, "code_shards": checkpoint.code_shards},
            {"code": requested, "code_shards": images.code_shards},
        )
        or checkpoint.decoder_differences(config.decoder, shape),
    )


def _refuse(checkpoint: Checkpoint, changed: Sequence[str]) -> None:
    if changed:
        raise UserError(
            f"{checkpoint.directory}: is of another recipe ({'; '.join(changed)}); give the old values, or another "
            "run directory"
        )


def _restore(checkpoint: Checkpoint, learner: Learner, images: ImageSource) -> Growth:
    """Bring `learner` to the checkpoint's state. Rows of `images` that it does not hold keep their start."""
    optimizer = checkpoint.tensors("optimizer")
    # What Adam or SGD keeps of a weight tells which it was; before its first step, neither keeps anything.
    slots = {key.rpartition("/")[2] for key in optimizer}
    for slot, name in (("exp_avg", "adam"), ("momentum_buffer", "sgd")):
        if slot in slots:
            _refuse(checkpoint, differences({"optimizer": name}, {"optimizer": learner.config.optimizer}))
    learner.decoder.load_state_dict(checkpoint.tensors("decoder"))
    learner.ema.decoder.load_state_dict(checkpoint.tensors("ema"))
    parameters = list(learner.decoder.parameters())
    names = {name: i for i, (name, _) in enumerate(learner.decoder.named_parameters())}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in optimizer.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[names[name]]
        if value.shape == parameter.shape:
            # The fused optimizer walks parameter and state side by side: both need the same memory format.
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state.setdefault(names[name], {})[slot] = value
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": state})
    growth = Growth(checkpoint.code_dim)
    for shard, (first, last) in rows_of_shards(images).items():
        _restore_shard(checkpoint, learner.table, shard, first, last, growth)
    return growth


def _restore_shard(checkpoint: Checkpoint, table: Table, shard: int, first: int, last: int, growth: Growth) -> None:
    stored = checkpoint.shard(shard)
    _, here, there = np.intersect1d(table.ids[first:last], stored["image_id"], return_indices=True)
    columns, name_of_raw = table.read(first, last), raw_name(table.config)
    start = columns[name_of_raw][torch.from_numpy(here)].clone()
    for name, column in columns.items():
        column[torch.from_numpy(here)] = torch.from_numpy(stored[name][there]).to(column)
    growth.removed += len(stored["image_id"]) - len(there)
    growth.meet(start, torch.from_numpy(stored[name_of_raw][there]), first + np.delete(np.arange(last - first), here))
    table.write(first, columns)
