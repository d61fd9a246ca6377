"""Mixed precision: what is asked for, what the device has, and what stays float32."""

import time
from typing import Any

import numpy as np
import pytest
import torch

import glo_core as glo
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import ConfigError
from glo_core.training import autocast
from glo_core.training.autocast import choose_autocast, set_float32_products
from glo_core.training.config import Autocast
from tests.helpers.tiny_training import CONFIG, Impatient, same


def never(_: bool) -> None:
    raise AssertionError("a device that tells needs no trial")


@pytest.mark.parametrize(
    ("requested", "precision", "hardware", "earlier", "chosen"),
    [
        ("auto", "float32", True, None, True),
        ("auto", "float32", False, None, False),
        ("off", "float32", True, None, False),
        ("bfloat16", "float32", False, None, True),
        ("auto", "float64", True, None, False),
        # A phase goes on as it began, where the device can.
        ("auto", "float32", True, "off", False),
        ("auto", "float32", True, "bfloat16", True),
        ("auto", "float32", False, "bfloat16", False),
        ("off", "float32", True, "bfloat16", False),
    ],
)
def test_what_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    requested: Autocast,
    precision: str,
    hardware: bool,
    earlier: str | None,
    chosen: bool,
) -> None:
    monkeypatch.setattr(autocast, "bfloat16_in_hardware", lambda _: hardware)
    assert choose_autocast(requested, precision, glo.SingleProcess(), never, earlier) == chosen


@pytest.mark.parametrize(("slow", "chosen"), [(False, True), (True, False)])
def test_a_device_that_does_not_tell_is_tried(monkeypatch: pytest.MonkeyPatch, slow: bool, chosen: bool) -> None:
    monkeypatch.setattr(autocast, "bfloat16_in_hardware", lambda _: None)

    def trial(reduced: bool) -> None:
        time.sleep(0.03 if reduced == slow else 0.01)

    since = time.perf_counter()
    assert choose_autocast("auto", "float32", glo.SingleProcess(), trial) == chosen
    assert time.perf_counter() - since < 10


def test_float64_excludes_it_in_one_line(blobs: torch.Tensor) -> None:
    config = glo.TrainConfig(precision="float64")
    with pytest.raises(ConfigError, match=r"`autocast` \(=bfloat16\) needs `precision` float32"):
        glo.train(blobs, config=config, images_seen=100, autocast="bfloat16", progress=False)


def test_only_layers_are_in_bfloat16(blobs: torch.Tensor) -> None:
    dtypes: list[torch.dtype] = []

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        dtypes.append(prediction.dtype)
        # Values of bfloat16 have 8 bits: they are what the last layer gave.
        assert torch.equal(prediction, prediction.bfloat16().float())
        return (prediction - target).square().mean(dim=(1, 2, 3))

    result = glo.train_phase(
        CONFIG, glo.TensorImages(blobs), glo.Phase(target=64), loss=with_trial(loss), autocast="bfloat16"
    )
    assert set(dtypes) == {torch.float32}
    tensors = [*result.decoder.state_dict().values(), *result.table.resident.columns().values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32, torch.int32}


def with_trial(loss: Any) -> Any:
    """`loss`, but for the call that asks whether it gives one number per image."""
    calls = 0

    def called(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(prediction, target) if calls > 1 else (prediction - target).square().mean(dim=(1, 2, 3))

    return called


def test_psnr_is_that_of_float32(blobs: torch.Tensor) -> None:
    psnr = [
        glo.train(
            blobs, config=CONFIG, images_seen=6000, autocast="bfloat16" if reduced else "off", progress=False
        ).metrics["psnr"]
        for reduced in (False, True)
    ]
    assert psnr[0] > 15
    assert abs(psnr[0] - psnr[1]) < 0.5  # Seeds differ by more on so few images.


def test_a_phase_goes_on_as_it_began_to_the_same_bits(
    blobs: torch.Tensor, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocast, "bfloat16_in_hardware", lambda _: True)
    images, phase = glo.TensorImages(blobs), glo.Phase(target=1500)
    whole = glo.train_phase(CONFIG, images, phase, autocast="bfloat16")
    glo.train_phase(CONFIG, images, phase, runtime=Impatient(3), run=tmp_path)
    assert Checkpoint.latest(tmp_path).autocast == "bfloat16"
    assert Checkpoint.latest(tmp_path).position.images_seen < 1500
    assert same(glo.train_phase(CONFIG, images, phase, run=tmp_path), whole)


def test_reports_say_how_a_step_is_computed(blobs: torch.Tensor) -> None:
    reports: list[dict[str, float]] = []
    runtime = glo.SingleProcess(on_report=lambda _, metrics: reports.append(metrics))
    images = glo.TensorImages(blobs)
    for asked in ("off", "bfloat16"):
        glo.train_phase(CONFIG, images, glo.Phase(target=64), runtime=runtime, autocast=asked)
    assert [report["autocast"] for report in reports if "autocast" in report] == [0.0, 1.0]
    assert np.isfinite([report["loss"] for report in reports if "loss" in report]).all()


@pytest.mark.parametrize("enabled", [True, False])
def test_how_a_gpu_multiplies_float32_is_set_and_not_inherited(enabled: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not enabled
    set_float32_products(enabled)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is enabled
