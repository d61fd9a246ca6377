"""Codes of unseen images, by images whose codes a test has: those that the decoder itself makes."""

from typing import Any

import numpy as np
import pytest
import torch

import glo_core as glo
from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.runtime import SingleProcess
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import Inverter
from glo_core.evaluation.metrics import psnr
from glo_core.losses.pixel_ranges import to_unit

DIM = 4


@pytest.fixture(scope="module")
def trained() -> glo.TrainResult:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((96, 2, 2, 1), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    config = glo.TrainConfig(
        batch_size=32, learning_rate=5e-3, code=glo.CodeConfig(dim=DIM), decoder=glo.DecoderConfig(filters=(16,))
    )
    return glo.train_phase(config, glo.TensorImages(images.mul(255).byte()), glo.Phase(target=3000))


def inverter(trained: glo.TrainResult, images: glo.TensorImages, **changes: int) -> Inverter:
    init, regression = PcaInit.fit(images, DIM, SingleProcess()), RidgeRegression(DIM)
    learned = trained.table.codes()
    regression.add(
        init.codes(ResolvedCodeConfig(dim=DIM), images, np.arange(len(images.ids)), 0)[: len(learned)], learned
    )
    weights = regression.solve(SingleProcess())
    return Inverter(trained.decoder, "sphere", init, weights, learned, InvertConfig(**changes))


def decoded_images(trained: glo.TrainResult, count: int) -> glo.TensorImages:
    codes = torch.nn.functional.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    with torch.no_grad():
        pixels = to_unit(trained.decoder(codes)).mul(255).round().byte()
    return glo.TensorImages(pixels.permute(0, 2, 3, 1).contiguous())


def test_inversion_recovers_an_image_of_the_decoder(trained: glo.TrainResult) -> None:
    images = decoded_images(trained, 96)
    before = {name: value.clone() for name, value in trained.decoder.state_dict().items()}
    codes, losses = inverter(trained, images, restarts=4, steps=200).codes(images, np.arange(96))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(96))
    # Of pixels in [-1, 1], so four times those in [0, 1]; rounding to bytes leaves 59 dB.
    assert np.median([psnr(float(loss) / 4) for loss in losses]) > 45
    assert all(torch.equal(value, before[name]) for name, value in trained.decoder.state_dict().items())


def test_more_restarts_and_more_steps_are_never_worse(trained: glo.TrainResult) -> None:
    images, rows = decoded_images(trained, 96), np.arange(96)
    errors = [float(inverter(trained, images, restarts=n, steps=20).codes(images, rows)[1].mean()) for n in (1, 4)]
    longer = float(inverter(trained, images, restarts=4, steps=100).codes(images, rows)[1].mean())
    assert longer < errors[1] < errors[0]


def test_the_code_depends_on_the_image_and_not_on_its_company(trained: glo.TrainResult) -> None:
    images = decoded_images(trained, 96)
    inverse = inverter(trained, images)
    together, _ = inverse.codes(images, np.arange(8))
    alone, _ = inverse.codes(images, np.arange(3, 4))
    torch.testing.assert_close(alone[0], together[3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"restarts": 0}, r"`restarts` \(=0\) must be at least 1"),
        ({"steps": 0}, r"`steps` \(=0\) must be at least 1"),
        ({"learning_rate": 0.0}, r"`learning_rate` \(=0.0\) must be above 0"),
    ],
)
def test_a_bad_value_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        InvertConfig(**changes)
