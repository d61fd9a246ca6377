"""Growth: codes for images that were appended after training.

initial and learned codes of the old rows -> ridge regression -> codes of the new rows, from their initial codes ->
a few steps on these codes alone, with the decoder frozen
"""

import numpy as np
import torch

from glo_core.codes.ridge import RidgeRegression, apply_ridge
from glo_core.codes.table import CodeTable
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.shapes import Float, Tensor
from glo_core.data.image_source import ImageSource
from glo_core.losses.pixel_ranges import to_target
from glo_core.training.learner import Learner

FIT_STEPS = 50
"""Steps on each new code before training continues"""
_CHUNK = 256
"""New rows that are fitted together"""


class Growth:
    """The rows of this rank when a checkpoint is restored: those that it holds, and the new ones."""

    def __init__(self, dim: int) -> None:
        """Begin without rows; codes have `dim` dimensions."""
        self.regression = RidgeRegression(dim)
        self._new: list[Int64Array] = []
        self.removed = 0
        """Rows of the checkpoint whose images this rank's shards no longer hold"""

    def add(
        self, initial: Float[Tensor, "n dim"], learned: Float[Tensor, "n dim"], new_rows: Int[Int64Array, " m"]
    ) -> None:
        """Add old rows, by their initial and learned raw codes `[n, dim]`, and the numbers of new rows, int64 `[m]`."""
        self.regression.add(initial, learned)
        self._new.append(new_rows)

    def fit_new_rows(self, learner: Learner, images: ImageSource) -> int:
        """Give every new row a fitted code; returns their number on this rank. Every rank calls this."""
        runtime, config = learner.runtime, learner.config
        rows = np.concatenate([*self._new, np.empty(0, np.int64)]).astype(np.int64)
        count = runtime.all_reduce_sum(torch.tensor(float(len(rows)), device=runtime.device))
        if not count:
            return 0
        # A random initial code says nothing about its image: only the steps can fit it.
        weights = self.regression.solve(runtime) if config.code.init == "pca" else None
        for chunk in learner.table.chunks(rows, _CHUNK):
            _fit(learner, images, chunk, weights)
        return len(rows)


def _fit(
    learner: Learner,
    images: ImageSource,
    rows: Int[Int64Array, " n"],
    weights: Float[Tensor, "inputs_and_one dim"] | None,
) -> None:
    """Map the initial codes of `rows` by `weights`, and take `FIT_STEPS` steps on them under the EMA decoder."""
    config, table = learner.config, learner.table
    slots = table.fetch(rows)
    raw = table.resident.raw[slots]
    if weights is not None:
        raw = apply_ridge(raw, weights)
    fitted = CodeTable(config.code, table.ids[rows], raw.clone())
    target = to_target(images.take(rows).to(raw.device), raw.dtype)
    all_rows = torch.arange(len(rows), device=raw.device)
    for _ in range(FIT_STEPS):
        codes = fitted.raw.clone().requires_grad_()
        losses = learner.loss(learner.ema.decoder(fitted.project(codes)), target)
        (gradient,) = torch.autograd.grad(losses.sum(), codes)
        fitted.update(all_rows, gradient, config.code.learning_rate)
    # Only the codes are kept: the rows' optimizer state begins with training.
    table.resident.raw[slots] = fitted.raw
