import importlib.util
import itertools
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from glo_core import UserError
from glo_core.losses.config import TERMS, PyramidConfig, loss_terms
from glo_core.losses.laplacian_pyramid import laplacian_pyramid
from glo_core.losses.pixel import l1, mse, pairwise
from glo_core.losses.pixel_ranges import to_target, to_unit
from glo_core.losses.ssim import ssim
from glo_core.losses.weighted_sum import Loss, make_loss

CPU = torch.device("cpu")


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    return prediction, target


def loss(text: str, resolution: int, pyramid: PyramidConfig | None = None, network: str = "vgg16") -> Loss:
    return make_loss(text, pyramid or PyramidConfig(), network, resolution, CPU)


def test_mse_and_l1_are_per_image() -> None:
    prediction, target = pair(3, 2, 4, 4)
    differences = [p - t for p, t in zip(prediction, target, strict=True)]
    torch.testing.assert_close(mse(prediction, target), torch.stack([(d**2).mean() for d in differences]))
    torch.testing.assert_close(l1(prediction, target), torch.stack([d.abs().mean() for d in differences]))


def test_pairwise_is_the_mean_over_all_pairs_of_squared_differences_of_differences() -> None:
    prediction, target = pair(2, 3, 3, 3)
    for image in range(2):
        d = (prediction - target)[image].flatten().tolist()
        pairs = [(a - b) ** 2 for a, b in itertools.combinations(d, 2)]
        torch.testing.assert_close(
            pairwise(prediction, target)[image], torch.tensor(sum(pairs) / len(pairs), dtype=torch.float64)
        )


def test_pairwise_forgives_a_shift_of_brightness() -> None:
    target = pair(2, 3, 4, 4)[1]
    assert pairwise(target + 0.3, target).abs().max() < 1e-12
    assert mse(target + 0.3, target).min() > 0.08


# ---------------------------------------------------------------- the Laplacian pyramid


def blur_matrix(size: int) -> np.ndarray:
    """(1 4 6 4 1) / 16 along one side with mirrored borders, as a matrix."""
    matrix = np.zeros((size, size))
    for row in range(size):
        for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            place = abs(row + offset)
            matrix[row, place if place < size else 2 * (size - 1) - place] += weight / 16
    return matrix


def pyramid_by_matrices(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """Burt and Adelson's pyramid of `[h, w]` by dense matrices."""
    details = []
    for _ in range(levels):
        blur = blur_matrix(len(image))
        reduce, expand = blur[::2], 2 * blur[:, ::2]
        smaller = reduce @ image @ reduce.T
        details.append(image - expand @ smaller @ expand.T)
        image = smaller
    return [*details, image]


@pytest.mark.parametrize(("side", "levels", "falloff"), [(16, None, 0.25), (32, 3, 1.0), (8, 1, 0.25)])
def test_the_pyramid_loss_is_that_of_two_pyramids_by_matrices(side: int, levels: int, falloff: float) -> None:
    prediction, target = pair(2, 3, side, side)
    depth = levels or {16: 2}[side]
    expected = np.zeros(2)
    for number in range(2):
        pyramids = [
            [pyramid_by_matrices(channel.numpy(), depth) for channel in image[number]] for image in (prediction, target)
        ]
        for level in range(depth + 1):
            predicted, wanted = (np.stack([channel[level] for channel in image]) for image in pyramids)
            expected[number] += falloff**level * np.abs(predicted - wanted).mean()
    config = PyramidConfig(levels=levels, falloff=falloff)
    actual = loss("pyramid", side, config)(prediction, target)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10)


def test_a_pyramid_has_the_whole_image_and_a_flat_image_has_no_detail() -> None:
    image = pair(2, 3, 16, 16)[0]
    *details, residual = laplacian_pyramid(image, 2)
    again = residual
    for detail in reversed(details):
        size = detail.shape[-1]
        expand = torch.from_numpy(2 * blur_matrix(size)[:, ::2])
        again = detail + expand @ again @ expand.T
    torch.testing.assert_close(again, image)
    *details, residual = laplacian_pyramid(torch.full((1, 1, 16, 16), 0.3), 2)
    assert max(detail.abs().max() for detail in details) < 1e-6
    torch.testing.assert_close(residual, torch.full((1, 1, 4, 4), 0.3))


# ---------------------------------------------------------------- SSIM


