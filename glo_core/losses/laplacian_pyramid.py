"""The Laplacian pyramid and its loss."""

import torch
import torch.nn.functional as F

from glo_core.common.shapes import Float, Tensor
from glo_core.losses.pixel import _PIXELS


def laplacian_pyramid(images: Float[Tensor, "b channels h w"], levels: int) -> list[Float[Tensor, "b channels _ _"]]:
    """The Laplacian pyramid (Burt and Adelson, IEEE Trans. Communications 1983) of `images` `[b, channels, h, w]`.

    Level j is `[b, channels, h / 2^j, w / 2^j]`, the finest first; the low-pass residual comes last. To reduce, smooth
    by the binomial kernel (1 4 6 4 1) / 16 along each side, mirrored at the border, and take every second value. To
    expand, put zeros between the values and smooth by the same kernel, doubled.
    """
    pyramid = []
    for _ in range(levels):
        reduced = _binomial(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = 4 * reduced
        pyramid.append(images - _binomial(spread))
        images = reduced
    return [*pyramid, images]


def _binomial(images: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b channels h w"]:
    """Smooth by (1 4 6 4 1) / 16 along each side, mirrored at the border."""
    channels = images.shape[1]
    kernel = images.new_tensor([1, 4, 6, 4, 1]) / 16
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)


def pyramid_l1(
    prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"], levels: int, falloff: float
) -> Float[Tensor, " b"]:
    """sum_j falloff^j mean |L^j(prediction) - L^j(target)| of each image, `[b]` (arXiv 1707.05776, section 3.2).

    L^j is level j of the pyramid, from 0, the finest; the last one is the low-pass residual.
    """
    # The pyramid is linear: that of the difference is the difference of the two.
    differences = laplacian_pyramid(prediction - target, levels)
    return sum(
        (falloff**j * level.abs().mean(_PIXELS) for j, level in enumerate(differences)), prediction.new_zeros(())
    )
