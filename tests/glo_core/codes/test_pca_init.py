import numpy as np
import torch

from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.pca_init import PcaInit, random_codes, reduced_pixels
from glo_core.common.runtime import SingleProcess
from glo_core.data.image_source import TensorImages


def scores_by_svd(images: torch.Tensor, dim: int) -> np.ndarray:
    pixels = images.numpy().reshape(len(images), -1).astype(np.float64)
    centred = pixels - pixels.mean(0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    return centred @ components[:dim].T


def test_scores_are_those_of_an_svd_up_to_sign_and_one_scale(blobs: torch.Tensor) -> None:
    source = TensorImages(blobs)
    init = PcaInit.fit(source, 5, SingleProcess())
    scores = init.scores(reduced_pixels(source.take(np.arange(len(source.ids))))).numpy()
    expected = scores_by_svd(blobs, 5)[source.ids]
    expected /= np.sqrt((expected**2).sum(1).mean())
    np.testing.assert_allclose(np.abs(scores), np.abs(expected), atol=1e-8)


def photographs(count: int) -> torch.Tensor:
    """Made-up color images whose variance falls with the frequency as in photographs, uint8 [count, 32, 32, 3]."""
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)) + 1 / 32
    noise = np.random.default_rng(0).normal(size=(count, 3, 32, 32))
    fields = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    return torch.from_numpy((128 + 40 * fields / fields.std()).clip(0, 255).astype(np.uint8)).permute(0, 2, 3, 1)


def test_components_of_many_pixels_capture_the_variance_of_exact_ones() -> None:
    source = TensorImages(photographs(300))
    init = PcaInit.fit(source, 32, SingleProcess())
    pixels = reduced_pixels(source.take(np.arange(300))).numpy()
    variances = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False)[:32] ** 2 / 300
    np.testing.assert_allclose(init.scale.item() ** 2, variances.sum(), rtol=1e-8)
    components = init.components.numpy()
    np.testing.assert_allclose(components.T @ components, np.eye(32), atol=1e-12)
    captured = ((pixels - pixels.mean(0)) @ components).var(0)
    np.testing.assert_allclose(captured.sum(), variances.sum(), rtol=1e-8)
    np.testing.assert_allclose(captured[:8], variances[:8], rtol=1e-8)


def test_many_pixels_of_few_images_have_components_up_to_their_rank() -> None:
    init = PcaInit.fit(TensorImages(photographs(20)), 32, SingleProcess())
    assert init.components.norm(dim=0).round().tolist() == [1] * 19 + [0] * 13


def test_sphere_codes_are_unit_and_ball_codes_fill_the_ball(blobs: torch.Tensor) -> None:
    source = TensorImages(blobs)
    init = PcaInit.fit(source, 5, SingleProcess())
    sphere = init.codes(ResolvedCodeConfig(dim=5), source, np.arange(len(source.ids)), 0)
    torch.testing.assert_close(sphere.norm(dim=1), torch.ones(150).double())
    norms = init.codes(ResolvedCodeConfig(dim=5, projection="ball"), source, np.arange(len(source.ids)), 0).norm(dim=1)
    assert 0.97 <= (norms <= 1).double().mean() <= 1
    assert norms.quantile(0.99) > 0.98


def test_dimensions_above_the_rank_get_small_noise() -> None:
    images = torch.zeros(20, 8, 8, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(20) * 10
    source = TensorImages(images)
    init = PcaInit.fit(source, 4, SingleProcess())
    codes = (
        init.codes(ResolvedCodeConfig(dim=4, projection="ball"), source, np.arange(len(source.ids)), 0) * init.radius
    )
    assert codes[:, 0].std() > 0.5
    assert 0 < codes[:, 1:].abs().max() < 0.05


def test_the_mean_image_does_not_start_at_zero() -> None:
    images = torch.zeros(3, 8, 8, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 100, 200])
    source = TensorImages(images)
    codes = PcaInit.fit(source, 1, SingleProcess()).codes(ResolvedCodeConfig(dim=1), source, np.arange(3), 0)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(3).double())


def test_images_without_variance_start_within_the_ball() -> None:
    source = TensorImages(torch.full((3, 8, 8, 1), 7, dtype=torch.uint8))
    config = ResolvedCodeConfig(dim=4, projection="ball")
    codes = PcaInit.fit(source, 4, SingleProcess()).codes(config, source, np.arange(3), 0)
    assert 0 < codes.norm(dim=1).min() <= codes.norm(dim=1).max() <= 1


def test_large_images_are_reduced_by_area() -> None:
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    reduced = reduced_pixels(images).reshape(2, 32, 32, 3)
    assert reduced[1, 3, 5, 2] == images[1, 6:8, 10:12, 2].double().sum()


def test_random_codes_depend_on_seed_and_id_alone() -> None:
    config = ResolvedCodeConfig(dim=8)
    whole = random_codes(config, np.arange(1000, dtype=np.int64), 0)
    assert torch.equal(whole[[17, 5]], random_codes(config, np.array([17, 5]), 0))
    assert not torch.equal(whole, random_codes(config, np.arange(1000, dtype=np.int64), 1))
    assert abs(float(whole.square().sum(1).mean()) - 1) < 0.05
