"""A run on disk as a `Model`."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.checkpoint.reader import Checkpoint
from glo_core.checkpoint.run_dataset import find_dataset
from glo_core.common.arrays import Int64Array
from glo_core.common.errors import CheckpointError, UserError
from glo_core.data.dataset import Dataset
from glo_core.data.image_source import ImageSource, TensorImages, image_tensor
from glo_core.model import Model


def load(
    run: str | Path,
    *,
    images_seen: int | None = None,
    images: Any = None,
    decoder: torch.nn.Module | str | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """Open a checkpoint of a run, finished or not.

    Args:
        run: its directory; a leading ~ is the home directory.
        images_seen: of the checkpoint, which is the newest by default.
        images: the training images of a run that was trained on a tensor, in the same order; only `images`,
            `neighbors` and `invert` use them. A run that was trained on a dataset has recorded where it is; give the
            `Dataset` if it has moved without the run.
        decoder: of a run whose decoder is of your own: the module, or the name package.module:Class of its class.
        device: where to decode; by default the GPU if there is one.

    Raises:
        CheckpointError: if there is no run, no checkpoint, or it is damaged; or if its decoder is of your own and
            `decoder` is not given.
        UserError: if `images` are not those of the training.
    """
    directory = Path(run).expanduser()
    checkpoint = _open(directory, images_seen)
    module, kind = (None, decoder) if isinstance(decoder, str) else (decoder, None)
    images = find_dataset(directory, checkpoint.snapshot) if images is None else images
    source, dataset = (None, None) if images is None else training_images(images, checkpoint)
    return Model(
        checkpoint.decoder(module, kind).to(device or default_device()),
        functools.partial(_codes, checkpoint, dataset),
        projection=checkpoint.projection,
        images_seen=checkpoint.position.images_seen,
        images=source,
        dataset=dataset,
        run=directory,
    )


def _codes(checkpoint: Checkpoint, dataset: Dataset | None) -> tuple[Int64Array, Any]:
    """Ids (int64 `[n]`, ascending) and codes (`[n, dim]`) of a checkpoint, without images that were removed since."""
    ids, codes = checkpoint.codes()
    if dataset is None:
        return ids, codes
    live = ~np.isin(ids, dataset.removed_by_now())
    return ids[live], codes[live]


def training_images(images: Any, checkpoint: Checkpoint) -> tuple[ImageSource, Dataset | None]:
    """The images that `checkpoint` was trained on, out of those of the caller; and their dataset, if they have one.

    Raises:
        UserError: if `images` are others.
    """
    if isinstance(images, Dataset):
        dataset = images.at(checkpoint.snapshot)
        return dataset.images(), dataset
    source = image_source(images, checkpoint.code_shards)
    if source.snapshot != checkpoint.snapshot:
        raise UserError(
            f"`images` ({len(source.ids)}) are not those that {checkpoint.directory} was trained on; give the same "
            "ones in the same order"
        )
    return source, None


def image_source(images: Any, code_shards: int = 32) -> ImageSource:
    """`images` of a caller as an `ImageSource`: a tensor, a NumPy array, or a source already.

    Raises:
        ConfigError: if they are something else, or have another dtype or shape.
    """
    if isinstance(images, torch.Tensor | np.ndarray) or not hasattr(images, "code_shards"):
        return TensorImages(image_tensor(images), code_shards=code_shards)
    source: ImageSource = images
    return source


def default_device() -> str:
    """The GPU if PyTorch finds one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _open(run: Path, images_seen: int | None) -> Checkpoint:
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such directory; give the run directory of a training")
    if images_seen is None:
        return Checkpoint.latest(run)
    names = [path.name for path in committed_checkpoints(run)]
    if str(images_seen) not in names:
        raise CheckpointError(f"{run}: no checkpoint at {images_seen} images; it has {', '.join(names) or 'none'}")
    return Checkpoint(run / "checkpoints" / str(images_seen))
