"""What a training takes where nothing was said: from the number of images and their size.

`docs/training.md` states the rule, LOG.md the measurements that it rests on.
"""

import dataclasses
from typing import TypeVar

from glo_core.training.config import TrainConfig

ConfigT = TypeVar("ConfigT", bound=TrainConfig)

_IMAGES_PER_PLACE = 1024
"""Images for each place in a batch: small batches learn more of each image, large ones are faster"""
_IMAGES_TO_SEE, _GROWTH = 15_000, 0.4
"""Of one image, and the power of the number of images that it grows with: 154 epochs of 2,059 images, 20 of 60,000"""


def completed(config: ConfigT, num_images: int, resolution: int) -> ConfigT:
    """`config` with a batch size, a code dimension and widths of the decoder where it has none."""
    # The largest power of two up to N / 1024, but 16 at least and 256 at most.
    batch_size = config.batch_size or 1 << min(max(num_images // _IMAGES_PER_PLACE, 16), 256).bit_length() - 1
    dim = config.code.dim or min(max(resolution, 16), 128)
    return dataclasses.replace(
        config,
        batch_size=batch_size,
        code=dataclasses.replace(config.code, dim=dim),
        decoder=dataclasses.replace(
            config.decoder, filters=config.decoder.filters or config.decoder.default_widths(resolution)
        ),
    )


def images_to_see(num_images: int) -> int:
    """How long to train: an epoch at least, and fewer epochs the more images there are."""
    return max(num_images, round(_IMAGES_TO_SEE * num_images**_GROWTH))
