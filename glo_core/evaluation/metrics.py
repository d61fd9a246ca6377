"""How near reconstructions come to their images: PSNR, SSIM and mean squared error, beside PCA's."""

import math
from dataclasses import dataclass

import torch

from glo_core.codes.table import Table
from glo_core.common.arrays import row_chunks
from glo_core.common.runtime import Runtime
from glo_core.data.image_source import ImageSource
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target, to_unit
from glo_core.losses.ssim import ssim

_CHUNK = 512
"""Images in memory at once."""


def psnr(mean_squared_error: float) -> float:
    """10 log10(1 / mean squared error), in dB, of pixels in [0, 1]."""
    return -10 * math.log10(max(mean_squared_error, 1e-20))


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over images, which merge over shards."""

    images: int = 0
    squared: float = 0.0
    """Sum of the images' mean squared errors, pixels in [0, 1]"""
    similarity: float = 0.0
    """Sum of the images' SSIM"""

    @classmethod
    def of(cls, prediction: torch.Tensor, target: torch.Tensor) -> "ReconstructionSums":
        """Of images `[b, channels, h, w]` in [0, 1]."""
        squared, similarity = mse(prediction, target).double(), ssim(prediction, target).double()
        return cls(len(target), float(squared.sum()), float(similarity.sum()))

    def __add__(self, other: "ReconstructionSums") -> "ReconstructionSums":
        return ReconstructionSums(
            self.images + other.images, self.squared + other.squared, self.similarity + other.similarity
        )

    def as_metrics(self) -> dict[str, float]:
        """`psnr` in dB of the mean of all squared errors, `ssim` and `mse` as means over images."""
        error = self.squared / max(self.images, 1)
        return {"psnr": psnr(error), "ssim": self.similarity / max(self.images, 1), "mse": error}


@torch.inference_mode()
def reconstruction_quality(
    decoder: torch.nn.Module, codes: torch.Tensor, pixels: torch.Tensor, pca: PcaBaseline
) -> tuple[ReconstructionSums, ReconstructionSums]:
    """Quality of what `decoder`, in eval mode, makes of `codes` `[b, dim]`, and of what `pca` makes of the images.

    Args:
        pixels: the images, uint8 `[b, H, W, C]`.
    """
    target = _unit_images(pixels)
    made = decoder(codes.to(next(decoder.parameters())))
    return ReconstructionSums.of(to_unit(made).float(), target), ReconstructionSums.of(pca.reconstruct(pixels), target)


def _unit_images(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 `[b, H, W, C]` -> float32 `[b, C, H, W]` in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(255)


def reconstruction_psnr(decoder: torch.nn.Module, table: Table, images: ImageSource, runtime: Runtime) -> float:
    """PSNR in dB of `decoder` at its learned codes over the images of all ranks. `decoder` is in eval mode."""
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.inference_mode():
        for rows in row_chunks(len(images.ids), _CHUNK):
            target = to_target(images.take(rows).to(runtime.device), table.resident.raw.dtype)
            prediction = decoder(table.codes(slice(int(rows[0]), int(rows[-1]) + 1)))
            error = (to_unit(prediction) - to_unit(target)).square().double().sum()
            sums += torch.tensor([float(error), target.numel()], dtype=torch.float64)
    squared, count = runtime.all_reduce_sum(sums.to(runtime.device)).tolist()
    return psnr(squared / max(count, 1))


def pca_psnr(pca: PcaBaseline, images: ImageSource, runtime: Runtime) -> float:
    """PSNR in dB of the images of all ranks projected on principal components."""
    sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    for rows in row_chunks(len(images.ids), _CHUNK):
        some = images.take(rows).to(runtime.device)
        target = _unit_images(some)
        sums[0] += (pca.reconstruct(some) - target).square().double().sum()
        sums[1] += target.numel()
    squared, count = runtime.all_reduce_sum(sums).tolist()
    return psnr(squared / max(count, 1))
