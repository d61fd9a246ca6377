"""The decoder: code -> image. The seed's transposed convolutions, at any resolution 4 * 2^n."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from glo_core.config import Config
from glo_core.runtime import AllSum, Runtime


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """The seed's decoder."""

    filters: tuple[int, ...] = ()
    """Channels at 4, 8, 16, ... px, one per doubling; empty for the seed's first ones (256 128 64 64 32)"""
    kernel_size: int = 5
    """Side of the transposed convolutions between them"""
    batch_norm_momentum: float = 0.01
    """Weight of a new batch in the running statistics"""

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.filters):
            raise ValueError(f"`decoder.filters` (={list(self.filters)}) must be positive")
        if not 2 <= self.kernel_size <= 9:
            raise ValueError(f"`decoder.kernel_size` (={self.kernel_size}) must be from 2 to 9")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"`decoder.batch_norm_momentum` (={self.batch_norm_momentum}) must be in (0, 1]")

    def widths(self, resolution: int) -> tuple[int, ...]:
        """Channels of each hidden layer at `resolution`.

        Raises:
            ValueError: if `filters` is of another length than `resolution` needs.
        """
        doublings = (resolution // 4).bit_length() - 1
        widths = self.filters or (256, 128, 64, 64, 32, 16, 8, 8)[:doublings]
        if len(widths) != doublings:
            raise ValueError(
                f"`decoder.filters` (={list(widths)}) must have {doublings} entries for images of {resolution} px"
            )
        return widths


class MaskedBatchNorm(nn.Module):
    """Batch normalization whose statistics are those of the whole global batch, padding left out.

    Count, sum and sum of squares are summed over ranks inside the graph, so that values and gradients are the
    same at every world size (`torch.nn.SyncBatchNorm` refuses CPU tensors and knows no mask).
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, momentum: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor, live: torch.Tensor, runtime: Runtime | None) -> torch.Tensor:
        """Normalize `x` `[b, channels, h, w]`; `live` `[b]` is 1 for images and 0 for padding."""
        if self.training:
            mean, var = self._batch_statistics(x, live, runtime)
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def _batch_statistics(
        self, x: torch.Tensor, live: torch.Tensor, runtime: Runtime | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # E[x] and E[x^2] - E[x]^2 over the live images of all ranks, from one sum over ranks.
        channels, area = x.shape[1], x.shape[2] * x.shape[3]
        sums = live @ x.sum(dim=(2, 3))
        squares = live @ x.square().sum(dim=(2, 3))
        statistics = torch.cat([sums, squares, (live.sum() * area).reshape(1)])
        if runtime is not None and runtime.world_size > 1:
            statistics = AllSum.apply(statistics, runtime)  # type: ignore[no-untyped-call]
        count = statistics[-1].clamp_min(1)
        mean = statistics[:channels] / count
        var = (statistics[channels : 2 * channels] / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp_min(1), self.momentum)
        return mean, var


class SeedDecoder(nn.Module):
    """4x4 transposed convolution, then one of stride 2 per doubling, batch norm and ReLU between, tanh at the end.

    No layer before a batch norm has a bias: its gradient would be rounding noise, which Adam would amplify.
    """

    def __init__(self, config: DecoderConfig, *, code_dim: int, resolution: int, channels: int, seed: int = 0) -> None:
        super().__init__()
        self.code_dim, self.resolution, self.channels = code_dim, resolution, channels
        widths = config.widths(resolution)
        layers = [nn.ConvTranspose2d(code_dim, widths[0], 4, bias=False)]
        layers += [_doubling(a, b, config.kernel_size, bias=False) for a, b in itertools.pairwise(widths)]
        self.convolutions = nn.ModuleList(layers)
        self.norms = nn.ModuleList([MaskedBatchNorm(width, config.batch_norm_momentum) for width in widths])
        self.output = _doubling(widths[-1], channels, 3, bias=True)
        generator = torch.Generator().manual_seed(seed)
        for layer in [*layers, self.output]:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(
        self, codes: torch.Tensor, live: torch.Tensor | None = None, runtime: Runtime | None = None
    ) -> torch.Tensor:
        """Decode `codes` `[b, code_dim]` to images `[b, channels, resolution, resolution]` in (-1, 1).

        Args:
            live: 1 for images and 0 for padding, `[b]`; only batch statistics use it. Default: all ones.
            runtime: ranks that share the batch; default: none.
        """
        x = codes[:, :, None, None]
        live = codes.new_ones(len(codes)) if live is None else live
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x), live, runtime))
        return torch.tanh(self.output(x))


def _doubling(inputs: int, outputs: int, kernel: int, *, bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution of stride 2 that doubles the side exactly."""
    # Output side = 2 (n - 1) - 2 padding + kernel + output_padding = 2 n.
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride=2, padding=padding, output_padding=2 + 2 * padding - kernel, bias=bias
    )


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
