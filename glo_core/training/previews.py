"""Pictures of a training under way: the same images and the same random codes each time."""

import numpy as np
import torch

from glo_core.checkpoint.layout import Position
from glo_core.codes.projection import PROJECTIONS
from glo_core.common.counter_rng import key64, normal
from glo_core.sampling.generate import decode_codes
from glo_core.sampling.image_grid import grid, in_rows
from glo_core.training.epoch_batches import EpochBatches, refresh_statistics
from glo_core.training.learner import Learner

SHOWN = 16
"""Images in a row of a training picture"""


def show_previews(learner: Learner, epochs: EpochBatches, position: Position) -> None:
    """Hand the runtime two pictures; every rank calls this, and rank 0 draws.

    `training_reconstructions` has the first images of lane 0 above their reconstructions, `training_samples` the
    decoded images of 32 random codes, which are the same each time.
    """
    config, runtime, table = learner.config, learner.runtime, learner.table
    decoder = learner.ema.decoder
    refresh_statistics(learner, epochs)
    if runtime.rank:
        return
    count = int(min(SHOWN, epochs.first[1])) or min(SHOWN, len(epochs.images.ids))
    originals = epochs.images.take(np.arange(count)).cpu().numpy()
    pairs = [originals, decode_codes(decoder, table.codes(slice(0, count)))]
    runtime.picture(position.images_seen, "training_reconstructions", grid(pairs))
    # N(0, I / dim) has a mean squared norm of 1.
    noise = torch.from_numpy(normal(key64("shown", config.seed), np.arange(2 * SHOWN), config.code.dim))
    codes = PROJECTIONS[config.code.projection](noise / config.code.dim**0.5)
    runtime.picture(position.images_seen, "training_samples", grid(in_rows(decode_codes(decoder, codes), SHOWN)))
