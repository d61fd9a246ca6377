"""`make_decoder` makes every kind of decoder: code -> image, at any resolution 4 * 2^n from 8 px on."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from glo_core.common.errors import UserError
from glo_core.decoder.batch_norm import mask_batch_norms
from glo_core.decoder.config import DecoderConfig, Shape
from glo_core.decoder.residual import ResidualDecoder
from glo_core.decoder.transposed import TransposedDecoder


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
        if config.kind in _MAKERS:
            return _MAKERS[config.kind](config, shape, seed)
        return _imported(config.kind, shape)


def _residual(config: DecoderConfig, shape: Shape, _: int) -> nn.Module:
    return ResidualDecoder(
        code_dim=shape.code_dim,
        channels=shape.channels,
        widths=config.widths(shape.resolution),
        modulation=config.modulation,
    )


_MAKERS: Mapping[str, Any] = {
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
        raise UserError(f"`decoder.kind` (={kind}): {type(error).__name__}: {' '.join(str(error).split())}") from error
    expected = (2, shape.channels, shape.resolution, shape.resolution)
    if made != expected:
        raise UserError(f"`decoder.kind` (={kind}): makes {made} of two codes where {expected} is needed")
    return decoder.train()
