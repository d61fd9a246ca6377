"""What a checkpoint keeps of the decoder and its optimizer: tensors by name."""

import torch

from glo_core.checkpoint.async_writer import DecoderFiles
from glo_core.checkpoint.layout import CheckpointRecord, Position
from glo_core.common.records import record_bytes
from glo_core.data.image_source import ImageSource
from glo_core.decoder.record import DecoderRecord
from glo_core.training.learner import Learner


def checkpoint_record(
    learner: Learner, images: ImageSource, position: Position, train_psnr: float | None
) -> CheckpointRecord:
    """What `checkpoint.json` will hold of a checkpoint at `position`, before its parts are written."""
    code = learner.config.code
    return CheckpointRecord(
        position=position,
        snapshot=images.snapshot,
        code_shards=images.code_shards,
        code_dim=code.dim,
        projection=code.projection,
        code_optimizer=code.optimizer,
        precision=learner.config.precision,
        train_psnr=train_psnr,
        parts={},
    )


def decoder_files(learner: Learner) -> DecoderFiles:
    """A copy of the decoder's files, by name."""
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


def _row_major(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU. Safetensors keeps plain row-major tensors: the memory format is the device's business."""
    return {
        name: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, value in tensors.items()
    }
