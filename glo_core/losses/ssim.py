"""Structural similarity."""

import torch
import torch.nn.functional as F

from glo_core.common.shapes import Float, Tensor
from glo_core.losses.pixel import _PIXELS
from glo_core.losses.pixel_ranges import to_unit


def ssim(prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]) -> Float[Tensor, " b"]:
    """Structural similarity of each image, `[b]`, 1 for equal ones; images in [0, 1], every channel by itself.

    Mean over all windows that lie within the image, Gaussian of sigma 1.5 over 11 px (as many as a smaller image has),
    K = (0.01, 0.03), biased variances (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004).
    """
    size = min(11, prediction.shape[-1])
    offsets = torch.arange(size, dtype=prediction.dtype, device=prediction.device) - (size - 1) / 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
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


def dissimilarity(
    prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]
) -> Float[Tensor, " b"]:
    """1 - SSIM of each image, `[b]`; images `[b, channels, h, w]` in [-1, 1]."""
    # Without the clamp a value beyond the range has a gradient that leads back.
    return 1 - ssim(to_unit(prediction, clamp=False), to_unit(target, clamp=False))
