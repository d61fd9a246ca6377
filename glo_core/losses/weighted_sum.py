"""The loss that a recipe names: "mse", "pyramid + mse", "0.8 l1 + 0.2 ssim"."""

from collections.abc import Callable

import torch

from glo_core.losses.config import PyramidConfig, loss_terms
from glo_core.losses.laplacian_pyramid import pyramid_l1
from glo_core.losses.perceptual import feature_network
from glo_core.losses.pixel import l1, mse, pairwise
from glo_core.losses.ssim import _dissimilarity

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Prediction and target, `[b, channels, h, w]` in [-1, 1], to one loss per image, `[b]`"""


def make_loss(text: str, pyramid: PyramidConfig, network: str, resolution: int, device: torch.device) -> Loss:
    """The weighted sum that `text` names, for images of `resolution`.

    Args:
        network: the feature network of `perceptual`, see `perceptual.feature_network`.

    Raises:
        UserError: if the feature network is not to be had.
    """
    weights = loss_terms(text)
    known: dict[str, Loss] = {"mse": mse, "l1": l1, "pairwise": pairwise, "ssim": _dissimilarity}
    if "pyramid" in weights:
        levels = pyramid.depth(resolution)
        known["pyramid"] = lambda prediction, target: pyramid_l1(prediction, target, levels, pyramid.falloff)
    if "perceptual" in weights:
        known["perceptual"] = feature_network(network, resolution, device)
    if list(weights.values()) == [1.0]:
        return known[next(iter(weights))]

    def weighted(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        terms = [weight * known[name](prediction, target) for name, weight in weights.items()]
        return torch.stack(terms).sum(0)

    return weighted
