"""Images of codes, and codes between codes."""

import torch

from glo_core.codes.projection import PROJECTIONS
from glo_core.common.arrays import UInt8Array
from glo_core.losses.pixel_ranges import to_unit

_CHUNK = 256


@torch.inference_mode()
def decode_codes(decoder: torch.nn.Module, codes: torch.Tensor) -> UInt8Array:
    """Images of `codes` `[n, code_dim]` by a decoder in eval mode, uint8 `[n, H, W, C]`."""
    weight = next(decoder.parameters())
    images = [to_unit(decoder(chunk.to(weight))).mul(255).round().byte() for chunk in codes.split(_CHUNK)]
    return torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()


def interpolate(start: torch.Tensor, end: torch.Tensor, steps: int, projection: str) -> torch.Tensor:
    """Codes on the straight line from `start` to `end` (`[dim]` each), then projected. `[steps, dim]`."""
    weights = torch.linspace(0, 1, steps, dtype=start.dtype).unsqueeze(1)
    return PROJECTIONS[projection](torch.lerp(start, end, weights))
