"""`make_decoder` makes every kind of decoder: code -> image, at any resolution 4 * 2^n from 8 px on."""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from glo_core.common.errors import CheckpointError, ConfigError, one_line
from glo_core.decoder.batch_norm import group_batch_norms
from glo_core.decoder.config import KINDS, MODULE, DecoderConfig, Shape
from glo_core.decoder.residual import ResidualDecoder
from glo_core.decoder.transposed import TransposedDecoder


def make_decoder(
    config: DecoderConfig,
    *,
    code_dim: int,
    resolution: int,
    channels: int,
    seed: int = 0,
    module: nn.Module | None = None,
) -> nn.Module:
    """A decoder in its initial state, in train mode: a function of the arguments alone.

    Its `forward` takes codes `[b, code_dim]` and returns images `[b, channels, resolution, resolution]`, -1 black and
    1 white.

    Args:
        seed: of the initial weights.
        module: the decoder of kind "module"; it is copied, and its weights are the initial ones.

    Raises:
        ConfigError: if a decoder of the user's cannot be made, or returns something else.
        ValueError: if `filters` does not fit `resolution`.
    """
    shape = Shape(code_dim, resolution, channels)
    if (config.kind == MODULE) != (module is not None):
        raise ConfigError(
            f"`decoder.kind` (={config.kind}) "
            + (
                "needs the module itself: glo.train(images, decoder=module)"
                if module is None
                else "and a module are two decoders; give one of them"
            )
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind in _MAKERS:
            return _MAKERS[config.kind](config, shape, seed)
        if module is not None:
            return _with_exact_norms(copy.deepcopy(module), shape, f"decoder={type(module).__name__}")
        return _imported(config.kind, shape)


def require_allowed_kind(kind: str, module: nn.Module | None, allow_kind: str | None) -> None:
    """Raise `CheckpointError` if a file names a decoder of `kind`, and this command does not give the same decoder.

    A file must not choose which code is run. So a class of the user's is imported only if `allow_kind`, which comes
    from the command, names it too; and a decoder that was a module comes back only by `module`.
    """
    if kind in KINDS and module is not None:
        raise CheckpointError(
            f"`decoder` (={type(module).__name__}): this run has a decoder of kind {kind}; leave it out"
        )
    if kind == MODULE and module is None:
        raise CheckpointError(
            "`decoder.kind` (=module): the decoder of this run was given as a module, which no file holds; "
            "give it again: glo.load(run, decoder=module)"
        )
    if kind not in KINDS and module is None and kind != allow_kind:
        raise CheckpointError(
            f"`decoder.kind` (={kind}): this class is imported only if your own command names it too: "
            f'`decoder_kind` {kind}, or glo.load(run, decoder="{kind}")'
        )


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
    """The decoder of the class that `kind` names as package.module:Class."""
    module_name, _, class_name = kind.partition(":")
    try:
        decoder = getattr(importlib.import_module(module_name), class_name)(**shape._asdict())
    except Exception as error:  # The user's code raises anything.
        raise ConfigError(f"`decoder.kind` (={kind}): {one_line(error)}") from error
    return _with_exact_norms(decoder, shape, f"`decoder.kind` (={kind})")


def _with_exact_norms(decoder: nn.Module, shape: Shape, name: str) -> nn.Module:
    """The user's `decoder` with batch norms that are exact at every world size, after a trial on two codes."""
    try:
        decoder = group_batch_norms(decoder)
        weight = next(decoder.parameters(), torch.zeros(()))
        with torch.no_grad():
            trial = tuple(decoder.eval()(torch.zeros(2, shape.code_dim).to(weight)).shape)
    except Exception as error:  # The user's code raises anything.
        raise ConfigError(
            f"{name}: {one_line(error)} (when called with codes [2, {shape.code_dim}]; `code.dim` sets the length)"
        ) from error
    expected = (2, shape.channels, shape.resolution, shape.resolution)
    if trial != expected:
        raise ConfigError(f"{name}: makes {trial} of two codes where {expected} is needed")
    return decoder.train()
