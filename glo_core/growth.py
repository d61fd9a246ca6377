"""New images on a trained model: their codes start where the model expects them, and are fitted first.

start codes of the old rows, and what they became -> ridge regression -> start of the new rows -> a few steps on
these rows alone, the decoder as it is
"""

import numpy as np
import torch

from glo_core.codes import CodeTable
from glo_core.dataset import ImageSource
from glo_core.hashing import Int64Array
from glo_core.losses import to_target
from glo_core.runtime import Runtime
from glo_core.step import Learner

FIT_STEPS = 50
"""Steps on each new code before the decoder is trained with it"""
RIDGE = 1e-3
"""Penalty of the regression, in units of the mean variance of the start codes"""
_CHUNK = 256
"""New rows that are fitted together"""


class Growth:
    """What restoring a checkpoint met: rows that it holds, before and after; and rows that are new."""

    def __init__(self, dim: int) -> None:
        # [X 1]^T [X 1 Y] over the old rows: X start codes, Y learned ones.
        self._products = torch.zeros(dim + 1, 2 * dim + 1, dtype=torch.float64)
        self._new: list[Int64Array] = []

    def meet(self, start: torch.Tensor, learned: torch.Tensor, new_rows: Int64Array) -> None:
        """Add old rows by their start codes and learned codes, `[n, dim]`, and the rows (int64) that are new."""
        one = torch.ones(len(start), 1, dtype=torch.float64)
        left = torch.cat([start.double(), one], dim=1)
        self._products += left.T @ torch.cat([left, learned.double()], dim=1)
        self._new.append(new_rows)

    def regression(self, runtime: Runtime) -> torch.Tensor:
        """The map from start codes and a one to learned codes over the rows of all ranks, float64 `[dim + 1, dim]`."""
        sums = runtime.all_sum(self._products.to(runtime.device)).cpu()
        size = len(sums)
        gram, target = sums[:, :size], sums[:, size:]
        penalty = RIDGE * gram.diagonal()[:-1].mean() * torch.eye(size, dtype=torch.float64)
        penalty[-1, -1] = 0  # The mean is not shrunk.
        # The pseudo-inverse: without old rows, or with constant ones, there is nothing to regress on.
        return torch.linalg.pinv(gram + penalty, hermitian=True) @ target

    def start_new_rows(self, learner: Learner, images: ImageSource) -> int:
        """Give every new row its start; returns their number on this rank. Every rank calls this."""
        runtime, config = learner.runtime, learner.config
        rows = np.concatenate([*self._new, np.empty(0, np.int64)]).astype(np.int64)
        count = runtime.all_sum(torch.tensor(float(len(rows)), device=runtime.device))
        if not count:
            return 0
        # Random codes say nothing of their images: only the fit tells where they belong.
        weights = self.regression(runtime) if config.code.start == "pca" else None
        for some in learner.table.runs(rows, _CHUNK):
            _fit(learner, images, some, weights)
        return len(rows)


def _fit(learner: Learner, images: ImageSource, rows: Int64Array, weights: torch.Tensor | None) -> None:
    """Start some rows by `weights`, and take `FIT_STEPS` steps on them under the averaged decoder."""
    config, table = learner.config, learner.table
    places = table.bring(rows)
    raw = table.held.raw[places]
    if weights is not None:
        mapped = torch.cat([raw.double(), raw.new_ones(len(raw), 1).double()], dim=1) @ weights.to(raw.device)
        # A row that the regression sends to zero has no direction: it keeps its start.
        alive = mapped.norm(dim=1, keepdim=True) > 1e-6
        raw = torch.where(alive, mapped, raw.double()).to(raw)
    fitted = CodeTable(config.code, table.ids[rows], raw.clone())
    target = to_target(images.gather(rows).to(raw.device), raw.dtype)
    every = torch.arange(len(rows), device=raw.device)
    for _ in range(FIT_STEPS):
        codes = fitted.raw.clone().requires_grad_()
        losses = learner.loss(learner.averaged.decoder(fitted.project(codes)), target)
        (gradient,) = torch.autograd.grad(losses.sum(), codes)
        fitted.update(every, gradient, config.code.learning_rate)
    # Only the codes: their optimizer's state begins with training.
    table.held.raw[places] = fitted.raw
