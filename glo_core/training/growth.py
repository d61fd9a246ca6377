"""New images on a trained model: their codes start where the model expects them, and are fitted first.

start codes of the old rows, and what they became -> ridge regression -> start of the new rows -> a few steps on
these rows alone, the decoder as it is
"""

import numpy as np
import torch

from glo_core.codes.ridge import RidgeRegression, apply_ridge
from glo_core.codes.table import CodeTable
from glo_core.common.arrays import Int64Array
from glo_core.common.shapes import Float, Tensor
from glo_core.data.image_source import ImageSource
from glo_core.losses.pixel_ranges import to_target
from glo_core.training.learner import Learner

FIT_STEPS = 50
"""Steps on each new code before the decoder is trained with it"""
_CHUNK = 256
"""New rows that are fitted together"""


class Growth:
    """What restoring a checkpoint met: rows that it holds, before and after; and rows that are new."""

    def __init__(self, dim: int) -> None:
        self.regression = RidgeRegression(dim)
        self._new: list[Int64Array] = []
        self.removed = 0
        """Rows of the checkpoint whose images this rank's shards no longer hold"""

    def meet(self, start: Float[Tensor, "n dim"], learned: Float[Tensor, "n dim"], new_rows: Int64Array) -> None:
        """Add old rows by their start codes and learned codes, `[n, dim]`, and the rows (int64) that are new."""
        self.regression.add(start, learned)
        self._new.append(new_rows)

    def start_new_rows(self, learner: Learner, images: ImageSource) -> int:
        """Give every new row its start; returns their number on this rank. Every rank calls this."""
        runtime, config = learner.runtime, learner.config
        rows = np.concatenate([*self._new, np.empty(0, np.int64)]).astype(np.int64)
        count = runtime.all_reduce_sum(torch.tensor(float(len(rows)), device=runtime.device))
        if not count:
            return 0
        # Random codes say nothing of their images: only the fit tells where they belong.
        weights = self.regression.solve(runtime) if config.code.init == "pca" else None
        for some in learner.table.chunks(rows, _CHUNK):
            _fit(learner, images, some, weights)
        return len(rows)


def _fit(learner: Learner, images: ImageSource, rows: Int64Array, weights: Float[Tensor, "dim+1 dim"] | None) -> None:
    """Start some rows by `weights`, and take `FIT_STEPS` steps on them under the averaged decoder."""
    config, table = learner.config, learner.table
    slots = table.fetch(rows)
    raw = table.resident.raw[slots]
    if weights is not None:
        raw = apply_ridge(raw, weights)
    fitted = CodeTable(config.code, table.ids[rows], raw.clone())
    target = to_target(images.take(rows).to(raw.device), raw.dtype)
    every = torch.arange(len(rows), device=raw.device)
    for _ in range(FIT_STEPS):
        codes = fitted.raw.clone().requires_grad_()
        losses = learner.loss(learner.ema.decoder(fitted.project(codes)), target)
        (gradient,) = torch.autograd.grad(losses.sum(), codes)
        fitted.update(every, gradient, config.code.learning_rate)
    # Only the codes: their optimizer's state begins with training.
    table.resident.raw[slots] = fitted.raw
