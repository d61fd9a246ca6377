"""Images of codes, and codes between codes."""

import torch

from glo_core.codes.projection import PROJECTIONS
from glo_core.common.arrays import UInt8Array
from glo_core.common.shapes import Float, Tensor
from glo_core.losses.pixel_ranges import to_bytes

_BLOCK = 32
"""Codes that are decoded together"""


@torch.inference_mode()
def decode_codes(decoder: torch.nn.Module, codes: Float[Tensor, "n code_dim"]) -> UInt8Array:
    """Images of `codes` `[n, code_dim]` by a decoder in eval mode, uint8 `[n, H, W, C]`.

    Image i depends on code i and on its place i mod 32, and not on n: the last block is padded, because a batch of
    another size rounds otherwise.
    """
    weight = next(decoder.parameters())
    padding = codes[-1:].expand(-len(codes) % _BLOCK, -1)
    blocks = torch.cat([codes, padding]).split(_BLOCK)
    images = [to_bytes(decoder(block.to(weight))).cpu() for block in blocks]
    return torch.cat(images)[: len(codes)].numpy()


def interpolate(
    start: Float[Tensor, " dim"], end: Float[Tensor, " dim"], steps: int, projection: str
) -> Float[Tensor, "steps dim"]:
    """Codes on the straight line from `start` to `end` (`[dim]` each), then projected. `[steps, dim]`."""
    weights = torch.linspace(0, 1, steps, dtype=start.dtype).unsqueeze(1)
    return PROJECTIONS[projection](torch.lerp(start, end, weights))
