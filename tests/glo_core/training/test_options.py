"""Options of training: schedules, weight decay, optimizers, averaging."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import glo_core as glo
from glo_core.decoder.batch_norm import GroupedBatchNorm
from tests.helpers.modules import submodule
from tests.helpers.tiny_training import CONFIG, RESOLVED, Impatient, same


def test_the_cosine_runs_over_its_phase() -> None:
    phase = glo.Phase(number=1, start=100, target=300)
    assert [round(phase.rates(seen, RESOLVED).decoder, 6) for seen in (100, 200, 300)] == [1, 0.5, 0]


def test_constant_and_step_schedules_and_the_warm_up_count_images() -> None:
    phase = glo.Phase(number=1, start=100, target=900)
    warm = dataclasses.replace(RESOLVED, schedule="constant", warm_up=320)
    assert [phase.rates(seen, warm).decoder for seen in (100, 132, 388, 500)] == [0.1, 0.2, 1, 1]
    steps = dataclasses.replace(RESOLVED, schedule="step", lr_gamma=0.1, lr_step_images=300)
    assert [phase.rates(seen, steps).decoder for seen in (100, 299, 300, 650)] == [1, 1, 0.1, 0.1**2]


def test_codes_have_a_schedule_of_their_own() -> None:
    code = dataclasses.replace(RESOLVED.code, schedule="constant")
    config = dataclasses.replace(RESOLVED, schedule="cosine", code=code)
    phase = glo.Phase(number=1, start=100, target=500)
    rates = [phase.rates(seen, config) for seen in (100, 200, 200, 300)]
    assert [round(rate.decoder, 6) for rate in rates] == [1, 0.853553, 0.853553, 0.5]
    assert [rate.codes for rate in rates] == [1] * 4


def test_decay_pulls_codes_towards_the_origin(blobs: torch.Tensor) -> None:
    images = glo.TensorImages(blobs)
    ball = dataclasses.replace(CONFIG.code, projection="ball", optimizer="sgd", learning_rate=0.1)
    norms = []
    for decay in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, code=dataclasses.replace(ball, weight_decay=decay))
        norms.append(glo.train_phase(config, images, glo.Phase(target=900)).table.resident.raw.norm(dim=1).mean())
    assert norms[1] < 0.8 * norms[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_decoder_under_gradient_descent_resumes_to_the_same_bits(
    blobs: torch.Tensor, tmp_path: Path, momentum: float
) -> None:
    config = dataclasses.replace(
        CONFIG,
        optimizer="sgd",
        learning_rate=0.1,
        beta1=momentum,
    )
    images, phase = glo.TensorImages(blobs), glo.Phase(target=900)
    whole = glo.train_phase(config, images, phase)
    glo.train_phase(config, images, phase, run=tmp_path, runtime=Impatient(after=2))
    assert same(glo.train_phase(config, images, phase, run=tmp_path), whole)
    assert whole.metrics["psnr"] > 10


def test_the_average_forgets_the_start_and_refreshes_its_statistics(blobs: torch.Tensor) -> None:
    trained = glo.train_phase(CONFIG, glo.TensorImages(blobs), glo.Phase(target=3000))
    running = submodule(trained.decoder, "norms.0", GroupedBatchNorm).running_mean
    with torch.no_grad():
        features = trained.decoder.get_submodule("convolutions.0")(trained.table.codes()[:, :, None, None])
    np.testing.assert_allclose(running, features.mean(dim=(0, 2, 3)), atol=2e-3)


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_the_decoder_moves_by_its_gradient_no_longer_than_the_clip(blobs: torch.Tensor, clip_norm: float) -> None:
    reported: dict[str, float] = {}
    runtime = glo.SingleProcess(on_report=lambda _, metrics: reported.update(metrics))
    config = dataclasses.replace(CONFIG, optimizer="sgd", beta1=0, learning_rate=1, ema_half_life=None)
    config = dataclasses.replace(config, clip_norm=clip_norm)
    trained = glo.train_phase(config, glo.TensorImages(blobs), glo.Phase(target=1), runtime=runtime)
    start = glo.make_decoder(CONFIG.decoder, code_dim=4, resolution=16, channels=1)
    pairs = zip(trained.decoder.parameters(), start.parameters(), strict=True)
    moved = torch.stack([(after - before).norm() for after, before in pairs]).norm()
    assert 1e-3 < reported["gradient_norm"] < 1e3
    assert moved.item() == pytest.approx(min(clip_norm, reported["gradient_norm"]), rel=1e-3)
