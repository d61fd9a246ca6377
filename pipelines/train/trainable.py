"""Whether a recipe can be trained on a dataset, and what a step of it costs; this module brings PyTorch."""

import torch

from glo_core.common.errors import ConfigError
from glo_core.data.dataset import Dataset
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import Shape
from glo_core.decoder.cost import cost, num_parameters
from glo_core.losses.weighted_sum import make_loss
from glo_core.training.config import ResolvedTrainConfig


def shape_of(recipe: ResolvedTrainConfig, dataset: Dataset) -> Shape:
    """What the decoder of `recipe` makes of a code for `dataset`."""
    return Shape(recipe.code.dim, dataset.config.resolution, dataset.config.channels)


def require_buildable(recipe: ResolvedTrainConfig, dataset: Dataset) -> None:
    """Refuse a recipe whose decoder or loss cannot be built for `dataset`.

    Raises:
        ConfigError: if it is so.
    """
    config = dataset.config
    try:
        make_decoder(recipe.decoder, **shape_of(recipe, dataset)._asdict())
        make_loss(recipe.loss, recipe.pyramid, recipe.perceptual_network, config.resolution, torch.device("cpu"))
    except ValueError as error:
        raise ConfigError(f"{dataset.path}: {error}") from None


def decoder_in_words(recipe: ResolvedTrainConfig, dataset: Dataset) -> str:
    """Parameters, operations and memory of a step."""
    decoder = make_decoder(recipe.decoder, **shape_of(recipe, dataset)._asdict())
    return f"decoder {recipe.decoder.kind} {_cost(recipe, decoder)}"


def _cost(recipe: ResolvedTrainConfig, decoder: torch.nn.Module) -> str:
    """Parameters, operations and memory of a step, in words."""
    parameters = num_parameters(decoder)
    decoding = cost(decoder, recipe.code.dim)
    if decoding is None:
        return f"of {parameters:,} parameters; its operations cannot be counted"
    # A step holds weights, their gradient, Adam's two moments and the EMA, and what the backward pass needs.
    item_bytes = 8 if recipe.precision == "float64" else 4
    memory = item_bytes * (5 * parameters + recipe.batch_size * decoding.activations)
    return (
        f"of {parameters:,} parameters, {decoding.flops / 1e6:,.1f} MFLOP to decode an image; about "
        f"{memory / 2**20:,.0f} MiB for a step of {recipe.batch_size} images"
    )
