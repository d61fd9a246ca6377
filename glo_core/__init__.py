"""Generative Latent Optimization with a sharded code table: the model, in PyTorch, NumPy and Arrow alone.

Names are loaded when they are first used: a process that only decodes images does not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glo_core.checkpoint.reader import Checkpoint
    from glo_core.codes.config import CodeConfig
    from glo_core.codes.table import CodeTable
    from glo_core.common.errors import UserError
    from glo_core.common.runtime import SingleProcess, TorchDistributed
    from glo_core.data.dataset import Dataset
    from glo_core.data.image_source import TensorImages
    from glo_core.dataset_format.config import DatasetConfig
    from glo_core.decoder.build import make_decoder
    from glo_core.decoder.config import DecoderConfig
    from glo_core.training.config import Intervals, TrainConfig
    from glo_core.training.loop import TrainResult, train
    from glo_core.training.schedule import Phase

_HOMES = {
    "checkpoint.reader": ("Checkpoint",),
    "codes.config": ("CodeConfig",),
    "codes.table": ("CodeTable",),
    "common.errors": ("UserError",),
    "common.runtime": (
        "SingleProcess",
        "TorchDistributed",
    ),
    "data.dataset": ("Dataset",),
    "data.image_source": ("TensorImages",),
    "dataset_format.config": ("DatasetConfig",),
    "decoder.build": ("make_decoder",),
    "decoder.config": ("DecoderConfig",),
    "training.config": (
        "Intervals",
        "TrainConfig",
    ),
    "training.loop": (
        "TrainResult",
        "train",
    ),
    "training.schedule": ("Phase",),
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
    "TrainResult",
    "UserError",
    "make_decoder",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"glo_core.{home}"), name)
    raise AttributeError(f"module 'glo_core' has no attribute {name!r}")
