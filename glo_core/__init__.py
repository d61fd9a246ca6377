"""Generative Latent Optimization with a sharded code table: the model, in PyTorch, NumPy and Arrow alone.

    import glo_core as glo
    model = glo.train(images).model      # uint8 [n, H, W, C]
    model = glo.load("runs/faces")

Names are loaded when they are first used: a process that only decodes image files does not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glo_core.checkpoint.reader import Checkpoint
    from glo_core.codes.config import CodeConfig
    from glo_core.codes.table import CodeTable
    from glo_core.common.errors import CheckpointError, ConfigError, DatasetError, DivergedError, UserError
    from glo_core.common.runtime import SingleProcess, TorchDistributed
    from glo_core.data.dataset import Dataset
    from glo_core.data.image_source import TensorImages
    from glo_core.dataset_format.config import DatasetConfig
    from glo_core.decoder.build import make_decoder
    from glo_core.decoder.config import DecoderConfig
    from glo_core.evaluation.config import InvertConfig
    from glo_core.evaluation.neighbors import Neighbors
    from glo_core.model import Model
    from glo_core.open_run import load
    from glo_core.sampling.image_grid import image_grid
    from glo_core.training.config import Intervals, TrainConfig
    from glo_core.training.loop import TrainResult, train_phase
    from glo_core.training.schedule import Phase
    from glo_core.training.train import train

_HOMES = {
    "checkpoint.reader": ("Checkpoint",),
    "codes.config": ("CodeConfig",),
    "codes.table": ("CodeTable",),
    "common.errors": ("CheckpointError", "ConfigError", "DatasetError", "DivergedError", "UserError"),
    "common.runtime": ("SingleProcess", "TorchDistributed"),
    "data.dataset": ("Dataset",),
    "data.image_source": ("TensorImages",),
    "dataset_format.config": ("DatasetConfig",),
    "decoder.build": ("make_decoder",),
    "decoder.config": ("DecoderConfig",),
    "evaluation.config": ("InvertConfig",),
    "evaluation.neighbors": ("Neighbors",),
    "model": ("Model",),
    "open_run": ("load",),
    "sampling.image_grid": ("image_grid",),
    "training.config": ("Intervals", "TrainConfig"),
    "training.loop": ("TrainResult", "train_phase"),
    "training.schedule": ("Phase",),
    "training.train": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CodeConfig",
    "CodeTable",
    "ConfigError",
    "Dataset",
    "DatasetConfig",
    "DatasetError",
    "DecoderConfig",
    "DivergedError",
    "Intervals",
    "InvertConfig",
    "Model",
    "Neighbors",
    "Phase",
    "SingleProcess",
    "TensorImages",
    "TorchDistributed",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "image_grid",
    "load",
    "make_decoder",
    "train",
    "train_phase",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'glo_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"glo_core.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
