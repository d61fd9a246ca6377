"""Pixels as bytes in 0 to 255, as a decoder makes them in [-1, 1], and in [0, 1]: every conversion of the project.

Bytes are uint8 `[b, H, W, C]`, as PIL has them. Decoded images are `[b, C, H, W]`, as convolutions make them.
"""

import torch

from glo_core.common.shapes import Float, Tensor, UInt8


def to_target(
    images: UInt8[Tensor, "b height width channels"], dtype: torch.dtype
) -> Float[Tensor, "b channels height width"]:
    """Bytes as a decoder makes them: uint8 `[b, H, W, C]` -> `dtype` `[b, C, H, W]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(dtype).div(127.5).sub(1)


def to_unit(decoded: Float[Tensor, "b channels h w"], *, clamp: bool = True) -> Float[Tensor, "b channels h w"]:
    """[-1, 1] -> [0, 1], any shape. Without `clamp`, values beyond the range stay beyond it and have a gradient."""
    unit = decoded.add(1).div(2)
    return unit.clamp(0, 1) if clamp else unit


def unit_bytes(images: UInt8[Tensor, "*any"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*any"]:
    """Bytes in [0, 1]: uint8, any shape -> `dtype`, the same shape."""
    return images.to(dtype).div(255)


def to_bytes(decoded: Float[Tensor, "b channels h w"]) -> UInt8[Tensor, "b h w channels"]:
    """Decoded images as bytes, clamped and rounded: `[b, C, H, W]` in [-1, 1] -> uint8 `[b, H, W, C]`."""
    return to_unit(decoded).mul(255).round().byte().permute(0, 2, 3, 1)
