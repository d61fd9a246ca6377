"""Growth: codes for images that were appended after training.

initial and learned codes of old rows -> ridge regression -> codes of the new rows, from their initial codes ->
a few steps on these codes alone, with the decoder frozen -> the run keeps them until a checkpoint has them
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from glo_core.codes.ridge import RidgeRegression, apply_ridge
from glo_core.codes.table import CodeTable
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.counter_rng import key64, uniform
from glo_core.common.in_step import InStep
from glo_core.common.shapes import Float, Tensor
from glo_core.data.image_source import ImageSource
from glo_core.losses.pixel_ranges import to_target
from glo_core.training.fitted_codes import FittedCodes
from glo_core.training.init_codes import InitialCodes
from glo_core.training.learner import Learner

FIT_STEPS = 50
"""Steps on each new code before training continues"""
SAMPLE = 65_536
"""Old rows, of all ranks, that the regression is fitted to: their images are read again"""
_CHUNK = 256
"""Rows that are fitted together"""


class Growth:
    """The rows of this rank when a checkpoint is restored: those that it holds, and the new ones."""

    def __init__(self, num_images: int) -> None:
        """Begin without rows; all ranks together have `num_images` images."""
        self._share = SAMPLE / max(num_images, 1)
        self._new: list[Int64Array] = []
        self._sample: list[tuple[Int64Array, Tensor]] = []
        """Rows and their learned raw codes"""
        self.removed = 0
        """Rows of the checkpoint whose images this rank's shards no longer hold"""

    @property
    def new_rows(self) -> Int64Array:
        """Rows that the checkpoint does not hold, int64 `[n]`, ascending."""
        return np.concatenate([*self._new, np.empty(0, np.int64)]).astype(np.int64)

    def add(
        self,
        old_rows: Int[Int64Array, " n"],
        ids: Int[Int64Array, " n"],
        learned: Float[Tensor, "n dim"],
        new_rows: Int[Int64Array, " m"],
    ) -> None:
        """Add a shard: old rows, their image ids and learned raw codes `[n, dim]`, and the new rows, int64 each."""
        # Which rows are in the sample depends on their ids alone: it is the same one at every world size.
        chosen = np.flatnonzero(uniform(key64("growth"), ids) < self._share)
        self._sample.append((old_rows[chosen], learned[torch.from_numpy(chosen)]))
        self._new.append(new_rows)

    def count(self, learner: Learner) -> int:
        """The number of new rows of all ranks. Every rank calls this."""
        count = torch.tensor(float(len(self.new_rows)), device=learner.runtime.device)
        return int(learner.runtime.all_reduce_sum(count))

    def fit_new_rows(
        self, learner: Learner, images: ImageSource, initial: InitialCodes, fitted: FittedCodes, images_seen: int
    ) -> int:
        """Give every new row, which has its initial code, a fitted one; returns their number on this rank.

        Every rank calls this, if any rank has a new row.

        Raises:
            StopRequestedError: on every rank, if somebody asked to stop; `fitted` has what was done until then.
        """
        # A random initial code says nothing about its image: only the steps can fit it.
        weights = self._regression(learner, initial) if learner.config.code.init == "pca" else None
        rows, table = self.new_rows, learner.table
        chunks = []
        for chunk in table.chunks(rows, _CHUNK):
            raw = fitted.load(table.ids[chunk])
            if raw is None:
                chunks.append(chunk)
            else:
                slots = table.fetch(chunk)
                table.resident.raw[slots] = raw.to(table.resident.raw)
        steps = _steps(learner, images, chunks, weights, fitted)
        for _ in InStep(learner.runtime, "growth", images_seen).over(steps, FIT_STEPS * len(chunks)):
            pass
        return len(rows)

    def _regression(self, learner: Learner, initial: InitialCodes) -> Float[Tensor, "inputs_and_one dim"]:
        """The weights that map initial codes to learned ones, from the sample of all ranks."""
        regression = RidgeRegression(learner.config.code.dim)
        shards = [(rows, learned) for rows, learned in self._sample if len(rows)]
        for rows, learned in InStep(learner.runtime, "regression").over(shards, len(shards)):
            for start in range(0, len(rows), _CHUNK):
                part = slice(start, start + _CHUNK)
                regression.add(initial.of(rows[part]), learned[part])
        return regression.solve(learner.runtime)


def _steps(
    learner: Learner,
    images: ImageSource,
    chunks: Sequence[Int64Array],
    weights: Float[Tensor, "inputs_and_one dim"] | None,
    fitted: FittedCodes,
) -> Iterator[None]:
    """Fit the rows of one chunk after the other; yields after each of its `FIT_STEPS` steps.

    A chunk's initial codes are mapped by `weights`; the steps on them are taken under the EMA decoder.
    """
    config, table = learner.config, learner.table
    for rows in chunks:
        slots = table.fetch(rows)
        raw = table.resident.raw[slots]
        if weights is not None:
            raw = apply_ridge(raw, weights)
        codes_of_chunk = CodeTable(config.code, table.ids[rows], raw.clone())
        target = to_target(images.take(rows).to(raw.device), raw.dtype)
        all_rows = torch.arange(len(rows), device=raw.device)
        for step in range(FIT_STEPS):
            codes = codes_of_chunk.raw.clone().requires_grad_()
            losses = learner.loss(learner.ema.decoder(codes_of_chunk.project(codes)), target)
            (gradient,) = torch.autograd.grad(losses.sum(), codes)
            codes_of_chunk.update(all_rows, gradient, config.code.learning_rate)
            if step + 1 == FIT_STEPS:
                # Only the codes are kept: the rows' optimizer state begins with training.
                table.resident.raw[slots] = codes_of_chunk.raw
                fitted.save(table.ids[rows], codes_of_chunk.raw)
            yield
