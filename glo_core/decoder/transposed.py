"""Decoders of transposed convolutions: the kinds seed and dcgan."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from glo_core.common.shapes import Float, Tensor
from glo_core.decoder.batch_norm import GroupedBatchNorm
from glo_core.decoder.config import DecoderConfig, Shape


class TransposedDecoder(nn.Module):
    """4x4 transposed convolution, then one of stride 2 per doubling, batch norm and ReLU between, tanh at the end.

    No layer before a batch norm has a bias: its gradient would be rounding noise, which Adam would amplify.
    """

    def __init__(
        self, shape: Shape, widths: tuple[int, ...], *, kernel: int, last_kernel: int, last_bias: bool, momentum: float
    ) -> None:
        """Build the layers in PyTorch's initial state.

        Args:
            shape: what the decoder maps between.
            widths: channels at 4, 8, 16, ... px, one number for each doubling.
            kernel: side of the transposed convolutions but for the first and the last.
            last_kernel: side of the last one.
            last_bias: whether the last one has a bias.
            momentum: weight of a new batch in the running statistics.
        """
        super().__init__()
        layers = [nn.ConvTranspose2d(shape.code_dim, widths[0], 4, bias=False)]
        layers += [_doubling(a, b, kernel, bias=False) for a, b in itertools.pairwise(widths)]
        self.convolutions = nn.ModuleList(layers)
        self.norms = nn.ModuleList([GroupedBatchNorm(width, momentum) for width in widths])
        self.output = _doubling(widths[-1], shape.channels, last_kernel, bias=last_bias)

    @classmethod
    def seed(cls, config: DecoderConfig, shape: Shape, seed: int) -> "TransposedDecoder":
        """The kind seed: kernels of `kernel_size` (5 in the seed), the last of 3, Xavier's uniform initial weights."""
        decoder = cls(
            shape,
            config.widths(shape.resolution),
            kernel=config.kernel_size,
            last_kernel=3,
            last_bias=True,
            momentum=config.batch_norm_momentum,
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in [*decoder.convolutions, decoder.output]:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(decoder.output.bias)  # type: ignore[arg-type]
        return decoder

    @classmethod
    def dcgan(cls, config: DecoderConfig, shape: Shape, seed: int) -> "TransposedDecoder":
        """The kind dcgan (Radford et al., arXiv 1511.06434): kernels of 4, no bias, weights from N(0, 0.02^2)."""
        decoder = cls(
            shape,
            config.widths(shape.resolution),
            kernel=4,
            last_kernel=4,
            last_bias=False,
            momentum=config.batch_norm_momentum,
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in [*decoder.convolutions, decoder.output]:
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
        return decoder

    def forward(self, codes: Float[Tensor, "b code_dim"]) -> Float[Tensor, "b channels side side"]:
        """Images of `codes` `[b, code_dim]`, `[b, channels, side, side]` in (-1, 1)."""
        x = codes[:, :, None, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return torch.tanh(self.output(x))


def _doubling(inputs: int, outputs: int, kernel: int, *, bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution of stride 2 that doubles the side exactly."""
    # Output side = 2 (n - 1) - 2 padding + kernel + output_padding = 2 n.
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride=2, padding=padding, output_padding=2 + 2 * padding - kernel, bias=bias
    )
