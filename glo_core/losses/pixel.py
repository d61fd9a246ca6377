"""Losses of single pixels. Images are `[b, channels, h, w]` in [-1, 1]; a loss is one number per image, `[b]`."""

from glo_core.common.shapes import Float, Tensor

_PIXELS = (1, 2, 3)
"""The axes of one image"""


def mse(prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]) -> Float[Tensor, " b"]:
    """Mean squared error of each image, `[b]`."""
    # A mean over three axes: flattening would copy channels-last images, and change the backward pass's layout.
    return (prediction - target).square().mean(dim=_PIXELS)


def l1(prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]) -> Float[Tensor, " b"]:
    """Mean absolute error of each image, `[b]`."""
    return (prediction - target).abs().mean(dim=_PIXELS)


def pairwise(
    prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]
) -> Float[Tensor, " b"]:
    """Mean squared difference of the errors of all pairs of values within each image, `[b]`, the notebook's loss.

    With d = prediction - target over the n values of an image, 2 sum(d^2) / (n - 1) - 2 sum(d)^2 / (n (n - 1)),
    which is twice the variance of d: a uniform shift of brightness costs nothing.
    """
    difference = prediction - target
    n = difference[0].numel()
    return 2 * difference.square().sum(_PIXELS) / (n - 1) - 2 * difference.sum(_PIXELS).square() / (n * (n - 1))
