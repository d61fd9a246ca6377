"""The memory of the device that training needs besides its images: the images' cache leaves it."""

import torch

from glo_core.common.runtime import Runtime
from glo_core.data.image_source import ImageSource
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import Shape
from glo_core.decoder.cost import cost
from glo_core.training.config import ResolvedTrainConfig

_COPIES = 5
"""Of each weight: itself, its gradient, two moments of the optimizer, the EMA"""
_COLUMNS = 3
"""Of each code: itself and two moments of its optimizer"""
_WORKSPACE = 1 << 30
"""Bytes for kernels, their workspaces and what the allocator cannot use"""


def training_bytes(
    config: ResolvedTrainConfig, images: ImageSource, runtime: Runtime, module: torch.nn.Module | None = None
) -> int:
    """Bytes that a rank's table, decoder, states and activations take on its device, at most.

    Args:
        config: the recipe.
        images: of all ranks.
        runtime: this rank and its connection to the others.
        module: the decoder of kind "module".
    """
    item = 8 if config.precision == "float64" else 4
    rows = -(-len(images.ids) // runtime.world_size) if config.window is None else 0
    shape = Shape(config.code.dim, images.resolution, images.channels)
    decoding = cost(make_decoder(config.decoder, **shape._asdict(), module=module), config.code.dim)
    table = item * rows * config.code.dim * _COLUMNS
    if decoding is None:  # A decoder of the user's that cannot be counted.
        return table + 2 * _WORKSPACE
    batch = -(-config.batch_size // runtime.world_size)
    return table + item * (_COPIES * decoding.parameters + batch * decoding.activations) + _WORKSPACE
