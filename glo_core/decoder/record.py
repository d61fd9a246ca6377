"""`decoder.json`: all that makes a decoder of the same kind."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from glo_core.decoder.build import make_decoder, require_allowed_kind
from glo_core.decoder.config import MODULE, DecoderConfig, Shape


def decoder_record(config: DecoderConfig, shape: Shape) -> dict[str, Any]:
    """What `decoder.json` says: all that makes a decoder of the same kind."""
    values = dataclasses.asdict(config)
    # Those in use, whatever the rule for them becomes.
    return {
        "config": {**values, "filters": list(config.filters or config.default_widths(shape.resolution))},
        **shape._asdict(),
    }


def config_of_record(record: Mapping[str, Any]) -> DecoderConfig:
    """The config of what `decoder.json` holds."""
    return DecoderConfig(**{**record["config"], "filters": tuple(record["config"]["filters"])})


def decoder_of_record(
    record: Mapping[str, Any], module: nn.Module | None = None, allow_kind: str | None = None
) -> nn.Module:
    """The decoder that `decoder.json` describes, in its initial state.

    Args:
        module: the decoder itself, where the record's kind is one of the user's own.
        allow_kind: the class of the user's that may be imported, as package.module:Class.

    Raises:
        CheckpointError: if the record names a class that neither of the two gives.
    """
    config = config_of_record(record)
    require_allowed_kind(config.kind, module, allow_kind)
    if module is not None:
        config = DecoderConfig(kind=MODULE)
    return make_decoder(config, **{name: record[name] for name in Shape._fields}, module=module)