def ssim_by_windows(x: np.ndarray, y: np.ndarray, size: int) -> float:
    """SSIM of `[h, w]` images by visiting every window (Wang et al. 2004)."""
    offsets = np.arange(size) - (size - 1) / 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top, left in itertools.product(range(len(x) - size + 1), repeat=2):
        a, b = (image[top : top + size, left : left + size] for image in (x, y))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        values.append(
            (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )  # fmt: skip
    return float(np.mean(values))


@pytest.mark.parametrize("side", [8, 16])
def test_ssim_is_that_of_every_window(side: int) -> None:
    x, y = (image.add(1).div(2) for image in pair(2, 3, side, side))
    expected = [
        np.mean([ssim_by_windows(a.numpy(), b.numpy(), min(11, side)) for a, b in zip(p, t, strict=True)])
        for p, t in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, rtol=1e-9)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(loss("ssim", side)(2 * x - 1, 2 * y - 1), 1 - ssim(x, y))


# ---------------------------------------------------------------- sums


def test_a_sum_weighs_its_terms() -> None:
    prediction, target = pair(2, 1, 8, 8)
    expected = 0.8 * l1(prediction, target) + 2 * mse(prediction, target)
    torch.testing.assert_close(loss("0.8 l1 + 2*mse", 8)(prediction, target), expected)
    assert loss_terms("pyramid + 0.5 mse") == {"pyramid": 1, "mse": 0.5}


@pytest.mark.parametrize("text", ["", "mse +", "hinge", "mse + mse", "-1 mse", "0 mse", "mse 2"])
def test_what_is_no_sum_of_terms_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a sum of " + ", ".join(TERMS)):
        loss_terms(text)


def test_too_many_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`pyramid.levels` \(=5\) must be at most 4 at 32 px"):
        loss("pyramid", 32, PyramidConfig(levels=5))


# ---------------------------------------------------------------- the perceptual loss


class Edges(nn.Module):
    """A feature network of two maps: the colors where they are above ImageNet's mean, and differences along rows."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        above = images.relu()
        return [above, above[..., 1:] - above[..., :-1]]


class Bare(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.fixture
def my_features(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_features")
    vars(module).update(edges=Edges, bare=Bare, none=lambda: None)
    monkeypatch.setitem(sys.modules, "my_features", module)


@pytest.mark.usefixtures("my_features")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_perceptual_loss_compares_what_a_network_of_the_users_sees(channels: int) -> None:
    prediction, target = (image.float() for image in pair(2, channels, 8, 8))
    prediction.requires_grad_()
    actual = loss("perceptual", 8, network="my_features:edges")(prediction, target)
    expected = np.zeros(2)
    for color, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        seen = [
            np.maximum((image.detach().numpy()[:, color % channels] / 2 + 0.5 - mean) / deviation, 0)
            for image in (prediction, target)
        ]
        difference = seen[0] - seen[1]
        expected += np.abs(difference).mean((1, 2)) / 3 + np.abs(np.diff(difference)).mean((1, 2)) / 3
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-5)
    actual.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().max() > 0


@pytest.mark.usefixtures("my_features")
@pytest.mark.parametrize(
    ("network", "line"),
    [
        ("my_features:bare", "makes Tensor of two images where a list or tuple of feature maps is needed"),
        ("my_features:none", "AttributeError: 'NoneType' object has no attribute 'eval'"),
        ("my_features:missing", "AttributeError: module 'my_features' has no attribute 'missing'"),
    ],
)
def test_a_feature_network_that_cannot_be_used_is_one_line(network: str, line: str) -> None:
    with pytest.raises(UserError, match=rf"`perceptual_network` \(={network}\): {line}"):
        loss("perceptual", 8, network=network)


def vgg16_of(weights: object, layers: nn.Sequential | Exception) -> types.ModuleType:
    """A stand-in for `torchvision.models`, whose network is `layers`, or fails with it."""

    def vgg16(*, weights: object) -> object:
        if isinstance(layers, Exception):
            raise layers
        return types.SimpleNamespace(features=layers, weights=weights)

    models = types.ModuleType("torchvision.models")
    vars(models).update(vgg16=vgg16, VGG16_Weights=types.SimpleNamespace(IMAGENET1K_V1=weights))
    return models


def test_vgg16_is_compared_behind_the_last_relu_of_four_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Count(nn.Module):
        """Scales by its number, and tells that it was requested."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            requested.append(self.number)
            return images + self.number

    requested: list[int] = []
    # Of VGG16's 31 layers relu1_2, relu2_2, relu3_3 and relu4_3 are 3, 8, 15 and 22 (Simonyan and Zisserman, table 1).
    monkeypatch.setitem(
        sys.modules, "torchvision.models", vgg16_of("weights", nn.Sequential(*[Count(number) for number in range(31)]))
    )
    prediction, target = (image.float() for image in pair(2, 3, 8, 8))
    actual = loss("perceptual", 8)(prediction, target)
    assert requested == [*range(23), *range(23)]
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(actual, 4 * ((prediction - target) / 2 / deviation).abs().mean((1, 2, 3)))


@pytest.mark.parametrize("failure", [OSError("no route"), RuntimeError("PytorchStreamReader failed\nreading zip")])
def test_vgg16_without_its_weights_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", vgg16_of("weights", failure))
    with pytest.raises(
        UserError, match=r"`perceptual_network` \(=vgg16\): torchvision could not load its weights"
    ) as caught:
        loss("perceptual", 32)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_vgg16_without_torchvision_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"`perceptual_network` \(=vgg16\) needs torchvision, which is not installed; pip"
    ):
        loss("perceptual", 32)


def test_pixels_survive_the_way_to_the_decoders_range_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    target = to_target(images, torch.float32)
    assert target.shape == (1, 1, 16, 16)
    assert (target.min().item(), target.max().item()) == (-1, 1)
    assert torch.equal(to_unit(target).mul(255).round().byte().permute(0, 2, 3, 1), images)
