"""What a checkpoint keeps of the decoder and its optimizer: tensors by name."""

from typing import Any

import torch

from glo_core.common.files import FORMAT_VERSION
from glo_core.decoder.record import decoder_record
from glo_core.training.learner import Learner


def checkpoint_record(learner: Learner, train_psnr: float | None) -> dict[str, Any]:
    """What `checkpoint.json` says of the recipe, and of how good the decoder was in training."""
    code = learner.config.code
    return {
        "code_dim": code.dim,
        "projection": code.projection,
        "code_optimizer": code.optimizer,
        "precision": learner.config.precision,
        "train_psnr": train_psnr,
    }


def decoder_files(learner: Learner) -> dict[str, Any]:
    """Content of the decoder's files, copied: JSON records and tensors by name."""
    decoder = learner.decoder
    names = [name for name, _ in decoder.named_parameters()]
    state = learner.optimizer.state_dict()["state"]
    optimizer = {f"{names[i]}/{key}": value for i, values in state.items() for key, value in values.items()}
    return {
        "decoder.json": {"format_version": FORMAT_VERSION, **decoder_record(learner.config.decoder, learner.shape)},
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
