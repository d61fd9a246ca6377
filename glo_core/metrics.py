"""PSNR of the model, and of PCA with as many components, over one full pass of the training images."""

import math

import numpy as np
import torch

from glo_core.codes import Table
from glo_core.dataset import ImageSource
from glo_core.losses import to_target, to_unit
from glo_core.runtime import Runtime

_CHUNK = 512
"""Images in memory at once."""


def psnr(mean_squared_error: float) -> float:
    """10 log10(1 / mean squared error), in dB, of pixels in [0, 1]."""
    return -10 * math.log10(max(mean_squared_error, 1e-20))


def reconstruction_psnr(decoder: torch.nn.Module, table: Table, images: ImageSource, runtime: Runtime) -> float:
    """PSNR in dB of `decoder` at its learned codes over the images of all ranks. `decoder` is in eval mode."""
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.inference_mode():
        for rows in _chunks(images):
            target = to_target(images.gather(rows).to(runtime.device), table.held.raw.dtype)
            prediction = decoder(table.codes(slice(int(rows[0]), int(rows[-1]) + 1)))
            error = (to_unit(prediction) - to_unit(target)).square().double().sum()
            sums += torch.tensor([float(error), target.numel()], dtype=torch.float64)
    squared, count = runtime.all_sum(sums.to(runtime.device)).tolist()
    return psnr(squared / max(count, 1))


def pca_psnr(images: ImageSource, components: int, runtime: Runtime, *, passes: int = 12) -> float:
    """PSNR in dB of projecting the images of all ranks on their leading principal components, clamped to [0, 1].

    At full resolution, by subspace iteration with as much oversampling as components (Halko et al., SIAM Review
    2011, algorithm 4.4): no matrix of pixels by pixels or images by images is formed. Ends early once the captured
    variance stands still to 1e-6.
    """
    pixels = images.resolution**2 * images.channels
    device = runtime.device
    total = torch.zeros(pixels + 1, dtype=torch.float64, device=device)
    for chunk in _float_chunks(images, device):
        total += torch.cat([chunk.sum(0, dtype=torch.float64), total.new_tensor([len(chunk)])])
    runtime.all_sum(total)
    count, mean = float(total[-1]), (total[:-1] / total[-1].clamp_min(1))
    width = min(2 * components + 8, pixels)
    basis = torch.randn(pixels, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    basis = torch.linalg.qr(basis)[0]
    captured = 0.0
    for _ in range(passes):
        product = torch.zeros_like(basis)
        narrow, offset = basis.float(), mean.float()
        for chunk in _float_chunks(images, device):
            centred = chunk - offset
            product += (centred.T @ (centred @ narrow)).double()
        runtime.all_sum(product)
        # Rayleigh-Ritz: the leading eigenvectors of the covariance within the subspace.
        values, rotation = torch.linalg.eigh(basis.T @ product)
        leading = float(values[-components:].sum())
        ritz = basis @ rotation[:, -components:]
        basis = torch.linalg.qr(product)[0]
        if leading - captured <= 1e-6 * leading:
            break
        captured = leading
    runtime.broadcast(ritz)
    vectors, offset = ritz.float(), mean.float()
    squared = torch.zeros((), dtype=torch.float64, device=device)
    for chunk in _float_chunks(images, device):
        projected = ((chunk - offset) @ vectors) @ vectors.T + offset
        squared += (projected.clamp(0, 1) - chunk).square().double().sum()
    return psnr(float(runtime.all_sum(squared)) / max(count * pixels, 1))


def _chunks(images: ImageSource) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return [
        np.arange(start, min(start + _CHUNK, len(images.ids)), dtype=np.int64)
        for start in range(0, len(images.ids), _CHUNK)
    ]


def _float_chunks(images: ImageSource, device: torch.device):  # type: ignore[no-untyped-def]
    for rows in _chunks(images):
        yield images.gather(rows).to(device).flatten(1).float().div(255)
