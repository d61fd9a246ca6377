"""The values of settings that are auto: functions of the number of images and of their size.

`docs/training.md` states each rule; the log has the measurements behind it.
"""

import dataclasses
import math
from typing import Any

from glo_core.codes.config import ResolvedCodeConfig
from glo_core.common.errors import ConfigError
from glo_core.decoder.config import ResolvedDecoderConfig
from glo_core.training.config import ResolvedTrainConfig, TrainConfig

_IMAGES_PER_BATCH_ROW = 1024
"""Images of the dataset for each image of a batch: small batches learn more of each image, large ones are faster"""
_IMAGES_TO_SEE, _GROWTH = 15_000, 0.4
"""Images seen = 15,000 N^0.4 for N images: 154 epochs of 2,059 images, 20 of 60,000"""
_NORM_GROUP_ROWS = 32
"""Rows of a group for `decoder.norm_group` auto, where the batch has as many"""


def resolve_defaults(
    config: TrainConfig,
    num_images: int,
    resolution: int,
    earlier: ResolvedTrainConfig | None = None,
    *,
    code_shards: int = 32,
) -> ResolvedTrainConfig:
    """The recipe of a training on `num_images` images of `resolution` px, with a value for every setting.

    A setting that `config` leaves auto has the value of `earlier`, the recipe of the same run; without one it follows
    the rules. A resolved config is returned as it is.

    Args:
        config: what was asked for.
        num_images: of the dataset.
        resolution: side of the images in pixels.
        earlier: recipe of the same run.
        code_shards: S of the dataset.

    Raises:
        ConfigError: if `decoder.norm_group` is not a number of whole lanes.
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
    batch_size = config.batch_size or batch_size
    decoder |= {"norm_group": _norm_group(config, batch_size, code_shards, earlier)}
    resolved = {"code": ResolvedCodeConfig(**code), "decoder": ResolvedDecoderConfig(**decoder)}
    return ResolvedTrainConfig(**fields | resolved | {"batch_size": batch_size})


def _norm_group(config: TrainConfig, batch_size: int, code_shards: int, earlier: ResolvedTrainConfig | None) -> int:
    """Rows of a norm group: as `config` has it, as in the same run, or by the rule."""
    rows = config.decoder.norm_group
    if rows is None and earlier is not None and earlier.batch_size == batch_size:
        rows = earlier.decoder.norm_group
    if rows is None:
        return _default_norm_group(batch_size, code_shards)
    allowed = _allowed_norm_groups(batch_size, code_shards)
    if rows not in allowed:
        raise ConfigError(
            f"`decoder.norm_group` (={rows}) must be whole lanes, as many in each group: "
            f"{', '.join(map(str, allowed))} for `batch_size` {batch_size} and {code_shards} code shards, or auto"
        )
    return rows


def _fields(config: Any, owner: type | None = None) -> dict[str, Any]:
    """The values of the fields that the class `owner` of `config` declares or inherits."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(owner or type(config))}


def images_to_see(num_images: int) -> int:
    """The length of a training on `num_images` images, in images seen.

    It is an epoch at least, and has fewer epochs the more images there are.
    """
    return max(num_images, round(_IMAGES_TO_SEE * num_images**_GROWTH))


def _default_norm_group(batch_size: int, code_shards: int) -> int:
    """Rows of a norm group: the fewest whole lanes that make at least `_NORM_GROUP_ROWS`; else the whole batch.

    The lanes are cut into equal groups, so that only a divisor of their number will do.
    """
    return next(
        (rows for rows in _allowed_norm_groups(batch_size, code_shards) if rows >= _NORM_GROUP_ROWS), batch_size
    )


def _allowed_norm_groups(batch_size: int, code_shards: int) -> list[int]:
    """Every number of rows that a norm group can have, ascending: whole lanes, as many in each group."""
    lanes = math.gcd(code_shards, batch_size)  # L, as in `data/lanes.py`, which brings NumPy.
    rows_per_lane = batch_size // lanes
    return [count * rows_per_lane for count in range(1, lanes + 1) if lanes % count == 0]
