"""Decoders: code -> image, at any resolution 4 * 2^n from 8 px on.

`make_decoder` makes every kind: the seed's and the paper's transposed convolutions, a residual one, or the user's own.
"""

import dataclasses
import importlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glo_core.config import Config
from glo_core.files import UserError
from glo_core.norm import MaskedBatchNorm, mask_batch_norms
from glo_core.residual import ResidualDecoder

_WIDTHS = {"seed": (12, 512), "dcgan": (8, 384), "residual": (6, 256)}
"""Channels at 4 px where no filters are given: for each pixel of the side, and at most; about equal in operations"""
_NARROWEST = 16
"""Channels of a layer at least, where no filters are given"""
_BEFORE_THE_RULE = (256, 128, 64, 64, 32, 16, 8, 8)
"""Channels at 4, 8, ... px of decoders whose record has no filters, but for DCGAN's"""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """What kind of decoder, and how large."""

    kind: str = "dcgan"
    """seed, dcgan, residual, or your own: package.module:Class, called with code_dim, resolution and channels"""
    filters: tuple[int, ...] = ()
    """Channels at 4, 8, 16, ... px, one per doubling; empty for the rule's, see docs/training.md"""
    kernel_size: int = 3
    """Seed only: side of the transposed convolutions but for the first and the last"""
    batch_norm_momentum: float = 0.01
    """Weight of a new batch in the running statistics"""
    modulation: bool = False
    """Residual only: the code also scales and shifts each group norm"""

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not all(self.kind.partition(":")):
            raise ValueError(f"`decoder.kind` (={self.kind}) must be {', '.join(KINDS)}, or package.module:Class")
        if any(width < 1 for width in self.filters):
            raise ValueError(f"`decoder.filters` (={list(self.filters)}) must be positive")
        if self.kernel_size < 2:
            raise ValueError(f"`decoder.kernel_size` (={self.kernel_size}) must be at least 2")
        if self.kernel_size != DecoderConfig.kernel_size and self.kind != "seed":
            raise ValueError(f"`decoder.kernel_size` (={self.kernel_size}) needs kind=seed, not {self.kind}")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"`decoder.batch_norm_momentum` (={self.batch_norm_momentum}) must be in (0, 1]")
        if self.modulation and self.kind != "residual":
            raise ValueError(f"`decoder.modulation` needs kind=residual, not {self.kind}")

    def widths(self, resolution: int) -> tuple[int, ...]:
        """Channels of each hidden layer at `resolution`.

        Raises:
            ValueError: if `filters` is of another length than `resolution` needs.
        """
        doublings = _doublings(resolution)
        widths = self.filters or self.own(resolution)
        if len(widths) != doublings:
            raise ValueError(
                f"`decoder.filters` (={list(widths)}) must have {doublings} entries for images of {resolution} px"
            )
        return widths

    def own(self, resolution: int) -> tuple[int, ...]:
        """The rule's channels of each hidden layer; none for a decoder of the user's."""
        if self.kind not in KINDS:
            return ()
        per_pixel, widest = _WIDTHS[self.kind]
        first = min(per_pixel * resolution, widest)
        # Halved where the area is four times as large: every doubling takes as many operations.
        return tuple(max(first >> level, _NARROWEST) for level in range(_doublings(resolution)))


