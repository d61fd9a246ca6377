import itertools

import torch

from glo_core.losses import mse, pairwise, to_target, to_unit


def test_mse_is_per_image() -> None:
    prediction, target = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    expected = torch.stack([((p - t) ** 2).mean() for p, t in zip(prediction, target, strict=True)])
    torch.testing.assert_close(mse(prediction, target), expected)


def test_pairwise_is_the_mean_over_all_pairs_of_squared_differences_of_differences() -> None:
    prediction, target = torch.randn(2, 1, 3, 3).double(), torch.randn(2, 1, 3, 3).double()
    for image in range(2):
        d = (prediction - target)[image].flatten().tolist()
        pairs = [(a - b) ** 2 for a, b in itertools.combinations(d, 2)]
        torch.testing.assert_close(
            pairwise(prediction, target)[image], torch.tensor(sum(pairs) / len(pairs), dtype=torch.float64)
        )


def test_pairwise_forgives_a_shift_of_brightness() -> None:
    target = torch.randn(2, 3, 4, 4).double()
    assert pairwise(target + 0.3, target).abs().max() < 1e-12
    assert mse(target + 0.3, target).min() > 0.08


def test_pixels_survive_the_way_to_the_decoders_range_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    target = to_target(images, torch.float32)
    assert target.shape == (1, 1, 16, 16)
    assert (target.min(), target.max()) == (-1, 1)
    assert torch.equal(to_unit(target).mul(255).round().byte().permute(0, 2, 3, 1), images)
