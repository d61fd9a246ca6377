"""Options of training: schedules, codes first, mirroring, noise, decay, optimizers, averaging."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import glo_core as glo
from glo_core.losses import to_target
from glo_core.step import Learner
from tests.tiny import CONFIG, Impatient, same


def test_the_cosine_runs_over_its_phase() -> None:
    phase = glo.Phase(number=1, start=100, target=300)
    assert [round(phase.rates(seen, CONFIG).decoder, 6) for seen in (100, 200, 300)] == [1, 0.5, 0]


def test_constant_and_step_schedules_and_the_warm_up_count_images() -> None:
    phase = glo.Phase(number=1, start=100, target=900)
    warm = dataclasses.replace(CONFIG, schedule="constant", warm_up=320)
    assert [phase.rates(seen, warm).decoder for seen in (100, 132, 388, 500)] == [0.1, 0.2, 1, 1]
    steps = dataclasses.replace(CONFIG, schedule="step", decay=0.1, decay_every=300)
    assert [phase.rates(seen, steps).decoder for seen in (100, 299, 300, 650)] == [1, 1, 0.1, 0.1**2]


def test_codes_have_a_schedule_of_their_own_and_may_go_first() -> None:
    config = dataclasses.replace(
        CONFIG, schedule="cosine", codes_first=100, code=dataclasses.replace(CONFIG.code, schedule="constant")
    )
    phase = glo.Phase(number=1, start=100, target=500)
    rates = [phase.rates(seen, config) for seen in (100, 199, 200, 300)]
    assert [round(rate.decoder, 6) for rate in rates] == [0, 0, round(0.5 * (1 + 2**-0.5), 6), 0.5]
    assert [rate.codes for rate in rates] == [1] * 4


def test_while_codes_go_first_the_decoder_stays(blobs: torch.Tensor) -> None:
    images = glo.TensorImages(blobs)
    alone = glo.train(dataclasses.replace(CONFIG, codes_first=300), images, glo.Phase(target=300))
    start = glo.make_decoder(CONFIG.decoder, code_dim=4, resolution=16, channels=1)
    weights = zip(start.parameters(), alone.decoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    untouched = glo.train(CONFIG, images, glo.Phase(target=1)).table.raw
    assert (alone.table.raw - untouched).norm(dim=1).min() > 0


def test_negating_the_last_dimensions_mirrors_the_image(blobs: torch.Tensor) -> None:
    config = dataclasses.replace(CONFIG, code=dataclasses.replace(CONFIG.code, mirrored=2))
    images = glo.TensorImages(blobs)
    trained = glo.train(config, images, glo.Phase(target=60 * len(blobs)))
    codes = trained.table.codes()
    assert codes.shape[1] > 2
    target = to_target(images.gather(np.arange(len(blobs))), torch.float32)
    negated = torch.cat([codes[:, :-2], -codes[:, -2:]], dim=1)
    with torch.no_grad():
        same, mirror = trained.decoder(codes), trained.decoder(negated)
    error = (same - target).square().mean()
    assert (mirror - target.flip(3)).square().mean() < 1.2 * error
    assert (mirror - target).square().mean() > 3 * error


def test_statistics_of_the_average_are_those_of_codes_and_negated_codes(blobs: torch.Tensor) -> None:
    left = blobs.clone()
    left[:, :, 8:] = 0
    config = dataclasses.replace(CONFIG, code=dataclasses.replace(CONFIG.code, mirrored=2))
    trained = glo.train(config, glo.TensorImages(left), glo.Phase(target=1500))
    codes = trained.table.codes()
    negated = torch.cat([codes[:, :-2], -codes[:, -2:]], dim=1)
    with torch.no_grad():
        plain, mirror = (
            trained.decoder.convolutions[0](each[:, :, None, None]).mean(dim=(0, 2, 3)) for each in (codes, negated)
        )
    found = trained.decoder.norms[0].running_mean
    between = ((found - plain) @ (mirror - plain) / (mirror - plain).square().sum()).item()
    assert 0.35 < between < 0.65  # A fair coin for each of 150 images.


def test_noise_is_new_every_epoch_and_leaves_the_codes_where_they_project(blobs: torch.Tensor) -> None:
    images = glo.TensorImages(blobs)
    noisy = dataclasses.replace(CONFIG, code=dataclasses.replace(CONFIG.code, noise=0.5))
    first, again = (glo.train(noisy, images, glo.Phase(target=600)) for _ in range(2))
    assert same(first, again)
    assert not same(first, glo.train(CONFIG, images, glo.Phase(target=600)))
    learner = Learner(noisy, images, first.table, glo.SingleProcess())
    codes = first.table.codes()
    made = [learner._noisy(codes, np.arange(150), epoch) for epoch in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    torch.testing.assert_close(made[0].norm(dim=1), torch.ones(150))
    # 0.5 in root mean square norm; what points along the code is projected away.
    moved = float((made[0] - codes).square().sum(1).mean().sqrt())
    assert 0.3 < moved < 0.5


def test_decay_pulls_codes_towards_the_origin(blobs: torch.Tensor) -> None:
    images = glo.TensorImages(blobs)
    ball = dataclasses.replace(CONFIG.code, projection="ball", optimizer="sgd", learning_rate=0.1)
    norms = []
    for decay in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, code=dataclasses.replace(ball, decay=decay))
        norms.append(glo.train(config, images, glo.Phase(target=900)).table.raw.norm(dim=1).mean())
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
        code=dataclasses.replace(CONFIG.code, mirrored=2, noise=0.05),
    )
    images, phase = glo.TensorImages(blobs), glo.Phase(target=900)
    whole = glo.train(config, images, phase)
    glo.train(config, images, phase, run=tmp_path, runtime=Impatient(after=2))
    assert same(glo.train(config, images, phase, run=tmp_path), whole)
    assert whole.metrics["psnr"] > 10


def test_the_average_forgets_the_start_and_refreshes_its_statistics(blobs: torch.Tensor) -> None:
    trained = glo.train(CONFIG, glo.TensorImages(blobs), glo.Phase(target=3000))
    running = trained.decoder.norms[0].running_mean
    with torch.no_grad():
        features = trained.decoder.convolutions[0](trained.table.codes()[:, :, None, None])
    np.testing.assert_allclose(running, features.mean(dim=(0, 2, 3)), atol=2e-3)


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_the_decoder_moves_by_its_gradient_no_longer_than_the_clip(blobs: torch.Tensor, clip_norm: float) -> None:
    found: dict[str, float] = {}
    runtime = glo.SingleProcess(on_report=lambda _, metrics: found.update(metrics))
    config = dataclasses.replace(CONFIG, optimizer="sgd", beta1=0, learning_rate=1, average_half_life=0)
    config = dataclasses.replace(config, clip_norm=clip_norm)
    trained = glo.train(config, glo.TensorImages(blobs), glo.Phase(target=1), runtime=runtime)
    start = glo.make_decoder(CONFIG.decoder, code_dim=4, resolution=16, channels=1)
    pairs = zip(trained.decoder.parameters(), start.parameters(), strict=True)
    moved = torch.stack([(after - before).norm() for after, before in pairs]).norm()
    assert 1e-3 < found["gradient_norm"] < 1e3
    assert moved.item() == pytest.approx(min(clip_norm, found["gradient_norm"]), rel=1e-3)
