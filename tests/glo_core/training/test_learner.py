"""One step with padding: whose gradient is divided by what, and what padding may touch: batch statistics alone."""

import copy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

import glo_core as glo
from glo_core.data.epoch_order import LaneEpoch, LaneOrder
from glo_core.decoder.batch_norm import GroupedBatchNorm
from glo_core.decoder.transposed import TransposedDecoder
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.batch import Batch, StepRows, upload
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.learner import Learner
from glo_core.training.schedule import Rates
from tests.distributed import step_ranks
from tests.helpers.tiny_training import CONFIG, same

ROWS = np.array([7, 2, 9, 9, 4, 0, 4, 7])
VALID = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
"""Five images of a batch of eight; padding repeats three of their rows"""
KINDS = step_ranks.KINDS
Projection = Literal["sphere", "ball"]


def make_learner(kind: str, batch_size: int, projection: Projection = "sphere") -> Learner:
    """A learner of 10 images in float64 whose codes move by minus their gradient."""
    code = glo.CodeConfig(dim=4, optimizer="sgd", learning_rate=1.0, projection=projection)
    decoder = glo.DecoderConfig(kind=kind, filters=(16, 8))
    recipe = glo.TrainConfig(precision="float64", batch_size=batch_size, code=code, decoder=decoder)
    config = resolve_defaults(recipe, num_images=10, resolution=16)
    random = torch.Generator().manual_seed(0)
    raw = 0.25 * torch.randn(10, 4, dtype=torch.float64, generator=random)
    learner = Learner(config, images(), glo.CodeTable(config.code, np.arange(10), raw), glo.SingleProcess())
    if kind == "residual":  # A block starts as its skip, which would leave weights without a gradient.
        for parameter in learner.decoder.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, dtype=torch.float64, generator=random)
    return learner


def images() -> glo.TensorImages:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 1), dtype=np.uint8)
    return glo.TensorImages(torch.from_numpy(pixels), code_shards=1)


def batch_of(rows: np.ndarray, valid: np.ndarray) -> Batch:
    (step,) = upload(LaneEpoch(rows[None], valid[None]), torch.device("cpu"), torch.float64)
    return Batch(images().take(rows), step)


