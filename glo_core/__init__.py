"""Generative Latent Optimization with a sharded code table: the model, in PyTorch, NumPy and Arrow alone.

Names are loaded when they are first used: a process that only decodes images does not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glo_core.blocks import DatasetConfig
    from glo_core.checkpoint import Checkpoint
    from glo_core.codes import CodeConfig, CodeTable
    from glo_core.dataset import Dataset, TensorImages
    from glo_core.decoder import DecoderConfig, make_decoder
    from glo_core.files import UserError
    from glo_core.keeper import Intervals
    from glo_core.loop import Phase, Trained, train
    from glo_core.runtime import SingleProcess, TorchDistributed
    from glo_core.step import TrainConfig

_HOMES = {
    "blocks": ("DatasetConfig",),
    "checkpoint": ("Checkpoint",),
    "codes": ("CodeConfig", "CodeTable"),
    "dataset": ("Dataset", "TensorImages"),
    "decoder": ("DecoderConfig", "make_decoder"),
    "files": ("UserError",),
    "keeper": ("Intervals",),
    "loop": ("Phase", "Trained", "train"),
    "runtime": ("SingleProcess", "TorchDistributed"),
    "step": ("TrainConfig",),
}

__all__ = [
    "Checkpoint",
    "CodeConfig",
    "CodeTable",
    "Dataset",
    "DatasetConfig",
    "DecoderConfig",
    "Intervals",
    "Phase",
    "SingleProcess",
    "TensorImages",
    "TorchDistributed",
    "TrainConfig",
    "Trained",
    "UserError",
    "make_decoder",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"glo_core.{home}"), name)
    raise AttributeError(f"module 'glo_core' has no attribute {name!r}")
