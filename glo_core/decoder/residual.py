"""A residual decoder with group norms, which need no statistics over the batch, and a sub-pixel output."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from glo_core.common.shapes import Float, Tensor

_GROUP = 16
"""Channels that a group norm normalizes together"""


class ResidualDecoder(nn.Module):
    """A linear layer to 4x4, a residual block, one more for each doubling but the last, then a sub-pixel output.

    A block is group norm, SiLU, 3x3, nearest upsampling, group norm, SiLU, 3x3 beside a 1x1 skip that is upsampled too
    (He et al., arXiv 1603.05027; Wu and He, arXiv 1803.08494). With `modulation` the code scales and shifts each group
    norm (Perez et al., arXiv 1709.07871). The last block works at half the resolution; there the last convolution makes
    four values of each channel, one for each pixel (Shi et al., arXiv 1609.05158).
    """

    def __init__(self, *, code_dim: int, channels: int, widths: Sequence[int], modulation: bool) -> None:
        """Build the layers in their initial state, drawn from PyTorch's global generator.

        Args:
            code_dim: dimensions of a code.
            channels: of an image.
            widths: channels at 4, 8, 16, ... px, one number for each doubling.
            modulation: whether the code scales and shifts each group norm.
        """
        super().__init__()
        self.first = nn.Linear(code_dim, widths[0] * 16)
        modulated = code_dim if modulation else 0
        pairs = [(widths[0], widths[0]), *itertools.pairwise(widths)]
        self.blocks = nn.ModuleList([_Block(a, b, modulated, 2 if i else 1) for i, (a, b) in enumerate(pairs)])
        self.norm = _Norm(widths[-1], modulated)
        self.output = nn.Conv2d(widths[-1], 4 * channels, 3, padding=1)

    def forward(self, codes: Float[Tensor, "b code_dim"]) -> Float[Tensor, "b channels side side"]:
        """Images of `codes` `[b, code_dim]`, `[b, channels, side, side]` in (-1, 1)."""
        # Codes have norm about 1; the layer's initial weights expect values of about 1.
        codes = codes * codes.shape[1] ** 0.5
        x = self.first(codes).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, codes)
        return torch.tanh(F.pixel_shuffle(self.output(F.silu(self.norm(x, codes))), 2))


class _Norm(nn.Module):
    """Group norm, scaled and shifted by channel, or by the code where `modulated` is its dimension."""

    def __init__(self, channels: int, modulated: int) -> None:
        super().__init__()
        groups = channels // _GROUP if channels % _GROUP == 0 else 1
        self.norm = nn.GroupNorm(groups, channels)
        self.by_code = nn.Linear(modulated, 2 * channels) if modulated else None
        if self.by_code is not None:
            nn.init.zeros_(self.by_code.weight)
            nn.init.zeros_(self.by_code.bias)

    def forward(
        self, x: Float[Tensor, "b channels side side"], codes: Float[Tensor, "b code_dim"]
    ) -> Float[Tensor, "b _ _ _"]:
        x = self.norm(x)
        if self.by_code is None:
            return x
        scale, shift = self.by_code(codes)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class _Block(nn.Module):
    """Two convolutions beside a skip; `scale` is 2 to upsample and 1 not to."""

    def __init__(self, inputs: int, outputs: int, modulated: int, scale: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=scale) if scale > 1 else nn.Identity()
        self.norms = nn.ModuleList([_Norm(inputs, modulated), _Norm(outputs, modulated)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.convolutions[1].weight)  # type: ignore[arg-type]  # A block is its skip initially.

    def forward(
        self, x: Float[Tensor, "b channels side side"], codes: Float[Tensor, "b code_dim"]
    ) -> Float[Tensor, "b _ _ _"]:
        skip = self.up(self.skip(x))
        x = self.up(self.convolutions[0](F.silu(self.norms[0](x, codes))))
        return skip + self.convolutions[1](F.silu(self.norms[1](x, codes)))
