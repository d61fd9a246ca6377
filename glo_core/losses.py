"""Reconstruction losses. Each maps two batches `[b, channels, h, w]` in [-1, 1] to one loss per image, `[b]`."""

from collections.abc import Callable

import torch


def mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, `[b]`."""
    # Not flattened: that would copy channels-last images, and hand their layout's opposite to the backward pass.
    return (prediction - target).square().mean(dim=(1, 2, 3))


def pairwise(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of all pairs of differences within each image, `[b]`: the seed's loss.

    With d = prediction - target over the n values of an image, 2 sum(d^2) / (n - 1) - 2 sum(d)^2 / (n (n - 1)),
    which is twice the variance of d: a uniform shift of brightness costs nothing.
    """
    difference = prediction - target
    n, pixels = difference[0].numel(), (1, 2, 3)
    return 2 * difference.square().sum(pixels) / (n - 1) - 2 * difference.sum(pixels).square() / (n * (n - 1))


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"mse": mse, "pairwise": pairwise}


def to_target(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Pixels as the decoder makes them: uint8 `[b, H, W, C]` -> `[b, C, H, W]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(dtype).div(127.5).sub(1)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return images.add(1).div(2).clamp(0, 1)
