"""Bring a learner to the state of a checkpoint."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glo_core.checkpoint.attempt import Attempt, require_seen
from glo_core.checkpoint.layout import MARK, Position, committed_checkpoints
from glo_core.checkpoint.reader import Checkpoint
from glo_core.codes.table import Table, raw_name
from glo_core.common.ahead import one_ahead
from glo_core.common.errors import CheckpointError
from glo_core.common.files import differences
from glo_core.common.runtime import Runtime
from glo_core.data.image_source import ImageSource, rows_of_shards
from glo_core.decoder.config import ResolvedDecoderConfig, Shape
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.fitted_codes import FittedCodes
from glo_core.training.growth import Growth
from glo_core.training.init_codes import InitialCodes
from glo_core.training.learner import Learner
from glo_core.training.schedule import Phase


def newest_checkpoint(
    config: ResolvedTrainConfig, images: ImageSource, runtime: Runtime, run: Path | None
) -> Checkpoint | None:
    """The newest committed checkpoint of `run`, the same one on every rank; None if there is none.

    Every rank calls this.

    Args:
        config: the recipe of the training.
        images: that are trained on.
        runtime: this rank and its connection to the others.
        run: directory of the run; None has no checkpoint.

    Raises:
        CheckpointError: if the checkpoint is of another recipe.
        UnseenFileError: if this rank does not see the checkpoint; a `RankError` on the other ranks.
    """
    # All ranks must load the same checkpoint: rank 0 chooses. A network file system remembers for a while that a name
    # was missing: no other rank looks for it before it is there.
    chosen = committed_checkpoints(run)[-1:] if run is not None and runtime.rank == 0 else []
    newest = runtime.all_gather(chosen)[0]
    if not newest:
        return None
    require_seen(runtime, newest[0] / MARK)
    checkpoint = Checkpoint(newest[0])
    _require_recipe(checkpoint, config, images)
    return checkpoint


def restore_or_begin(
    learner: Learner,
    epochs: EpochBatches,
    phase: Phase,
    checkpoint: Checkpoint | None,
    warm_start: Path | None,
    initial: InitialCodes,
    attempt: Attempt | None,
) -> Position:
    """Bring `learner` to the state of `checkpoint`; without one, give it the decoder of `warm_start`, if there is one.

    Images are read only of rows that `checkpoint` does not hold, and, where there are any, of a sample of the others.

    Args:
        learner: in its initial state, its codes zero; it is changed.
        epochs: the order of training.
        phase: the phase that begins or continues.
        checkpoint: of this run.
        warm_start: directory of a checkpoint of another run.
        initial: codes of rows that no checkpoint holds.
        attempt: of this group of ranks on its run, which keeps codes that were fitted before a stop.

    Returns:
        Where training continues.

    Raises:
        CheckpointError: if a checkpoint is damaged, of other images than `epochs`, or has another decoder.
        StopRequestedError: on every rank, if somebody asked to stop while codes were computed.
    """
    if checkpoint is None:
        if warm_start is not None:
            _start_decoder(Checkpoint(warm_start), learner)
        initial.fill(learner.table, np.arange(len(epochs.images.ids)))
        return Position(phase=phase.number)
    growth = _restore(checkpoint, learner, epochs)
    begins = checkpoint.position.phase != phase.number
    position = checkpoint.position if begins else _continued(checkpoint, epochs, growth, learner.runtime)
    if growth.count(learner):
        initial.fill(learner.table, growth.new_rows)
        if begins:
            fitted = FittedCodes(attempt, checkpoint, epochs.snapshot)
            growth.fit_new_rows(learner, epochs.images, initial, fitted, position.images_seen)
    if begins:  # At an epoch's boundary.
        return Position(images_seen=position.images_seen, phase=phase.number, epoch=position.epoch + 1)
    return position


def _continued(checkpoint: Checkpoint, epochs: EpochBatches, growth: Growth, runtime: Runtime) -> Position:
    """Where the phase of `checkpoint` continues.

    Raises:
        CheckpointError: if it is of other images than `epochs`, or of another batch size.
    """
    position = checkpoint.position
    too_far = position.step >= epochs.steps
    if too_far and runtime.all_reduce_sum(torch.tensor(growth.removed, device=runtime.device)):
        # Without the removed images the epoch has fewer steps, and is over.
        position, too_far = dataclasses.replace(position, epoch=position.epoch + 1, step=0), False
    if checkpoint.snapshot != epochs.snapshot or too_far:
        raise CheckpointError(
            f"{checkpoint.directory}: is of other images or another batch size than those given (snapshot "
            f"{checkpoint.snapshot[:12]}, step {position.step} of an epoch); give the ones it was trained with"
        )
    return position


def require_decoder(checkpoint: Checkpoint, config: ResolvedDecoderConfig, shape: Shape) -> None:
    """Check that the decoder of `checkpoint`, a warm start, has this config and this shape.

    Raises:
        CheckpointError: if it has another one.
    """
    changed = checkpoint.decoder_differences(config, shape)
    if changed:
        raise CheckpointError(
            f"`warm_start` (={checkpoint.directory}): has another decoder ({'; '.join(changed)}); give the same "
            "settings, or start without it"
        )


def _start_decoder(checkpoint: Checkpoint, learner: Learner) -> None:
    """Give `learner` the EMA decoder of a checkpoint, and nothing else of it."""
    require_decoder(checkpoint, learner.config.decoder, learner.shape)
    tensors = checkpoint.tensors("ema")
    learner.decoder.load_state_dict(tensors)
    learner.ema.decoder.load_state_dict(tensors)


def _require_recipe(checkpoint: Checkpoint, config: ResolvedTrainConfig, images: ImageSource) -> None:
    """Raise `CheckpointError` if codes and decoder of `checkpoint` are not those of a training by `config`."""
    names = ("dim", "projection", "optimizer")
    saved = dict(zip(names, (checkpoint.code_dim, checkpoint.projection, checkpoint.optimizer), strict=True))
    requested = {name: getattr(config.code, name) for name in names}
    shape = Shape(config.code.dim, images.resolution, images.channels)
    _refuse(
        checkpoint,
        differences(
            {"code": saved, "code_shards": checkpoint.code_shards},
            {"code": requested, "code_shards": images.code_shards},
        )
        or checkpoint.decoder_differences(config.decoder, shape),
    )


def _refuse(checkpoint: Checkpoint, changed: Sequence[str]) -> None:
    """Raise `CheckpointError` if there are lines about changed settings."""
    if changed:
        raise CheckpointError(
            f"{checkpoint.directory}: is of another recipe ({'; '.join(changed)}); give the old values, or another "
            "run directory"
        )


def _restore(checkpoint: Checkpoint, learner: Learner, epochs: EpochBatches) -> Growth:
    """Bring `learner` to the checkpoint's state. Rows that the checkpoint does not hold stay as they are."""
    optimizer = checkpoint.tensors("optimizer")
    # The names of the optimizer's state tell Adam from SGD; before the first step neither has any state.
    slots = {key.rpartition("/")[2] for key in optimizer}
    for slot, name in (("exp_avg", "adam"), ("momentum_buffer", "sgd")):
        if slot in slots:
            _refuse(checkpoint, differences({"optimizer": name}, {"optimizer": learner.config.optimizer}))
    learner.decoder.load_state_dict(checkpoint.tensors("decoder"))
    learner.ema.decoder.load_state_dict(checkpoint.tensors("ema"))
    parameters = list(learner.decoder.parameters())
    names = {name: i for i, (name, _) in enumerate(learner.decoder.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in optimizer.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[names[name]]
        if value.shape == parameter.shape:
            # The fused optimizer walks parameter and state side by side: both need the same memory format.
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state.setdefault(names[name], {})[slot] = value
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": state})
    growth = Growth(int(epochs.sizes.sum()))
    shards = rows_of_shards(epochs.images)
    columns = ["image_id", *learner.table.resident.columns()]
    reads = one_ahead(functools.partial(checkpoint.shard, shard, columns) for shard in shards)
    for saved, (first, last) in zip(reads, shards.values(), strict=True):
        _restore_shard(saved, learner.table, first, last, growth)
    return growth


def _restore_shard(saved: dict[str, npt.NDArray[Any]], table: Table, first: int, last: int, growth: Growth) -> None:
    """Set the rows of a code shard, `first` to before `last`, to the saved ones; add old and new rows to `growth`."""
    if np.array_equal(table.ids[first:last], saved["image_id"]):  # Nothing was appended or removed: as they are.
        columns = {name: _tensor(values) for name, values in saved.items() if name != "image_id"}
        table.write(first, columns)
        rows = np.arange(first, last)
        growth.add(rows, saved["image_id"], columns[raw_name(table.config)], rows[:0])
        return
    # Axis [image that both have]: its id, its row in the table, from `first` on, and its row in the checkpoint's shard.
    ids, rows, saved_rows = np.intersect1d(table.ids[first:last], saved["image_id"], return_indices=True)
    columns = table.read(first, last)
    for name, column in columns.items():
        column[torch.from_numpy(rows)] = torch.from_numpy(saved[name][saved_rows]).to(column)
    growth.removed += len(saved["image_id"]) - len(saved_rows)
    new_rows = first + np.delete(np.arange(last - first), rows)
    growth.add(first + rows, ids, torch.from_numpy(saved[raw_name(table.config)][saved_rows]), new_rows)
    table.write(first, columns)


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    """`values` as a tensor that is only read, without a copy."""
    with warnings.catch_warnings():  # PyTorch warns of memory that must not be written, as Arrow's.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