def take_step(learner: Learner, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Gradients of the codes of all rows and of the decoder's parameters, and the sums that the step returns."""
    before = learner.table.resident.raw.clone()
    sums = learner.step(batch, Rates(decoder=1.0, codes=1.0))
    return (
        before - learner.table.resident.raw,
        [parameter.grad.clone() for parameter in learner.decoder.parameters()],
        sums,
    )


def with_pytorch_norms(decoder: nn.Module) -> nn.Module:
    """A copy of `decoder` whose batch norms are PyTorch's, in training mode."""
    plain = copy.deepcopy(decoder)
    norms = plain.norms if isinstance(plain, TransposedDecoder) else nn.ModuleList()
    for place, norm in enumerate(norms):
        assert isinstance(norm, GroupedBatchNorm)
        norms[place] = nn.BatchNorm2d(len(norm.weight), norm.eps).double()
    return plain.train()


def losses_of_valid(learner: Learner, places: torch.Tensor, decoder: nn.Module) -> torch.Tensor:
    """l_i of the valid images, `[5]`, by the raw code at each place of the batch; padding counts in the statistics."""
    target = to_target(images().take(ROWS), torch.float64)
    return mse(decoder(learner.table.resident.project(places)), target)[torch.from_numpy(VALID)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_follows_the_sum_of_valid_losses_over_the_nominal_batch(kind: str) -> None:
    learner = make_learner(kind, batch_size=8)
    plain = with_pytorch_norms(learner.decoder)
    parameters = list(plain.parameters())
    losses = losses_of_valid(learner, learner.table.resident.raw[torch.from_numpy(ROWS)], plain)
    # One backward pass for each image: nothing is averaged on the way.
    of_images = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    expected = [sum(of_parameter) / 8 for of_parameter in zip(*of_images, strict=True)]
    _, gradients, _ = take_step(learner, batch_of(ROWS, VALID))
    assert len(gradients) == len(expected) > 4
    for gradient, reference in zip(gradients, expected, strict=True):
        assert reference.abs().max() > 1e-6
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection", ["sphere", "ball"])
def test_a_code_follows_the_sum_of_valid_losses_undivided(kind: str, projection: Projection) -> None:
    learner = make_learner(kind, batch_size=8, projection=projection)
    # Each place of the batch is a variable of its own: what padding adds to the statistics moves no code.
    places = learner.table.resident.raw[torch.from_numpy(ROWS)].requires_grad_()
    losses_of_valid(learner, places, with_pytorch_norms(learner.decoder)).sum().backward()
    assert places.grad is not None
    rows = ROWS[VALID]
    expected = torch.zeros_like(learner.table.resident.raw)
    expected[torch.from_numpy(rows)] = places.grad[torch.from_numpy(VALID)]
    if projection == "ball":  # No code leaves the ball, to be pulled back.
        assert (learner.table.resident.raw - expected).norm(dim=1).max() < 1
    codes, _, _ = take_step(learner, batch_of(ROWS, VALID))
    torch.testing.assert_close(codes, expected, rtol=1e-9, atol=1e-13)
    assert codes[rows].abs().amax(1).min() > 1e-6
    assert not codes[np.setdiff1d(np.arange(10), rows)].any()


def test_padding_to_twice_the_batch_leaves_codes_alone_and_halves_the_decoders_gradient() -> None:
    codes, gradients, sums = take_step(make_learner("residual", 8), batch_of(ROWS, VALID))
    padded = batch_of(np.concatenate([ROWS, ROWS]), np.concatenate([VALID, np.zeros(8, bool)]))
    codes_padded, gradients_padded, sums_padded = take_step(make_learner("residual", 16), padded)
    torch.testing.assert_close(codes_padded, codes, rtol=1e-9, atol=1e-13)
    for padded_gradient, gradient in zip(gradients_padded, gradients, strict=True):
        torch.testing.assert_close(2 * padded_gradient, gradient, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(sums_padded[:-1], sums[:-1], rtol=1e-9, atol=0)
    torch.testing.assert_close(2 * sums_padded[-1], sums[-1], rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def steps_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients of the same global batch on 1, 2 and 4 ranks, in real processes."""
    place = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(Path(step_ranks.__file__)), str(place), "1", "2", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_at_every_world_size(kind: str, steps_of_ranks: Path) -> None:
    alone = torch.load(steps_of_ranks / f"{kind}-1-0.pt")
    assert sum(bool(gradient.any()) for name, gradient in alone.items() if name.isdigit()) == 6
    for world_size in (2, 4):
        of_ranks = [torch.load(steps_of_ranks / f"{kind}-{world_size}-{rank}.pt") for rank in range(world_size)]
        assert sum(name.isdigit() for gradients in of_ranks for name in gradients) == 23  # Each code on one rank.
        assert set().union(*of_ranks) == set(alone)
        for gradients in of_ranks:
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, alone[name], rtol=1e-9, atol=1e-13)


def other_pixels(batch: Batch) -> Batch:
    noise = np.random.default_rng(int(batch.rows.on_host.sum())).integers(0, 256, batch.images.shape, dtype=np.uint8)
    valid = torch.from_numpy(batch.rows.valid)[:, None, None, None]
    return batch._replace(images=torch.where(valid, batch.images, torch.from_numpy(noise)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_of_padding_change_no_bit_of_a_step(kind: str) -> None:
    def steps(batch: Batch) -> Sequence[torch.Tensor]:
        learner = make_learner(kind, batch_size=8)
        sums = [take_step(learner, batch)[-1] for _ in range(3)]
        return [*sums, *learner.table.resident.columns().values(), *learner.decoder.state_dict().values()]

    batch = batch_of(ROWS, VALID)
    for undisturbed, changed in zip(steps(batch), steps(other_pixels(batch)), strict=True):
        assert torch.equal(undisturbed, changed)


def test_other_rows_in_padding_change_no_bit_of_a_step_without_batch_statistics() -> None:
    def steps(rows: np.ndarray) -> Sequence[torch.Tensor]:
        learner = make_learner("residual", batch_size=8)
        sums = [take_step(learner, batch_of(rows, VALID))[-1] for _ in range(3)]
        return [*sums, *learner.table.resident.columns().values(), *learner.decoder.state_dict().values()]

    others = ROWS.copy()
    others[~VALID] = [1, 3, 8]  # None of them is an image of the batch.
    for undisturbed, changed in zip(steps(ROWS), steps(others), strict=True):
        assert torch.equal(undisturbed, changed)


def test_padding_takes_the_update_of_the_image_that_it_repeats_or_none() -> None:
    rows, valid = np.array([[3, 5, 5, 7], [2, 2, 9, 9]]), np.array([[1, 1, 0, 0], [0, 0, 1, 0]], bool)
    first, second = upload(LaneEpoch(rows, valid), torch.device("cpu"), torch.float32)
    assert isinstance(first, StepRows)
    assert first.source is not None
    assert first.changed is not None
    assert second.source is not None
    assert second.changed is not None
    assert first.source.tolist() == [0, 1, 1, 3]
    assert first.changed[:, 0].tolist() == [True, True, True, False]
    assert second.source.tolist() == [0, 1, 2, 2]
    assert second.changed[:, 0].tolist() == [False, False, True, True]
    assert second.mask.tolist() == [0, 0, 1, 0]
    (full,) = upload(LaneEpoch(rows[:1, [0, 1, 3]], np.ones((1, 3), bool)), torch.device("cpu"), torch.float32)
    assert full.source is None
    assert full.changed is None


def test_the_pixels_of_padding_change_no_bit_of_a_training(
    blobs: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[int, float]] = []
    runtime = glo.SingleProcess(
        on_report=lambda seen, metrics: reports.append((seen, metrics["loss"])) if "loss" in metrics else None
    )
    # 32 lanes of 4 or 5 images, one of them in a step: 10 rows of 160 in an epoch are padding. Batch norm is present.
    arguments = (CONFIG, glo.TensorImages(blobs), glo.Phase(target=600))
    undisturbed = glo.train_phase(*arguments, runtime=runtime, intervals=glo.Intervals(report=1))
    undisturbed_reports = reports.copy()
    reports.clear()
    changes = []
    original_batches = EpochBatches.batches

    def batches(self: EpochBatches, orders: Sequence[LaneOrder], first: int) -> Iterator[Batch]:
        for batch in original_batches(self, orders, first):
            yield other_pixels(batch)
            changes.append(int((~batch.rows.valid).sum()))

    monkeypatch.setattr(EpochBatches, "batches", batches)
    changed = glo.train_phase(*arguments, runtime=runtime, intervals=glo.Intervals(report=1))
    assert sum(changes) >= 40
    assert reports == undisturbed_reports
    assert same(undisturbed, changed)
    assert changed.position == undisturbed.position
    assert changed.position.images_seen == 600
    assert changed.metrics == undisturbed.metrics
