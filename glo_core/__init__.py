"""Generative Latent Optimization with a sharded code table: the model, in PyTorch, NumPy and Arrow alone."""

from glo_core.blocks import Dataset, DatasetConfig, TensorImages
from glo_core.checkpoint import Checkpoint
from glo_core.codes import CodeConfig, CodeTable
from glo_core.decoder import DecoderConfig, SeedDecoder
from glo_core.files import UserError
from glo_core.loop import Intervals, Phase, Trained, train
from glo_core.runtime import SingleProcess, TorchDistributed
from glo_core.step import TrainConfig

__all__ = [
    "Checkpoint",
    "CodeConfig",
    "CodeTable",
    "Dataset",
    "DatasetConfig",
    "DecoderConfig",
    "Intervals",
    "Phase",
    "SeedDecoder",
    "SingleProcess",
    "TensorImages",
    "TorchDistributed",
    "TrainConfig",
    "Trained",
    "UserError",
    "train",
]
