"""`decoder.json`: all that makes a decoder of the same kind."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import DecoderConfig, Shape


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


def decoder_of_record(record: Mapping[str, Any]) -> nn.Module:
    """The decoder that `decoder.json` describes, in its initial state."""
    return make_decoder(config_of_record(record), **{name: record[name] for name in Shape._fields})
