"""Reconstruction losses. Each maps two batches `[b, channels, h, w]` in [-1, 1] to one loss per image, `[b]`.

`make_loss` weighs and adds them: "mse", "pyramid + mse", "0.8 l1 + 0.2 ssim".
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glo_core.config import Config
from glo_core.perceptual import feature_network

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Prediction and target, `[b, channels, h, w]` in [-1, 1], to one loss per image, `[b]`"""
_PIXELS = (1, 2, 3)
_TERM = re.compile(r"(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*\*?\s*)?([a-z][a-z0-9_]*)")


def mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, `[b]`."""
    # Not flattened: that would copy channels-last images, and hand their layout's opposite to the backward pass.
    return (prediction - target).square().mean(dim=_PIXELS)


def l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each image, `[b]`."""
    return (prediction - target).abs().mean(dim=_PIXELS)


def pairwise(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of all pairs of differences within each image, `[b]`: the seed's loss.

    With d = prediction - target over the n values of an image, 2 sum(d^2) / (n - 1) - 2 sum(d)^2 / (n (n - 1)),
    which is twice the variance of d: a uniform shift of brightness costs nothing.
    """
    difference = prediction - target
    n = difference[0].numel()
    return 2 * difference.square().sum(_PIXELS) / (n - 1) - 2 * difference.sum(_PIXELS).square() / (n * (n - 1))


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(Config):
    """The Laplacian pyramid of the loss `pyramid`."""

    levels: int = 0
    """Levels above the low-pass residual; 0 for as many as leave a residual of 4 px"""
    falloff: float = 0.25
    """Weight of a level's mean absolute error over that of the next finer one: 2^(-2j) at level j"""

    def __post_init__(self) -> None:
        if self.levels < 0:
            raise ValueError(f"`pyramid.levels` (={self.levels}) must be at least 1, or 0 for the resolution's own")
        if not self.falloff > 0:
            raise ValueError(f"`pyramid.falloff` (={self.falloff}) must be above 0")

    def depth(self, resolution: int) -> int:
        """Levels above the residual at `resolution`.

        Raises:
            ValueError: if a level would be smaller than 2 px.
        """
        most = int(math.log2(resolution)) - 1
        if self.levels > most:
            raise ValueError(f"`pyramid.levels` (={self.levels}) must be at most {most} at {resolution} px")
        return self.levels or max(most - 1, 1)


def laplacian_pyramid(images: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """Burt and Adelson's pyramid of `images` `[b, channels, h, w]`, finest first, the low-pass residual last.

    Reduced by the binomial kernel (1 4 6 4 1) / 16 along each side, mirrored at the border, and every second value;
    expanded by zeros between the values and the same kernel, doubled.
    """
    pyramid = []
    for _ in range(levels):
        reduced = _binomial(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = 4 * reduced
        pyramid.append(images - _binomial(spread))
        images = reduced
    return [*pyramid, images]


def _binomial(images: torch.Tensor) -> torch.Tensor:
    channels = images.shape[1]
    kernel = images.new_tensor([1, 4, 6, 4, 1]) / 16
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)


def pyramid_l1(prediction: torch.Tensor, target: torch.Tensor, levels: int, falloff: float) -> torch.Tensor:
    """sum_j falloff^j mean |L^j(prediction) - L^j(target)| of each image, `[b]` (arXiv 1707.05776, section 3.2)."""
    # The pyramid is linear: that of the difference is the difference of the two.
    differences = laplacian_pyramid(prediction - target, levels)
    return sum(
        (falloff**j * level.abs().mean(_PIXELS) for j, level in enumerate(differences)), prediction.new_zeros(())
    )


def ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, `[b]`, 1 for equal ones; images in [0, 1], every channel by itself.

    Mean over all windows that lie within the image, Gaussian of sigma 1.5 over 11 px (as many as a smaller image has),
    K = (0.01, 0.03), biased variances (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004).
    """
    size = min(11, prediction.shape[-1])
    places = torch.arange(size, dtype=prediction.dtype, device=prediction.device) - (size - 1) / 2
    window = torch.exp(-places.square() / (2 * 1.5**2))
    window = window / window.sum()
    channels = prediction.shape[1]

    def mean(images: torch.Tensor) -> torch.Tensor:
        rows = F.conv2d(images, window.view(1, 1, 1, size).expand(channels, 1, 1, size), groups=channels)
        return F.conv2d(rows, window.view(1, 1, size, 1).expand(channels, 1, size, 1), groups=channels)

    x, y = mean(prediction), mean(target)
    var_x, var_y = mean(prediction.square()) - x.square(), mean(target.square()) - y.square()
    covariance = mean(prediction * target) - x * y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * x * y + c1) * (2 * covariance + c2)
    similarity = similarity / ((x.square() + y.square() + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=_PIXELS)


def _dissimilarity(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # Not clamped: a value beyond the range must have a gradient back.
    return 1 - ssim(prediction.add(1).div(2), target.add(1).div(2))


TERMS = ("mse", "l1", "pairwise", "pyramid", "ssim", "perceptual")


def loss_terms(text: str) -> dict[str, float]:
    """Weights by name of "pyramid + 0.5 mse".

    Raises:
        ValueError: if it is no sum of weighted, known terms.
    """
    weights: dict[str, float] = {}
    for part in text.split("+"):
        match = _TERM.fullmatch(part.strip())
        name = match.group(2) if match else ""
        if match is None or name not in TERMS or name in weights or not float(match.group(1) or 1) > 0:
            raise ValueError(
                f"`loss` (={text}) must be a sum of {', '.join(TERMS)}, each with a weight above 0 or none, such as "
                "pyramid + 0.5 mse"
            )
        weights[name] = float(match.group(1) or 1)
    return weights


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


def to_target(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Pixels as the decoder makes them: uint8 `[b, H, W, C]` -> `[b, C, H, W]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(dtype).div(127.5).sub(1)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return images.add(1).div(2).clamp(0, 1)
