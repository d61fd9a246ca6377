"""The average of weights: its half-life is counted in images, however many a step has."""

import pytest
import torch
from torch import nn

from glo_core.decoder.ema import UPDATE_IMAGES, EmaDecoder


def averaged(half_life: float | None, batch: int, images: int) -> float:
    """The average of a weight that is the number of images seen, after steps of `batch`."""
    decoder = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(decoder.weight)
    ema = EmaDecoder(decoder, half_life)
    for seen in range(batch, images + 1, batch):
        nn.init.constant_(decoder.weight, float(seen))
        ema.follow(decoder, seen - batch, seen)
    return float(ema.decoder.get_parameter("weight"))


@pytest.mark.parametrize("half_life", [2_000.0, 50_000.0])
@pytest.mark.parametrize("batch", [4, 16, 96, 256])
def test_the_half_life_does_not_depend_on_the_batch(half_life: float, batch: int) -> None:
    images = 192_000
    # Behind a line the average lags by half_life / ln 2 images; a batch is a step of the line.
    assert averaged(half_life, batch, images) == pytest.approx(averaged(half_life, 1, images), abs=2 * UPDATE_IMAGES)


@pytest.mark.parametrize("batch", [1, 16, 100])
def test_without_a_half_life_the_weights_are_those_of_the_last_step(batch: int) -> None:
    assert averaged(None, batch, 300) == 300 // batch * batch


def test_small_batches_average_once_in_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(EmaDecoder, "update", lambda self, decoder, seen, images: calls.append((seen, images)))
    averaged(50_000.0, 48, 480)
    assert calls == [(144, 128), (288, 128), (384, 128)]