def _doublings(resolution: int) -> int:
    return (resolution // 4).bit_length() - 1


class Shape(NamedTuple):
    """What a decoder maps between: codes `[b, code_dim]` and images `[b, channels, resolution, resolution]`."""

    code_dim: int
    resolution: int
    channels: int


def make_decoder(config: DecoderConfig, *, code_dim: int, resolution: int, channels: int, seed: int = 0) -> nn.Module:
    """A decoder in its initial state, a function of `config`, the shapes and `seed` alone.

    Its `forward` takes codes `[b, code_dim]` and returns images `[b, channels, resolution, resolution]`, -1 black and
    1 white.

    Raises:
        UserError: if a decoder of the user's cannot be made, or makes something else.
        ValueError: if `filters` does not fit `resolution`.
    """
    shape = Shape(code_dim, resolution, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind in KINDS:
            return KINDS[config.kind](config, shape, seed)
        return _imported(config.kind, shape)


class TransposedDecoder(nn.Module):
    """4x4 transposed convolution, then one of stride 2 per doubling, batch norm and ReLU between, tanh at the end.

    No layer before a batch norm has a bias: its gradient would be rounding noise, which Adam would amplify.
    """

    def __init__(
        self, shape: Shape, widths: tuple[int, ...], *, kernel: int, last_kernel: int, last_bias: bool, momentum: float
    ) -> None:
        super().__init__()
        layers = [nn.ConvTranspose2d(shape.code_dim, widths[0], 4, bias=False)]
        layers += [_doubling(a, b, kernel, bias=False) for a, b in itertools.pairwise(widths)]
        self.convolutions = nn.ModuleList(layers)
        self.norms = nn.ModuleList([MaskedBatchNorm(width, momentum) for width in widths])
        self.output = _doubling(widths[-1], shape.channels, last_kernel, bias=last_bias)

    @classmethod
    def seed(cls, config: DecoderConfig, shape: Shape, seed: int) -> Self:
        """The seed's: kernels of `kernel_size`, which it has at 5, the last of 3, Xavier's start."""
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
    def dcgan(cls, config: DecoderConfig, shape: Shape, seed: int) -> Self:
        """DCGAN's generator (Radford et al., arXiv 1511.06434): kernels of 4, no bias, weights from N(0, 0.02^2)."""
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

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
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


def _residual(config: DecoderConfig, shape: Shape, _: int) -> nn.Module:
    return ResidualDecoder(
        code_dim=shape.code_dim,
        channels=shape.channels,
        widths=config.widths(shape.resolution),
        modulation=config.modulation,
    )


KINDS: Mapping[str, Any] = {
    "seed": TransposedDecoder.seed,
    "dcgan": TransposedDecoder.dcgan,
    "residual": _residual,
}


def _imported(kind: str, shape: Shape) -> nn.Module:
    """The user's own decoder. Its batch norms are replaced by ones that are exact at every world size."""
    module_name, _, class_name = kind.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
        decoder = mask_batch_norms(make(**shape._asdict()))
        with torch.no_grad():
            made = tuple(decoder.eval()(torch.zeros(2, shape.code_dim)).shape)
    except Exception as error:  # Whatever the user's code raises.
        raise UserError(f"decoder.kind={kind}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    expected = (2, shape.channels, shape.resolution, shape.resolution)
    if made != expected:
        raise UserError(f"decoder.kind={kind}: makes {made} of two codes where {expected} is needed")
    return decoder.train()


def decoder_record(config: DecoderConfig, shape: Shape) -> dict[str, Any]:
    """What `decoder.json` says: all that makes a decoder of the same kind."""
    values = dataclasses.asdict(config)
    # Those in use, whatever the rule for them becomes.
    return {"config": {**values, "filters": list(config.filters or config.own(shape.resolution))}, **shape._asdict()}


def settings_of_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a decoder as a record of any version has them, in the terms of this one."""
    # The first records name no kind: there was one.
    settings = {"kind": "seed", **values}
    if settings["kind"] != "seed":  # Others had the seed's default written beside them, without a meaning.
        settings.pop("kernel_size", None)
    return settings


def config_of_record(record: Mapping[str, Any]) -> DecoderConfig:
    """The config of what `decoder.json` holds."""
    values = settings_of_record(record["config"])
    config = DecoderConfig(**{**values, "filters": tuple(values["filters"])})
    if config.kind not in KINDS or config.filters:
        return config
    # Before the rule, which names what it chose.
    doublings = _doublings(record["resolution"])
    dcgan = tuple(min(64 << level, 1024) for level in reversed(range(doublings)))
    return dataclasses.replace(config, filters=dcgan if config.kind == "dcgan" else _BEFORE_THE_RULE[:doublings])


def decoder_of_record(record: Mapping[str, Any]) -> nn.Module:
    """The decoder that `decoder.json` describes, in its initial state."""
    return make_decoder(config_of_record(record), **{name: record[name] for name in Shape._fields})


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Cost(NamedTuple):
    """What a decoder takes."""

    parameters: int
    flops: int
    """Floating-point operations of decoding one image, a multiplication and an addition being two; a step of training
    takes three times as many: forward, by the inputs, by the weights"""
    activations: int
    """Values that the backward pass needs of each image"""


_COUNTED = 7
"""Images of the batch that is counted: a number that no weight has as its first size"""


def cost(decoder: nn.Module, code_dim: int) -> Cost | None:
    """Count on PyTorch's meta device: nothing is computed. `decoder` is left there.

    None for a decoder of the user's that cannot run there.
    """
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim > 1 and len(tensor) == _COUNTED:  # Of the batch; weights and statistics are not.
            held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    decoder = decoder.to("meta").train()
    codes = torch.zeros(_COUNTED, code_dim, device="meta")
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        try:
            decoder(codes)
        except Exception:  # Whatever the user's code raises: it trains all the same.
            return None
    activations = sum(tensor.numel() for tensor in held.values()) // _COUNTED
    return Cost(num_parameters(decoder), counter.get_total_flops() // _COUNTED, activations)
