"""The values of settings that are auto: functions of the number of images and of their size.

`docs/training.md` states each rule; the log has the measurements behind it.
"""

import dataclasses
from typing import Any

from glo_core.codes.config import ResolvedCodeConfig
from glo_core.decoder.config import ResolvedDecoderConfig
from glo_core.training.config import ResolvedTrainConfig, TrainConfig

_IMAGES_PER_BATCH_ROW = 1024
"""Images of the dataset for each image of a batch: small batches learn more of each image, large ones are faster"""
_IMAGES_TO_SEE, _GROWTH = 15_000, 0.4
"""Images seen = 15,000 N^0.4 for N images: 154 epochs of 2,059 images, 20 of 60,000"""


def resolve_defaults(
    config: TrainConfig, num_images: int, resolution: int, earlier: ResolvedTrainConfig | None = None
) -> ResolvedTrainConfig:
    """The recipe of a training on `num_images` images of `resolution` px, with a value for every setting.

    A setting that `config` leaves auto has the value of `earlier`, the recipe of the same run; without one it follows
    the rules. A resolved config is returned as it is.
    """
    if isinstance(config, ResolvedTrainConfig):
        return config
    fields, code, decoder = _fields(config, TrainConfig), _fields(config.code), _fields(config.decoder)
    chosen_by_run = None if earlier is None else (earlier.batch_size, earlier.code.dim, earlier.decoder.filters)
    # The largest power of two up to N / 1024, but 16 at least and 256 at most.
    batch_size = 1 << min(max(num_images // _IMAGES_PER_BATCH_ROW, 16), 256).bit_length() - 1
    dim = min(max(resolution, 16), 128)
    batch_size, dim, filters = chosen_by_run or (batch_size, dim, config.decoder.default_widths(resolution))
    code |= {"dim": config.code.dim or dim}
    decoder |= {"filters": config.decoder.filters or filters}
    resolved = {"code": ResolvedCodeConfig(**code), "decoder": ResolvedDecoderConfig(**decoder)}
    return ResolvedTrainConfig(**fields | resolved | {"batch_size": config.batch_size or batch_size})


def _fields(config: Any, owner: type | None = None) -> dict[str, Any]:
    """The values of the fields that the class `owner` of `config` declares or inherits."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(owner or type(config))}


def images_to_see(num_images: int) -> int:
    """The length of a training on `num_images` images, in images seen.

    It is an epoch at least, and has fewer epochs the more images there are.
    """
    return max(num_images, round(_IMAGES_TO_SEE * num_images**_GROWTH))
