import numpy as np
import pytest
import torch

from glo_core.common.runtime import SingleProcess
from glo_core.data.image_source import TensorImages
from glo_core.evaluation.metrics import ReconstructionSums, psnr
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.losses.pixel_ranges import unit_bytes
from glo_core.losses.ssim import ssim


def test_psnr_is_in_decibels() -> None:
    assert psnr(0.01) == 20


def test_pca_psnr_is_that_of_an_exact_svd_clamped() -> None:
    # Low rank and noise, as photographs have; more pixels than images, and fewer.
    generator = np.random.default_rng(0)
    for count, side in ((60, 16), (500, 8)):
        low = generator.normal(size=(count, 6)) * [60, 40, 30, 20, 10, 5] @ generator.normal(size=(6, side * side)) / 2
        pixels = (127 + low + generator.normal(size=low.shape) * 8).clip(0, 255).round().astype(np.uint8)
        source = TensorImages(torch.from_numpy(pixels.reshape(count, side, side, 1)))
        values = pixels / 255
        mean = values.mean(0)
        _, _, components = np.linalg.svd(values - mean, full_matrices=False)
        projected = ((values - mean) @ components[:4].T @ components[:4] + mean).clip(0, 1)
        expected = psnr(float(((projected - values) ** 2).mean()))
        images = source.take(np.arange(count))
        linear = PcaBaseline.fit(source, 4, SingleProcess()).reconstruct(images)
        quality = ReconstructionSums.of(linear, unit_bytes(images).permute(0, 3, 1, 2))
        assert abs(quality.as_metrics()["psnr"] - expected) < 1e-3


def test_quality_merges_over_parts() -> None:
    prediction, target = torch.rand(2, 7, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    merged = (
        ReconstructionSums.of(prediction[:3], target[:3])
        + ReconstructionSums()
        + ReconstructionSums.of(prediction[3:], target[3:])
    )
    error = float((prediction - target).square().mean())
    expected = {"psnr": psnr(error), "ssim": float(ssim(prediction, target).mean()), "mse": error}
    assert merged.images == 7
    assert merged.as_metrics() == {key: pytest.approx(value) for key, value in expected.items()}
