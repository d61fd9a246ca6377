"""The figures at the end of a phase are those of the checkpoint that is there."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import glo_core as glo
from glo_core.checkpoint.layout import metrics_path
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.training import loop
from tests.helpers import tiny_training

# The run keeps the principal components that the codes begin with: without them its files alone decide.
CONFIG = dataclasses.replace(tiny_training.CONFIG, code=glo.CodeConfig(dim=4, init="random"))


class KilledError(Exception):
    pass


def killed(*_: object, **__: object) -> None:
    raise KilledError


def test_figures_of_a_checkpoint_that_was_deleted_are_not_taken_for_those_of_the_next_one(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, phase = tmp_path / "run", glo.Phase(target=300)
    earlier = glo.train_phase(CONFIG, glo.TensorImages(blobs), phase, run=run)
    shutil.rmtree(run / "checkpoints")
    images = glo.TensorImages(255 - blobs.flip(1) // 2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "final_figures", killed)
        with pytest.raises(KilledError):
            glo.train_phase(CONFIG, images, phase, run=run)
    assert not metrics_path(run, 300).exists()  # A driver would take it for that of this training.
    assert not metrics_path(run, 300).with_suffix(".safetensors").exists()

    resumed = glo.train_phase(CONFIG, images, phase, run=run)
    right = glo.train_phase(CONFIG, images, phase, run=tmp_path / "other")
    assert resumed.metrics == right.metrics != earlier.metrics
    files = [metrics_path(path, 300).with_suffix(".safetensors") for path in (run, tmp_path / "other")]
    assert torch.equal(*(PcaBaseline.load(file).mean for file in files))


def test_figures_that_an_interrupted_command_has_kept_are_read(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, phase = glo.TensorImages(blobs), glo.Phase(target=300)
    first = glo.train_phase(CONFIG, images, phase, run=tmp_path)
    monkeypatch.setattr(PcaBaseline, "fit", killed)
    assert glo.train_phase(CONFIG, images, phase, run=tmp_path).metrics == first.metrics
