"""The loss that a recipe names: "mse", "pyramid + mse", "0.8 l1 + 0.2 ssim"."""

from collections.abc import Callable

import torch

from glo_core.common.errors import ConfigError, one_line
from glo_core.common.shapes import Float, Tensor
from glo_core.losses.config import PyramidConfig, loss_terms
from glo_core.losses.laplacian_pyramid import pyramid_l1
from glo_core.losses.perceptual import feature_network
from glo_core.losses.pixel import l1, mse, pairwise
from glo_core.losses.ssim import dissimilarity

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Prediction and target, `[b, channels, h, w]` in [-1, 1], to one loss per image, `[b]`"""


def make_loss(text: str, pyramid: PyramidConfig, network: str, resolution: int, device: torch.device) -> Loss:
    """The weighted sum that `text` names, for images of `resolution` on `device`.

    Args:
        network: the feature network of `perceptual`, see `perceptual.feature_network`.

    Raises:
        UserError: if the feature network cannot be loaded.
        ValueError: if the pyramid has too many levels for `resolution`.
    """
    weights = loss_terms(text)
    terms: dict[str, Loss] = {"mse": mse, "l1": l1, "pairwise": pairwise, "ssim": dissimilarity}
    if "pyramid" in weights:
        levels = pyramid.depth(resolution)
        terms["pyramid"] = lambda prediction, target: pyramid_l1(prediction, target, levels, pyramid.falloff)
    if "perceptual" in weights:
        terms["perceptual"] = feature_network(network, resolution, device)
    if list(weights.values()) == [1.0]:
        return terms[next(iter(weights))]

    def weighted(
        prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]
    ) -> Float[Tensor, " b"]:
        losses = [weight * terms[name](prediction, target) for name, weight in weights.items()]
        return torch.stack(losses).sum(0)

    return weighted


def require_loss_per_image(loss: Loss, resolution: int, channels: int, device: torch.device) -> None:
    """Raise `ConfigError` if `loss`, a callable of the user's, does not return one number per image."""
    name = getattr(loss, "__name__", type(loss).__name__)
    black = torch.full((2, channels, resolution, resolution), -1.0, device=device)
    try:
        shape = tuple(loss(black, black).shape)
    except Exception as error:  # Foreign code raises anything.
        raise ConfigError(f"loss={name}: {one_line(error)}") from error
    if shape != (2,):
        raise ConfigError(f"loss={name}: returns shape {shape} for two images where (2,) is needed, one loss per image")
