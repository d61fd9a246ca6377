"""The parts of a checkpoint that come from the learner: its record, and the decoder's files."""

import torch
from torch import Tensor

from glo_core.checkpoint.async_writer import DecoderFiles
from glo_core.checkpoint.layout import CheckpointRecord, Position
from glo_core.common.records import record_bytes
from glo_core.data.image_source import ImageSource
from glo_core.decoder.record import DecoderRecord
from glo_core.training.learner import Learner


def checkpoint_record(
    learner: Learner, images: ImageSource, position: Position, train_psnr: float | None
) -> CheckpointRecord:
    """The record of a checkpoint at `position`, before its parts are written; `train_psnr` is in dB."""
    code = learner.config.code
    return CheckpointRecord(
        position=position,
        snapshot=images.snapshot,
        code_shards=images.code_shards,
        code_dim=code.dim,
        projection=code.projection,
        code_optimizer=code.optimizer,
        precision=learner.config.precision,
        autocast="bfloat16" if learner.autocast else "off",
        train_psnr=train_psnr,
        parts={},
    )


def decoder_files(learner: Learner) -> DecoderFiles:
    """A copy of the decoder, its EMA and its optimizer's state, as files by name; tensors are on the CPU."""
    decoder = learner.decoder
    names = [name for name, _ in decoder.named_parameters()]
    state = learner.optimizer.state_dict()["state"]
    optimizer = {f"{names[i]}/{key}": value for i, values in state.items() for key, value in values.items()}
    return {
        "decoder.json": record_bytes(DecoderRecord.of(learner.config.decoder, learner.shape)),
        "decoder.safetensors": _row_major(decoder.state_dict()),
        "ema.safetensors": _row_major(learner.ema.decoder.state_dict()),
        "optimizer.safetensors": _row_major(optimizer),
    }


def _row_major(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, row-major as safetensors has them, whatever the memory format on the device."""
    return {
        name: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, value in tensors.items()
    }
