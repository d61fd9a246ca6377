"""What a resume reads: the checkpoint, and images of new rows alone."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import glo_core as glo
from glo_core.checkpoint.layout import Position
from glo_core.common import in_step
from glo_core.common.arrays import Int64Array
from glo_core.common.runtime import Metrics
from glo_core.data.read_ahead import BUFFERS
from glo_core.training import growth
from tests.helpers.tiny_training import CONFIG, Impatient, same


class Counted:
    """Images of a tensor, which count how often each is read."""

    def __init__(self, images: glo.TensorImages, reads: list[int] | None = None) -> None:
        self._images = images
        self.reads: list[int] = [] if reads is None else reads
        """Ids in the order of reading, over all selections"""
        self.ids, self.shards, self.code_shards = images.ids, images.shards, images.code_shards
        self.resolution, self.channels, self.snapshot = images.resolution, images.channels, images.snapshot

    def take(self, rows: Int64Array) -> torch.Tensor:
        self.reads.extend(self.ids[rows].tolist())
        return self._images.take(rows)

    def select(self, shards: Sequence[int]) -> "Counted":
        return Counted(self._images.select(shards), self.reads)


@pytest.mark.parametrize("cache", ["auto", "disk"])
@pytest.mark.parametrize("window", [None, 4])
def test_a_resume_reads_no_image_before_its_first_step(
    blobs: torch.Tensor, tmp_path: Path, cache: glo.data.config.Cache, window: int | None
) -> None:
    config, phase = dataclasses.replace(CONFIG, window=window), glo.Phase(target=900)
    images = Counted(glo.TensorImages(blobs))
    whole = glo.train_phase(config, images, phase, run=tmp_path / "whole", cache=cache)
    assert len(set(images.reads)) == 150
    stopped = glo.train_phase(config, images, phase, run=tmp_path / "run", runtime=Impatient(after=4), cache=cache)
    assert not stopped.finished
    images.reads.clear()
    at_first_step: list[int] = []

    def on_step(_: int) -> None:
        if not at_first_step:
            at_first_step.append(len(images.reads))

    resumed = glo.train_phase(config, images, phase, run=tmp_path / "run", cache=cache, on_step=on_step)
    # The step's own batch and those that are read ahead, and nothing for codes that the checkpoint has.
    assert at_first_step[0] <= BUFFERS * 32
    for (name, column), other in zip(
        resumed.table.read(0, 150).items(), whole.table.read(0, 150).values(), strict=True
    ):
        assert torch.equal(column, other), name


def test_a_finished_training_is_opened_again_without_an_image(blobs: torch.Tensor, tmp_path: Path) -> None:
    images, phase = Counted(glo.TensorImages(blobs)), glo.Phase(target=300)
    first = glo.train_phase(CONFIG, images, phase, run=tmp_path)
    images.reads.clear()
    second = glo.train_phase(CONFIG, images, phase, run=tmp_path)
    assert images.reads == []
    assert same(first, second)
    assert second.metrics == first.metrics


def test_growth_reads_new_images_and_a_sample_of_the_others(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glo.train_phase(CONFIG, glo.TensorImages(blobs[:100]), glo.Phase(target=300), run=tmp_path)
    monkeypatch.setattr(growth, "SAMPLE", 30)
    images = Counted(glo.TensorImages(blobs))
    before: list[int] = []
    glo.train_phase(
        CONFIG,
        images,
        glo.Phase(number=1, start=300, target=450),
        run=tmp_path,
        cache="disk",
        on_step=lambda _: before.append(len(images.reads)),
    )
    read = images.reads[: before[0]]
    assert set(range(100, 150)) <= set(read)
    assert len(read) < 2 * 50 + 40 + BUFFERS * 32


class Stopping(glo.SingleProcess):
    """Asks to stop at the n-th meeting of the work of this name, and reports how far it is at each."""

    def __init__(self, name: str, after: int) -> None:
        super().__init__()
        self.name, self.after, self.shares = name, after, list[float]()

    def report(self, images_seen: int, metrics: Metrics) -> None:
        self.shares += [value for key, value in metrics.items() if key == f"{self.name}_progress"]

    def stop_requested(self) -> bool:
        return len(self.shares) >= self.after


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that 150 images are many, and a report after each."""
    monkeypatch.setattr(in_step, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr("glo_core.codes.pca_init.CHUNK", 20)
    monkeypatch.setattr("glo_core.evaluation.pca_baseline._CHUNK", 20)
    monkeypatch.setattr("glo_core.evaluation.metrics._CHUNK", 20)
    monkeypatch.setattr(growth, "_CHUNK", 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("window", [None, 4])
def test_growth_reports_stops_soon_and_goes_on_bitwise(blobs: torch.Tensor, tmp_path: Path, window: int | None) -> None:
    config = dataclasses.replace(CONFIG, window=window)
    glo.train_phase(config, glo.TensorImages(blobs[:100]), glo.Phase(target=300), run=tmp_path / "0")
    for name in ("whole", "run"):
        shutil.copytree(tmp_path / "0", tmp_path / name)
    grown, phase = glo.TensorImages(blobs), glo.Phase(number=1, start=300, target=600)
    whole = glo.train_phase(config, grown, phase, run=tmp_path / "whole")

    stopping = Stopping("growth", after=growth.FIT_STEPS * 2 + 20)
    stopped = glo.train_phase(config, grown, phase, run=tmp_path / "run", runtime=stopping)
    assert not stopped.finished
    assert stopped.position.images_seen == 300
    assert stopping.shares == sorted(stopping.shares)
    assert 0 < stopping.shares[0] < stopping.shares[-1] < 1
    kept = list((tmp_path / "run/growth").glob("*/*.safetensors"))
    assert len(kept) == 2
    times = {path: path.stat().st_mtime_ns for path in kept}

    # The next command takes fewer steps, and ends as if nothing had happened.
    counting = Stopping("growth", after=10**9)
    resumed = glo.train_phase(config, grown, phase, run=tmp_path / "run", runtime=counting)
    assert {path: value for path, value in times.items() if path.exists()} == {}
    assert resumed.finished
    for (name, column), other in zip(
        resumed.table.read(0, 150).items(), whole.table.read(0, 150).values(), strict=True
    ):
        assert torch.equal(column, other), name
    assert resumed.metrics == whole.metrics
    fit_steps = len(counting.shares) + 1
    assert fit_steps % growth.FIT_STEPS == 0
    assert not (tmp_path / "run/growth").exists()


@pytest.mark.usefixtures("small_chunks")
def test_a_stop_before_the_first_step_ends_soon(blobs: torch.Tensor, tmp_path: Path) -> None:
    images, phase = glo.TensorImages(blobs), glo.Phase(target=300)
    stopping = Stopping("init", after=3)
    stopped = glo.train_phase(CONFIG, images, phase, run=tmp_path, runtime=stopping)
    assert not stopped.finished
    assert stopped.position == Position()
    assert len(stopping.shares) == 3
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert same(glo.train_phase(CONFIG, images, phase, run=tmp_path), glo.train_phase(CONFIG, images, phase))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("work", ["pca", "psnr"])
def test_a_stop_in_the_final_figures_keeps_the_training_and_the_next_command_measures(
    blobs: torch.Tensor, tmp_path: Path, work: str
) -> None:
    images, phase = Counted(glo.TensorImages(blobs)), glo.Phase(target=300)
    whole = glo.train_phase(CONFIG, images, phase, run=tmp_path / "whole")
    stopped = glo.train_phase(CONFIG, images, phase, run=tmp_path / "run", runtime=Stopping(work, after=2))
    assert not stopped.finished
    assert stopped.position.images_seen == 300
    assert stopped.metrics == {}
    images.reads.clear()
    after = glo.train_phase(CONFIG, images, phase, run=tmp_path / "run")
    assert after.finished
    assert after.metrics == whole.metrics
    if work == "psnr":  # The components were kept: one pass for the PSNR is left.
        assert sorted(images.reads) == list(range(150))


def test_chunks_of_one_pass_are_all_there_and_a_single_one_asks_nobody() -> None:
    asked: list[int] = []

    class Asked(glo.SingleProcess):
        def stop_requested(self) -> bool:
            asked.append(1)
            return False

    work = in_step.InStep(Asked(), "work", passes=2)
    assert np.concatenate(list(in_step.in_chunks(5, 5, work))).tolist() == list(range(5))
    assert asked == []
    assert np.concatenate(list(in_step.in_chunks(5, 2, work))).tolist() == list(range(5))
    assert len(asked) == 2
