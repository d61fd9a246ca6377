"""Pixels as bytes in 0 to 255, as the decoder makes them in [-1, 1], and in [0, 1]."""

import torch


def to_target(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Pixels as the decoder makes them: uint8 `[b, H, W, C]` -> `[b, C, H, W]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(dtype).div(127.5).sub(1)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return images.add(1).div(2).clamp(0, 1)
