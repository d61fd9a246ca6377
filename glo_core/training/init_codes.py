"""The code table of one rank before training: its memory, and initial values of the rows that have no other."""

from pathlib import Path

import numpy as np
import torch

from glo_core.checkpoint.attempt import Attempt, seen_by_all
from glo_core.codes.pca_init import CHUNK, PcaInit, random_codes
from glo_core.codes.table import CodeTable, Table, raw_name
from glo_core.codes.windowed_table import WindowedTable
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.errors import ConfigError
from glo_core.common.files import write_bytes
from glo_core.common.in_step import InStep
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor
from glo_core.data.image_source import ImageSource
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.learner import DTYPES

PCA_FILE = "pca_init.safetensors"
"""In a run: the principal components that its codes start from"""


def empty_table(epochs: EpochBatches, runtime: Runtime, scratch: Path | None) -> Table:
    """The code table of this rank, every value zero.

    Args:
        epochs: the images and lanes of this rank.
        runtime: this rank and its connection to the others.
        scratch: directory on a local disk for a `WindowedTable`.

    Raises:
        ConfigError: if a window has fewer rows than a lane has in a step, or `scratch` does not take the files.
    """
    config, images = epochs.config, epochs.images
    code, dtype = config.code, DTYPES[config.precision]
    if config.window is not None and config.window < epochs.rows_per_step:
        raise ConfigError(
            f"`window` (={config.window}) must be at least {epochs.rows_per_step}, the rows of a lane in a step of "
            f"`batch_size` (={config.batch_size}), or all"
        )
    if config.window is not None and epochs.sizes.max() > config.window:
        return WindowedTable(
            code, images.ids, epochs.first, config.window, device=runtime.device, dtype=dtype, scratch=scratch
        )
    return CodeTable(code, images.ids, torch.zeros(len(images.ids), code.dim, device=runtime.device, dtype=dtype))


class InitialCodes:
    """Initial codes of the images of one rank; images are read for the rows that are asked for alone."""

    def __init__(
        self,
        config: ResolvedTrainConfig,
        images: ImageSource,
        runtime: Runtime,
        attempt: Attempt | None,
        pca_init: PcaInit | None = None,
    ) -> None:
        """Compute nothing yet.

        Args:
            config: the recipe.
            images: of this rank.
            runtime: this rank and its connection to the others.
            attempt: of this group of ranks on its run, which keeps the principal components as
                `pca_init.safetensors`; None keeps nothing.
            pca_init: the principal components of the images of all ranks, if they are ready.
        """
        self.config, self.images, self.runtime, self._attempt = config, images, runtime, attempt
        self._ready_pca_init = pca_init
        self._pca_init: PcaInit | None = None

    def prepare(self) -> None:
        """Read the principal components that the run keeps, or find those of the images. Every rank calls this.

        Raises:
            CheckpointError: if the run's `pca_init.safetensors` is not whole, or a newer attempt trains the run.
            StopRequestedError: if somebody asked to stop.
        """
        if self.config.code.init != "pca" or self._pca_init is not None:
            return
        attempt = self._attempt
        path = attempt.run / PCA_FILE if attempt is not None else None
        if path is not None and seen_by_all(self.runtime, path):
            self._pca_init = PcaInit.load(path)
            return
        self._pca_init = self._ready_pca_init or PcaInit.fit(self.images, self.config.code.dim, self.runtime)
        if attempt is not None and path is not None and self.runtime.rank == 0:
            attempt.require_current()
            write_bytes(path, self._pca_init.to_bytes())

    def of(self, rows: Int[Int64Array, " n"]) -> Float[Tensor, "n dim"]:
        """Initial raw codes of `rows` (int64 `[n]`), float64 `[n, dim]`; after `prepare`."""
        code, seed = self.config.code, self.config.seed
        if self._pca_init is None:
            return random_codes(code, self.images.ids[rows], seed)
        return self._pca_init.codes(code, self.images, rows, seed)

    def fill(self, table: Table, rows: Int[Int64Array, " n"]) -> None:
        """Give `rows` of `table` (int64 `[n]`, ascending) their initial codes. Every rank calls this.

        Raises:
            CheckpointError, StopRequestedError: as of `prepare`.
        """
        self.prepare()
        # Axis [chunk]: rows that lie within CHUNK rows of the table, so that they are read and written together.
        chunks = np.split(rows, np.flatnonzero(np.diff(rows // CHUNK)) + 1) if len(rows) else []
        name = raw_name(self.config.code)
        for chunk in InStep(self.runtime, "init").over(chunks, len(chunks)):
            first, last = int(chunk[0]), int(chunk[-1]) + 1
            raw = self.of(chunk)
            if len(chunk) < last - first:
                values, raw = raw, table.read(first, last)[name]
                raw[torch.from_numpy(chunk - first)] = values.to(raw)
            table.write(first, {name: raw})
