"""Initial values of the codes of one rank."""

from pathlib import Path

import torch

from glo_core.codes.pca_init import CHUNK, PcaInit, random_codes
from glo_core.codes.table import CodeTable, Table, raw_name
from glo_core.codes.windowed_table import WindowedTable
from glo_core.common.arrays import row_chunks
from glo_core.common.errors import ConfigError
from glo_core.common.files import write_bytes
from glo_core.common.runtime import Runtime
from glo_core.data.image_source import ImageSource
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.learner import DTYPES


def init_table(epochs: EpochBatches, runtime: Runtime, run: Path | None, scratch: Path | None) -> Table:
    """The code table of this rank with its initial codes. Every rank calls this.

    Args:
        epochs: the images and lanes of this rank.
        runtime: this rank and its connection to the others.
        run: directory of the run, which keeps the principal components as `pca_init.safetensors`; None keeps nothing.
        scratch: directory on a local disk for a `WindowedTable`.

    Raises:
        ConfigError: if a window has fewer rows than a lane has in a step, or `scratch` does not take the files.
        CheckpointError: if the run's `pca_init.safetensors` is not whole.
    """
    config, images = epochs.config, epochs.images
    code, dtype = config.code, DTYPES[config.precision]
    table: Table
    if config.window is not None and config.window < epochs.rows_per_step:
        raise ConfigError(
            f"`window` (={config.window}) must be at least {epochs.rows_per_step}, the rows of a lane in a step of "
            f"`batch_size` (={config.batch_size}), or all"
        )
    if config.window is not None and epochs.sizes.max() > config.window:
        table = WindowedTable(
            code, images.ids, epochs.first, config.window, device=runtime.device, dtype=dtype, scratch=scratch
        )
    else:
        raw = torch.empty(len(images.ids), code.dim, device=runtime.device, dtype=dtype)
        table = CodeTable(code, images.ids, raw)
    pca_init = _pca_init(config, images, runtime, run) if code.init == "pca" else None
    for rows in row_chunks(len(images.ids), CHUNK):
        if pca_init is None:
            values = random_codes(code, images.ids[rows], config.seed)
        else:
            values = pca_init.codes(code, images, rows, config.seed)
        table.write(int(rows[0]), {raw_name(code): values})
    return table


def _pca_init(config: ResolvedTrainConfig, images: ImageSource, runtime: Runtime, run: Path | None) -> PcaInit:
    """The principal components that the run keeps; those of the images, if it keeps none yet."""
    path = run / "pca_init.safetensors" if run is not None else None
    # All ranks must take the same branch: rank 0 decides.
    if path is not None and runtime.all_gather(path.exists())[0]:
        return PcaInit.load(path)
    pca_init = PcaInit.fit(images, config.code.dim, runtime)
    if path is not None and runtime.rank == 0:
        write_bytes(path, pca_init.to_bytes())
    return pca_init
