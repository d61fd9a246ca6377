"""A compiled step, its fallback, and that a step waits for nothing."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import glo_core as glo
from glo_core.data.image_cache import ResidentImages
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.compilation import compile_step
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.init_codes import empty_table
from glo_core.training.learner import Learner
from glo_core.training.meter import Meter
from glo_core.training.schedule import Rates
from tests.helpers.paths import ROOT

BATCH = 64


def learner_of(images: torch.Tensor) -> tuple[Learner, EpochBatches]:
    """A learner in float64, two norm groups in a batch, and its order of training over resident images."""
    config = glo.TrainConfig(batch_size=BATCH, precision="float64", code=glo.CodeConfig(dim=4, init="random"))
    source, runtime = glo.TensorImages(images), glo.SingleProcess()
    recipe = resolve_defaults(config, len(images), 16)
    epochs = EpochBatches(recipe, source, runtime, "host")
    assert isinstance(epochs.images, ResidentImages)
    epochs.images.take(np.arange(len(images)))
    table = empty_table(epochs, runtime, None)
    table.write(0, {"raw": torch.randn(len(images), 4, generator=torch.Generator().manual_seed(0))})
    return Learner(recipe, epochs.images, table, runtime), epochs


def steps(learner: Learner, epochs: EpochBatches) -> list[torch.Tensor]:
    batches = epochs.batches(epochs.orders(0), 0)
    return [learner.step(batch, Rates(decoder=1.0, codes=1.0 / (i + 1))) for i, batch in enumerate(batches)]


def state(learner: Learner) -> list[torch.Tensor]:
    return [*learner.decoder.state_dict().values(), *learner.table.resident.columns().values()]


def compiled_step_computes_the_same_and_its_trial_changes_nothing() -> None:
    blobs = torch.randint(0, 256, (150, 16, 16, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (plain, epochs), (compiled, _) = learner_of(blobs), learner_of(blobs)
    before = [tensor.clone() for tensor in state(compiled)]
    assert compile_step(compiled, BATCH, "on", compiled.runtime, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(before, state(compiled), strict=True))
    for expected, actual in zip(steps(plain, epochs), steps(compiled, epochs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for expected, actual in zip(state(plain), state(compiled), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_a_compiled_step_computes_the_same_and_its_trial_changes_nothing() -> None:
    # In a process of its own: the compiler would trace the checks of types that these tests put around functions.
    command = f"from {__name__} import *; compiled_step_computes_the_same_and_its_trial_changes_nothing()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_cannot_be_compiled_trains_plain_and_says_so(
    blobs: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    learner, epochs = learner_of(blobs)
    with caplog.at_level(logging.WARNING):
        assert not compile_step(learner, BATCH, "on", learner.runtime, backend="no_such_backend")
    assert len([line for line in caplog.messages if "without compilation" in line]) == 1
    plain, _ = learner_of(blobs)
    assert all(torch.equal(a, b) for a, b in zip(steps(plain, epochs), steps(learner, epochs), strict=True))


def test_a_cpu_compiles_only_when_asked(blobs: torch.Tensor) -> None:
    learner, _ = learner_of(blobs)
    forward = learner.forward
    assert not compile_step(learner, BATCH, "auto", learner.runtime)
    assert not compile_step(learner, BATCH, "off", learner.runtime)
    assert learner.forward == forward


class Waits(TorchDispatchMode):
    """Counts operations after which a host waits for its device, and those whose shapes depend on values."""

    _WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith(("index", "_index_put")) and len(args) > 1 else ()
        by_mask = isinstance(indices, list) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices
        )
        if name in self._WAITING or by_mask:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_copies_to_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of methods by which values of tensors were read on the host."""
    calls: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(
            self: torch.Tensor, *args: Any, _name: str = name, _original: Any = original, **options: Any
        ) -> Any:
            calls.append(_name)
            return _original(self, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return iter([calls])


def test_a_steady_step_waits_for_nothing(blobs: torch.Tensor, no_copies_to_the_host: Iterator[list[str]]) -> None:
    (calls,) = no_copies_to_the_host
    learner, epochs = learner_of(blobs)
    batches, meter = epochs.batches(epochs.orders(0), 0), Meter(learner)
    learner.step(next(batches), Rates(decoder=1.0, codes=1.0))  # 256 steps are uploaded; the optimizer's state is made.
    calls.clear()
    with Waits() as counter:
        for seen, batch in enumerate(batches, 1):
            meter.add(learner.step(batch, Rates(decoder=0.5, codes=0.5)), BATCH)
            learner.ema.follow(learner.decoder, (seen - 1) * BATCH, seen * BATCH)
    assert seen >= 2
    assert counter.waits == []
    assert calls == []
    with Waits() as counter:  # The counter can count.
        assert torch.ones(3)[torch.ones(3) > 0].sum().item() == 3
    assert len(counter.waits) >= 2
    assert calls == ["item"]
