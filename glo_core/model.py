"""A trained model in one object: codes, reconstructions, samples, interpolations, inversion, nearest neighbors."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from glo_core.checkpoint.layout import MARK
from glo_core.checkpoint.reader import Checkpoint
from glo_core.checkpoint.run_record import read_run_record
from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.arrays import Int64Array, UInt8Array, row_chunks
from glo_core.common.counter_rng import key64, mix64
from glo_core.common.errors import ConfigError, UserError
from glo_core.common.runtime import SingleProcess
from glo_core.data.dataset import Dataset
from glo_core.data.image_source import ImageSource, TensorImages, image_tensor
from glo_core.dataset_format.manifest import find_ids
from glo_core.dataset_format.snapshots import read_snapshots
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import Inverter, images_at_once
from glo_core.evaluation.neighbors import Neighbors, nearest, places_of, take_ids
from glo_core.sampling.config import Kind
from glo_core.sampling.gaussian_prior import GaussianPrior, Moments
from glo_core.sampling.generate import decode_codes, interpolate

_CHUNK = 2048
"""Training images in memory at once"""
_LEARNED_CODES = 4096
"""Learned codes among which inversion chooses its starts"""
CodesById = tuple[Int64Array, npt.NDArray[Any]]
"""Image ids, int64 `[n]` ascending, and their codes, `[n, dim]`"""


class Model:
    """A trained model: its decoder, and the code of every training image.

    Images are named by their ids. After training on a tensor the ids are 0 to n - 1 in the order of the tensor, so
    row i of every result belongs to image i. After training on a dataset they are the ids of its manifest, ascending.
    All results are NumPy arrays: images uint8 `[n, H, W, C]`, codes `[n, code_dim]` in the precision of the training.

    Attributes:
        decoder: the EMA decoder in eval mode: codes `[b, code_dim]` to images `[b, C, H, W]` in [-1, 1].
        projection: "sphere" or "ball", where codes lie.
        images_seen: images seen in training.
    """

    def __init__(
        self,
        decoder: torch.nn.Module,
        read_codes: Callable[[], CodesById],
        *,
        projection: str,
        images_seen: int,
        images: ImageSource | None = None,
        dataset: Dataset | None = None,
        run: Path | None = None,
    ) -> None:
        """Hold a decoder and its codes; `glo.train` and `glo.load` make one.

        Args:
            read_codes: reads the codes when they are first needed.
            images: the training images, where they are at hand.
            dataset: where they come from, if it is a dataset.
            run: directory with the priors and the PCA basis of the training.
        """
        self.decoder, self.projection, self.images_seen = decoder, projection, images_seen
        self._read_codes, self._images, self._dataset, self._run = read_codes, images, dataset, run

    @functools.cached_property
    def _codes(self) -> CodesById:
        return self._read_codes()

    @property
    def ids(self) -> Int64Array:
        """The ids of the training images, int64 `[n]`, ascending."""
        return self._codes[0]

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W and C of every image."""
        height, width, channels = self.decode(self._codes[1][:1]).shape[1:]
        return height, width, channels

    # ---------------------------------------------------------------- training images

    def codes(self, ids: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """The learned codes of all images, or of `ids`, as the decoder receives them, `[n, code_dim]`.

        Raises:
            UserError: if an id is not that of a training image.
        """
        return self._codes[1] if ids is None else self._codes[1][places_of(_id_array(ids), self.ids)]

    def images(self, ids: npt.ArrayLike | None = None) -> UInt8Array:
        """The training images themselves, all or those of `ids`, uint8 `[n, H, W, C]`.

        Raises:
            UserError: if they are not at hand, or an id is not that of a training image.
        """
        return take_ids(self._training_images, self.ids if ids is None else _id_array(ids))

    def reconstruct(self, ids: npt.ArrayLike | None = None) -> UInt8Array:
        """The decoded images of the learned codes of all images, or of `ids`, uint8 `[n, H, W, C]`.

        Raises:
            UserError: if an id is not that of a training image.
        """
        return self.decode(self.codes(ids))

    def interpolate(self, a: int, b: int, steps: int) -> UInt8Array:
        """Images on the straight line from the code of image `a` to that of image `b`, uint8 `[steps, H, W, C]`.

        Each code on the line is projected. The first and the last image are the reconstructions of `a` and `b`.

        Raises:
            UserError: if an id is not that of a training image.
        """
        start, end = (torch.from_numpy(code) for code in self.codes([a, b]))
        return decode_codes(self.decoder, interpolate(start, end, steps, self.projection))

    def find(self, path: str | Path) -> int:
        """The image id of a file of the dataset.

        Args:
            path: of the file as it was preprocessed, or source/path as the manifest has it; !member after that of a
                container.

        Raises:
            UserError: if the run was not trained on a dataset, or the file is no image of it.
        """
        if self._dataset is None:
            raise UserError(f"{path}: the model was trained on a tensor, not on files; its ids are rows of the tensor")
        name = _manifest_name(os.fspath(path), _source_folders(self._dataset))
        return int(find_ids(self._dataset.path, [name], read_snapshots(self._dataset.path))[0])

    # ---------------------------------------------------------------- new images

    def decode(self, codes: npt.ArrayLike | torch.Tensor) -> UInt8Array:
        """The images of `codes` `[n, code_dim]`, uint8 `[n, H, W, C]`. The codes are not projected first.

        Raises:
            ConfigError: if `codes` have another shape.
        """
        tensor = torch.as_tensor(codes)
        dim = self._codes[1].shape[1]
        if tensor.ndim != 2 or tensor.shape[1] != dim or not tensor.is_floating_point():
            raise ConfigError(f"`codes` (={tensor.dtype} {list(tensor.shape)}) must be floats of shape [n, {dim}]")
        return decode_codes(self.decoder, tensor)

    def sample(self, n: int, prior: str = "full", seed: int = 0) -> UInt8Array:
        """`n` new images, uint8 `[n, H, W, C]`; image i depends on `prior`, `seed` and i alone, whatever `n` is.

        Args:
            prior: "full", "diagonal" or "unit", the covariance of a Gaussian over the codes. One that jobs/fit_prior.py
                fitted to this checkpoint is read from the run; any other is fitted here.

        Raises:
            ConfigError: if `n` is below 0.
            UserError: if no such prior is fitted to this checkpoint, and it cannot be fitted here.
        """
        if n < 0:
            raise ConfigError(f"`n` (={n}) must be at least 0")
        return decode_codes(self.decoder, self._prior(prior).sample(n, seed))

    def invert(self, images: Any, config: InvertConfig | None = None) -> npt.NDArray[Any]:
        """Codes of images that the model has never seen, `[n, code_dim]`, in the order of `images`.

        Adam moves each code while the decoder is frozen, from the best of several points. The first one is the ridge
        regression of the image's principal components, which needs the training images: without them inversion
        begins at the mean code and at codes of training images alone.

        Args:
            images: uint8 `[n, H, W, C]`, or `[n, H, W]` of gray images, of the model's size.

        Raises:
            ConfigError: if `images` have another shape or dtype.
        """
        source = TensorImages(torch.from_numpy(self._queries(images)))
        basis, weights = self._regression
        inverter = Inverter(self.decoder, self.projection, basis, weights, self._code_sample, config or InvertConfig())
        dim = self._codes[1].shape[1]
        codes = np.empty((len(source.ids), dim), self._codes[1].dtype)
        for rows in row_chunks(len(source.ids), images_at_once(self.decoder, dim)):
            # Row of the source -> its id, which is the place in `images`.
            codes[source.ids[rows]] = inverter.codes(source, rows)[0].cpu().numpy()
        return codes

    def neighbors(self, images: Any, k: int = 5) -> Neighbors:
        """The `k` nearest training images of each of `images` by the mean squared error of pixels, nearest first.

        Args:
            images: uint8 `[q, H, W, C]`, or `[q, H, W]` of gray images, of the model's size.

        Returns:
            `distances` of pixels in [0, 1], float32 `[q, k]`, and image `ids`, int64 `[q, k]`.

        Raises:
            UserError: if the training images are not at hand, or there are fewer than `k`.
            ConfigError: if `images` have another shape or dtype.
        """
        if not 1 <= k <= len(self.ids):
            raise ConfigError(f"`k` (={k}) must be from 1 to {len(self.ids)}, the number of training images")
        return nearest(self._queries(images), self._training_images, k)

    # ---------------------------------------------------------------- parts

    @property
    def _training_images(self) -> ImageSource:
        if self._images is None:
            raise UserError(
                f"{self._run or 'this model'}: the training images are not at hand; give them: "
                "glo.load(run, images=images)"
            )
        return self._images

    def _queries(self, images: Any) -> UInt8Array:
        """`images` of the caller as uint8 `[n, H, W, C]` of the model's size."""
        tensor = image_tensor(images)
        if tuple(tensor.shape[1:]) != self.image_shape:
            raise ConfigError(
                f"`images` (={list(tensor.shape)}) must be [n, {', '.join(map(str, self.image_shape))}], as the model's"
            )
        return tensor.numpy()

    def _prior(self, kind: str) -> GaussianPrior:
        fitted = self._run / "prior" / str(self.images_seen) / kind if self._run is not None else None
        if fitted is not None and (fitted / "prior.json").exists() and self._is_of_checkpoint(fitted.parent):
            return GaussianPrior.load(fitted)
        if kind in get_args(Kind):
            return GaussianPrior.fit(kind, Moments.of(self._codes[1]), self.projection)  # type: ignore[arg-type]
        others = sorted((self._run / "prior").glob(f"*/{kind}/prior.json"), key=os.path.getmtime) if self._run else []
        elsewhere = f"; the checkpoint at {others[-1].parts[-3]} images has one" if others else ""
        raise UserError(
            f"`prior` (={kind}): the checkpoint at {self.images_seen} images has no prior of this name{elsewhere}; "
            f"take {', '.join(get_args(Kind))}, or run jobs/fit_prior.py"
        )

    def _is_of_checkpoint(self, prior: Path) -> bool:
        """Whether `prior`, a directory, was made from this checkpoint and not from another one of as many images."""
        checkpoint, record = prior.parents[1] / "checkpoints" / prior.name, read_run_record(prior)
        if record is None or not (checkpoint / MARK).exists():
            return True
        return record.inputs.get("checkpoint") == Checkpoint(checkpoint).digest

    @functools.cached_property
    def _code_sample(self) -> torch.Tensor:
        """A fair sample of the learned codes, `[<= _LEARNED_CODES, code_dim]`."""
        order = np.argsort(mix64(key64("inversion"), self.ids))[:_LEARNED_CODES]
        return torch.from_numpy(self._codes[1][order])

    @functools.cached_property
    def _regression(self) -> tuple[PcaInit | None, torch.Tensor | None]:
        """The PCA of the training images and the map from their PCA codes to the learned ones; None without images."""
        if self._images is None:
            return None, None
        images, dim = self._images, self._codes[1].shape[1]
        saved = self._run / "pca_init.safetensors" if self._run is not None else None
        basis = PcaInit.load(saved) if saved and saved.exists() else PcaInit.fit(images, dim, SingleProcess())
        config = ResolvedCodeConfig(dim=dim, projection=self.projection)  # type: ignore[arg-type]
        regression = RidgeRegression(dim)
        for rows in row_chunks(len(images.ids), _CHUNK):
            learned = torch.from_numpy(self.codes(images.ids[rows]))
            regression.add(basis.codes(config, images, rows, seed=0), learned)
        return basis, regression.solve(SingleProcess())


def _id_array(ids: npt.ArrayLike) -> Int64Array:
    """Image ids of the caller, int64 `[n]`."""
    array = np.atleast_1d(np.asarray(ids))
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not len(array)):
        raise ConfigError(f"`ids` (={array.dtype} {list(array.shape)}) must be whole numbers of shape [n]")
    return array.astype(np.int64)


def _source_folders(dataset: Dataset) -> dict[str, str]:
    """The base folder of each source, as the dataset's newest snapshot has it."""
    return dataset.snapshots[-1].sources


def _manifest_name(path: str, folders: dict[str, str]) -> str:
    """source/path of a file: where it lies below the folder of a source, or else `path` as it is."""
    absolute = Path(path).expanduser().resolve()
    for source, folder in folders.items():
        if absolute.is_relative_to(folder):
            return f"{source}/{absolute.relative_to(folder)}"
    return path
