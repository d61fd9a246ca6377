"""Initial codes: from a Gaussian, or from the principal components of the images.

Both are functions of the seed, the images and their ids, never of how many ranks share the work.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.projection import to_sphere
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.counter_rng import key64, normal
from glo_core.common.in_step import InStep, in_chunks
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor, UInt8
from glo_core.common.tensor_files import read_tensors, tensor_bytes
from glo_core.data.image_source import ImageSource

PCA_SIDE = 32
"""Pixels of a side; larger images are reduced by area before their covariance is taken"""
CHUNK = 2048
"""Images in memory at once"""
_WHOLE = 1024
"""Rows of a covariance up to which all eigenvectors are found: it takes a fraction of a second"""
_BLOCKS, _OVERSAMPLING = 6, 16
"""Blocks of a Krylov space, and columns of each beyond the number of components"""


def random_codes(config: ResolvedCodeConfig, ids: Int[Int64Array, " n"], seed: int) -> Float[Tensor, "n dim"]:
    """Draw from N(0, scale^2 I / dim), whose mean squared norm is scale^2; float64 `[n, dim]`.

    Row i depends on `seed` and `ids[i]` (int64 `[n]`) alone.
    """
    return torch.from_numpy(normal(key64("codes", seed), ids, config.dim)) * (config.init_scale / config.dim**0.5)


def reduced_pixels(images: UInt8[Tensor, "n height width channels"], side: int = PCA_SIDE) -> Float[Tensor, "n pixels"]:
    """Sum the pixels of each square, with at most `side` squares a side: uint8 `[n, H, W, C]` to float64 `[n, pixels]`.

    Sums and no means: they stay integers, and so do the sums of their products (below 2^53 for 10^7 images of
    128 px). In float64 the covariance is then exact, and the same bits come out at every world size.
    """
    n, height, width, channels = images.shape
    factor = max(1, height // side)
    # Axes [image, row of squares, row in a square, column of squares, column in a square, channel].
    squares = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return squares.sum(dim=(2, 4), dtype=torch.int64).reshape(n, -1).double()


class PcaInit:
    """The principal components of a dataset; a run keeps them, so that images appended later are mapped alike."""

    def __init__(
        self,
        mean: Float[Tensor, " pixels"],
        components: Float[Tensor, "pixels dim"],
        scale: Float[Tensor, ""],
        radius: Float[Tensor, ""],
    ) -> None:
        """Hold the basis.

        Args:
            mean: mean reduced image, float64 `[pixels]`.
            components: unit vectors in columns, by falling variance, float64 `[pixels, dim]`; columns above the
                rank of the data are zero.
            scale: root mean square of the norm of the scores, float64 `[]`.
            radius: 99th percentile of the scaled norms, float64 `[]`.
        """
        self.mean, self.components, self.scale, self.radius = mean, components, scale, radius

    @classmethod
    def fit(cls, images: ImageSource, dim: int, runtime: Runtime) -> "PcaInit":
        """Find the components of the images of all ranks; every rank calls this with its own.

        One pass over the images gives the covariance, a second one the norms of the scores.

        Args:
            images: of this rank.
            dim: number of components, the codes' dimension.

        Raises:
            StopRequestedError: on every rank, if somebody asked to stop.
        """
        work = InStep(runtime, "init", passes=2)
        side = min(images.resolution, PCA_SIDE)
        pixels = side**2 * images.channels
        device = runtime.device
        count = torch.tensor(float(len(images.ids)), dtype=torch.float64, device=device)
        total = torch.zeros(pixels, dtype=torch.float64, device=device)
        products = torch.zeros(pixels, pixels, dtype=torch.float64, device=device)
        for chunk in _chunks(images, work):
            chunk = chunk.to(device)
            total += chunk.sum(0)
            products.addmm_(chunk.T, chunk)
        for sums in (count, total, products):
            runtime.all_reduce_sum(sums)
        mean = total / count
        components, scale = _principal(products / count - torch.outer(mean, mean), dim)
        for tensor in (components, scale):
            runtime.broadcast(tensor)  # Ranks on other hardware may round the eigenvectors otherwise.
        init = cls(mean.cpu(), components.cpu(), scale.cpu(), torch.ones(()).double())
        init.radius = init._norm_quantile(images, 0.99, runtime, work)
        return init

    def scores(self, pixels: Float[Tensor, "n pixels"]) -> Float[Tensor, "n dim"]:
        """Scores of reduced images `[n, pixels]` over `scale`, float64 `[n, dim]`; their mean squared norm is 1."""
        return (pixels.to(self.mean) - self.mean) @ self.components / self.scale

    def _norm_quantile(self, images: ImageSource, quantile: float, runtime: Runtime, work: InStep) -> Float[Tensor, ""]:
        # A histogram merges over ranks exactly; norms are about 1, so bins of 2^-12 up to 16 hold them.
        bins = torch.zeros(16 << 12, dtype=torch.float64, device=runtime.device)
        for chunk in _chunks(images, work):
            indices = (self.scores(chunk).norm(dim=1) * 4096).long().clamp_max(len(bins) - 1)
            bins += torch.bincount(indices, minlength=len(bins)).to(bins)
        cumulative = runtime.all_reduce_sum(bins).cumsum(0)
        index = torch.searchsorted(cumulative, quantile * cumulative[-1])
        return (index + 1).double().cpu() / 4096

    def codes(
        self, config: ResolvedCodeConfig, images: ImageSource, rows: Int[Int64Array, " n"], seed: int
    ) -> Float[Tensor, "n dim"]:
        """Initial raw codes of the images at `rows` (int64 `[n]`), float64 `[n, dim]`.

        On the sphere they have norm 1; in the ball 99 in 100 have a norm of at most 1.
        """
        scores = self.scores(reduced_pixels(images.take(rows)))
        noise = random_codes(config, images.ids[rows], seed)
        # Dimensions above the rank of the images would be zero in every code: they get small noise.
        unused = self.components.abs().sum(0) == 0
        codes = torch.where(unused, 1e-2 * noise, scores)
        if config.projection == "ball":
            # Images without any variance have no radius, and their noise is small already.
            return codes if unused.all() else codes / self.radius
        # An image that is the mean itself has no direction: it gets a random one.
        return to_sphere(torch.where(codes.norm(dim=1, keepdim=True) < 1e-12, noise, codes))

    def to_bytes(self) -> bytes:
        """A safetensors file of the four tensors."""
        return tensor_bytes(
            {"mean": self.mean, "components": self.components, "scale": self.scale, "radius": self.radius}
        )

    @classmethod
    def load(cls, path: Path) -> "PcaInit":
        """Read the file that `to_bytes` made.

        Raises:
            CheckpointError: if the file is missing or not whole.
        """
        return cls(**read_tensors(path, ("mean", "components", "scale", "radius")))


def _principal(
    covariance: Float[Tensor, "pixels pixels"], dim: int
) -> tuple[Float[Tensor, "pixels dim"], Float[Tensor, ""]]:
    """Components `[pixels, dim]` and scale `[]`, as `PcaInit` holds them, of a covariance `[pixels, pixels]`."""
    small = len(covariance) <= _WHOLE or 2 * _BLOCKS * (dim + _OVERSAMPLING) > len(covariance)
    values, vectors = torch.linalg.eigh(covariance) if small else _leading_eigenvectors(covariance, dim)  # Ascending.
    variances, vectors = values.flip(0)[:dim].clamp_min(0), vectors.flip(1)[:, :dim]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    signs = torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    components = covariance.new_zeros(len(covariance), dim)
    components[:, : len(variances)] = vectors * signs * (variances > variances[0] * 1e-10)
    return components, variances.sum().sqrt().clamp_min(1e-12)


def _leading_eigenvectors(
    covariance: Float[Tensor, "pixels pixels"], dim: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "pixels k"]]:
    """The leading eigenvalues `[k]`, ascending, and eigenvectors `[pixels, k]` of a covariance, k a little above `dim`.

    By Rayleigh-Ritz within a block Krylov space (Musco and Musco, NeurIPS 2015, algorithm 2). Where the variances fall
    like those of photographs, the components capture the variance of the exact ones to 1e-9. Its time is
    spent in products of large matrices. `eigh` takes four times as long or more, and many times more on a busy machine,
    where each of its thousands of small steps waits for threads that do not run.
    """
    width = dim + _OVERSAMPLING
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(len(covariance), width, generator=generator, dtype=covariance.dtype).to(covariance.device)
    basis = covariance.new_zeros(len(covariance), 0)
    for _ in range(_BLOCKS):
        block = covariance @ block
        for _ in range(2):  # Once leaves rounding errors of the size of small blocks.
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = torch.cat([basis, block], dim=1)
    values, rotation = torch.linalg.eigh(basis.T @ (covariance @ basis))
    return values[-width:], basis @ rotation[:, -width:]


def _chunks(images: ImageSource, work: InStep) -> Iterator[Float[Tensor, "n pixels"]]:
    """Reduced pixels of all images, float64 `[<= CHUNK, pixels]`, in one pass of `work`."""
    for rows in in_chunks(len(images.ids), CHUNK, work):
        yield reduced_pixels(images.take(rows))
