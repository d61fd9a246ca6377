"""How near reconstructions come to their images: PSNR, SSIM and mean squared error, beside PCA's."""

import math
from dataclasses import dataclass

import torch

from glo_core.codes.table import Table
from glo_core.common.in_step import InStep, in_chunks
from glo_core.common.runtime import Metrics, Runtime
from glo_core.common.shapes import Float, Tensor, UInt8
from glo_core.data.image_source import ImageSource
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_unit, unit_bytes
from glo_core.losses.ssim import ssim

_CHUNK = 512
"""Images in memory at once"""


def psnr(mean_squared_error: float) -> float:
    """10 log10(1 / mean squared error), in dB, of pixels in [0, 1]; at most 200 dB."""
    return -10 * math.log10(max(mean_squared_error, 1e-20))


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over images, which merge over shards."""

    images: int = 0
    squared: float = 0.0
    """Sum of the images' mean squared errors, pixels in [0, 1]"""
    similarity: float = 0.0
    """Sum of the images' SSIM; NaN where it was left out"""

    @classmethod
    def of(
        cls,
        prediction: Float[Tensor, "b channels h w"],
        target: Float[Tensor, "b channels h w"],
        *,
        with_ssim: bool = True,
    ) -> "ReconstructionSums":
        """Of images `[b, channels, h, w]` in [0, 1]. SSIM takes most of the time."""
        similarity = float(ssim(prediction, target).double().sum()) if with_ssim else math.nan
        return cls(len(target), float(mse(prediction, target).double().sum()), similarity)

    def __add__(self, other: "ReconstructionSums") -> "ReconstructionSums":
        return ReconstructionSums(
            self.images + other.images, self.squared + other.squared, self.similarity + other.similarity
        )

    def as_metrics(self) -> Metrics:
        """`psnr` in dB of the mean of all squared errors, `ssim` and `mse` as means over images."""
        error = self.squared / max(self.images, 1)
        return {"psnr": psnr(error), "ssim": self.similarity / max(self.images, 1), "mse": error}


@torch.inference_mode()
def reconstruction_quality(
    decoder: torch.nn.Module,
    codes: Float[Tensor, "b code_dim"],
    pixels: UInt8[Tensor, "b height width channels"],
    pca: PcaBaseline,
    *,
    with_ssim: bool = True,
) -> tuple[ReconstructionSums, ReconstructionSums]:
    """Quality of what `decoder` decodes from `codes`, and of what `pca` reconstructs of the same images.

    Args:
        decoder: in eval mode.
        codes: `[b, code_dim]`.
        pixels: the images, uint8 `[b, H, W, C]`, where `decoder` and `pca` are.
    """
    prediction = to_unit(decoder(codes.to(next(decoder.parameters()))))
    target = unit_bytes(pixels, prediction.dtype).permute(0, 3, 1, 2)
    linear = pca.reconstruct(pixels)
    return (
        ReconstructionSums.of(prediction, target, with_ssim=with_ssim),
        ReconstructionSums.of(linear, target.to(linear), with_ssim=with_ssim),
    )


def training_psnr(
    decoder: torch.nn.Module,
    table: Table,
    pca: PcaBaseline,
    images: ImageSource,
    runtime: Runtime,
    *,
    images_seen: int = 0,
) -> Metrics:
    """`psnr` of `decoder`, in eval mode, at its learned codes and `pca_psnr`, in dB over the images of all ranks.

    Every rank calls this; `images_seen` is where training stands, for reports.

    Raises:
        StopRequestedError: on every rank, if somebody asked to stop.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for rows in in_chunks(len(images.ids), _CHUNK, InStep(runtime, "psnr", images_seen)):
        codes, pixels = table.codes(slice(int(rows[0]), int(rows[-1]) + 1)), images.take(rows).to(runtime.device)
        decoded, linear = reconstruction_quality(decoder, codes, pixels, pca, with_ssim=False)
        sums += torch.tensor([decoded.squared, linear.squared, decoded.images], dtype=torch.float64)
    squared, squared_of_pca, count = runtime.all_reduce_sum(sums.to(runtime.device)).tolist()
    return {"psnr": psnr(squared / max(count, 1)), "pca_psnr": psnr(squared_of_pca / max(count, 1))}
