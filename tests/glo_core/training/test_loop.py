"""Training in one process, without Ray: the loop, the clock, resuming, and what a notebook user types."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

import glo_core as glo
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.codes.windowed_table import WindowedTable
from glo_core.data.image_cache import ResidentImages, place_images
from glo_core.losses.pixel_ranges import to_target, to_unit
from glo_core.sampling.image_grid import GAP
from glo_core.training import init_codes, previews
from glo_core.training.epoch_batches import EpochBatches, too_many_workers
from glo_core.training.growth import Growth
from tests.golden import losses
from tests.helpers.tiny_training import CONFIG, RESOLVED, Impatient, same


def test_a_notebook_user_trains_on_a_tensor(blobs: torch.Tensor) -> None:
    trained = glo.train_phase(CONFIG, glo.TensorImages(blobs), glo.Phase(target=20_000))
    assert trained.metrics["psnr"] > trained.metrics["pca_psnr"] + 1
    assert trained.decoder(trained.table.codes()).shape == (150, 1, 16, 16)


def test_every_report_counts_images_and_each_image_once_an_epoch(blobs: torch.Tensor) -> None:
    reports: list[int] = []
    runtime = glo.SingleProcess(on_report=lambda images, metrics: reports.append(images) if "loss" in metrics else None)
    trained = glo.train_phase(
        CONFIG, glo.TensorImages(blobs), glo.Phase(target=450), runtime=runtime, intervals=glo.Intervals(report=100)
    )
    assert trained.position.images_seen == 450
    assert trained.position.epoch == 3
    assert trained.table.resident.num_updates.tolist() == [3] * 150
    assert reports[-1] == 450
    assert len(reports) == 5


@pytest.mark.parametrize(("init", "projection"), [("pca", "sphere"), ("random", "ball")])
def test_stopped_and_resumed_is_bitwise_undisturbed(
    blobs: torch.Tensor, tmp_path: Path, init: Literal["pca", "random"], projection: Literal["sphere", "ball"]
) -> None:
    code = glo.CodeConfig(dim=4, init=init, projection=projection)
    config = glo.TrainConfig(batch_size=32, code=code, decoder=CONFIG.decoder)
    phase, images = glo.Phase(target=2000), glo.TensorImages(blobs)
    whole = glo.train_phase(config, images, phase, run=tmp_path / "whole")

    first = glo.train_phase(config, images, phase, run=tmp_path / "parts", runtime=Impatient(after=4))
    assert not first.finished
    assert 0 < first.position.images_seen < 2000
    assert first.position.step != 0
    second = glo.train_phase(config, images, phase, run=tmp_path / "parts")
    assert second.finished
    assert same(whole, second)


@pytest.mark.parametrize("cache", ["device", "host", "disk", "auto"])
def test_the_result_does_not_depend_on_where_the_images_lie(
    blobs: torch.Tensor, tmp_path: Path, cache: Literal["auto", "device", "host", "disk"]
) -> None:
    images, phase = glo.TensorImages(blobs), glo.Phase(target=400)
    assert same(glo.train_phase(CONFIG, images, phase), glo.train_phase(CONFIG, images, phase, cache=cache))
    resident = place_images(images, cache, torch.device("cpu"))
    rows = np.array([3, 149, 3, 0])
    assert torch.equal(resident.take(rows), images.take(rows))
    assert isinstance(resident, ResidentImages) == (cache != "disk")


# 8 lanes of 18 or 19 rows, 4 of them in a step: steps need two windows of a lane, and not all windows have a slot.
WINDOWED = dataclasses.replace(CONFIG, batch_size=32, window=5)
LANES, WINDOW = 8, 5


def test_windows_on_disk_train_as_the_same_windows_in_memory(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, phase = glo.TensorImages(blobs, code_shards=LANES), glo.Phase(target=1500)
    runtime = glo.SingleProcess(on_picture=lambda *_: None)
    intervals = glo.Intervals(checkpoint=100, grid=130)  # Both read other windows than the step's.
    on_disk = glo.train_phase(WINDOWED, images, phase, run=tmp_path / "disk", intervals=intervals, runtime=runtime)
    assert isinstance(on_disk.table, WindowedTable)
    assert len(on_disk.table.resident.raw) == 3 * LANES * WINDOW < 150
    monkeypatch.setattr(
        init_codes,
        "WindowedTable",
        lambda code, ids, *_, device, dtype, **__: glo.CodeTable(
            code, ids, torch.empty(len(ids), code.dim, device=device, dtype=dtype)
        ),
    )
    in_memory = glo.train_phase(WINDOWED, images, phase)
    assert isinstance(in_memory.table, glo.CodeTable)
    for name, column in on_disk.table.read(0, 150).items():
        assert torch.equal(column, in_memory.table.columns()[name])
    assert on_disk.metrics == in_memory.metrics
    ids, codes = glo.Checkpoint.latest(tmp_path / "disk").codes()
    assert np.array_equal(codes[on_disk.table.ids], on_disk.table.codes().numpy())
    assert ids.tolist() == list(range(150))


def test_windows_are_restored_from_the_checkpoint(blobs: torch.Tensor, tmp_path: Path) -> None:
    images, phase = glo.TensorImages(blobs, code_shards=LANES), glo.Phase(target=1000)
    whole = glo.train_phase(WINDOWED, images, phase)
    first = glo.train_phase(WINDOWED, images, phase, run=tmp_path, runtime=Impatient(after=4))
    assert 0 < first.position.images_seen < 1000
    second = glo.train_phase(WINDOWED, images, phase, run=tmp_path)
    for name, column in second.table.read(0, 150).items():
        assert torch.equal(column, whole.table.read(0, 150)[name])


def test_a_window_shorter_than_a_step_is_one_line(blobs: torch.Tensor) -> None:
    with pytest.raises(glo.UserError, match=r"`window` \(=3\) must be at least 4, the rows of a lane in a step"):
        images = glo.TensorImages(blobs, code_shards=LANES)
        glo.train_phase(dataclasses.replace(WINDOWED, window=3), images, glo.Phase(target=100))


def test_a_scratch_directory_that_is_none_is_one_line(blobs: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(glo.UserError, match=r"`scratch` \(=.*none\): no such file or directory; name a local disk"):
        glo.train_phase(
            WINDOWED, glo.TensorImages(blobs, code_shards=LANES), glo.Phase(target=100), scratch=tmp_path / "none"
        )


def test_a_longer_target_is_a_new_phase_that_goes_on(blobs: torch.Tensor, tmp_path: Path) -> None:
    images = glo.TensorImages(blobs)
    first = glo.train_phase(CONFIG, images, glo.Phase(target=600), run=tmp_path)
    second = glo.train_phase(CONFIG, images, glo.Phase(number=1, start=600, target=1200), run=tmp_path)
    assert second.position.phase == 1
    assert second.position.images_seen == 1200
    assert second.metrics["psnr"] > first.metrics["psnr"]
    assert [path.name for path in committed_checkpoints(tmp_path)] == ["600", "1200"]


def test_rows_that_arrive_later_start_from_the_saved_basis(blobs: torch.Tensor, tmp_path: Path) -> None:
    first = glo.train_phase(CONFIG, glo.TensorImages(blobs[:100]), glo.Phase(target=400), run=tmp_path)
    grown = glo.TensorImages(blobs)
    second = glo.train_phase(CONFIG, grown, glo.Phase(number=1, start=400, target=401), run=tmp_path)
    updates = dict(zip(grown.ids.tolist(), second.table.resident.num_updates.tolist(), strict=True))
    assert min(updates[i] for i in range(100)) >= int(first.table.resident.num_updates.min())
    assert max(updates[i] for i in range(100, 150)) <= 1
    torch.testing.assert_close(second.table.codes().norm(dim=1), torch.ones(150))


@pytest.mark.parametrize(
    ("init", "window", "batch_size"),
    # The last one has two lanes of sixteen shards: new rows lie in more windows than there are slots.
    [("pca", None, 32), ("random", None, 32), ("pca", 3, 32), ("pca", 5, 10)],
)
def test_new_rows_start_where_the_decoder_shows_them(
    blobs: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    init: Literal["pca", "random"],
    window: int | None,
    batch_size: int,
) -> None:
    code = dataclasses.replace(CONFIG.code, init=init)
    rate = CONFIG.learning_rate * batch_size / RESOLVED.batch_size
    config = dataclasses.replace(CONFIG, window=window, batch_size=batch_size, learning_rate=rate, code=code)
    first = glo.train_phase(
        config, glo.TensorImages(blobs[:100]), glo.Phase(target=6000), run=tmp_path / "0", autocast="off"
    )
    before = dict(zip(first.table.ids.tolist(), first.table.codes(), strict=True))
    grown = glo.TensorImages(blobs)

    def psnr_after_one_step(run: str) -> tuple[float, float]:
        shutil.copytree(tmp_path / "0", tmp_path / run)
        after = glo.train_phase(
            config, grown, glo.Phase(number=1, start=6000, target=6001), run=tmp_path / run, autocast="off"
        )
        codes = after.table.codes()
        pairs = [(code, before[i]) for code, i in zip(codes, after.table.ids.tolist(), strict=True) if i in before]
        unmoved = [earlier for code, earlier in pairs if torch.equal(code, earlier)]
        assert len(unmoved) >= 100 - RESOLVED.batch_size  # Only rows of the one batch have moved.
        with torch.no_grad():
            error = to_unit(after.decoder(codes)) - to_unit(to_target(blobs[after.table.ids], torch.float32))
        squared = error.square().flatten(1).mean(1)
        old = torch.from_numpy(after.table.ids < 100)
        return -10 * float(squared[old].mean().log10()), -10 * float(squared[~old].mean().log10())

    old, new = psnr_after_one_step("grown")
    assert new > old - 3
    monkeypatch.setattr(Growth, "fit_new_rows", lambda *_: 0)
    _, plain = psnr_after_one_step("plain")
    assert new > plain + 1  # Principal components are a fair start already.


def test_pictures_show_the_same_images_upright_as_training_goes_on(blobs: torch.Tensor) -> None:
    pictures: list[tuple[int, str, Image.Image]] = []
    runtime = glo.SingleProcess(on_picture=lambda *picture: pictures.append(picture))
    images = glo.TensorImages(blobs)
    trained = glo.train_phase(
        CONFIG, images, glo.Phase(target=6000), runtime=runtime, intervals=glo.Intervals(grid=2000)
    )
    assert [(seen // 2000, name) for seen, name, _ in pictures] == [
        (k, f"training_{name}") for k in (1, 2, 3) for name in ("reconstructions", "samples")
    ]
    first, _, last = (np.asarray(picture).astype(float) for _, name, picture in pictures if name.endswith("structions"))
    lane_0 = images.select([0])
    assert len(lane_0.ids) < previews.SHOWN  # Here lanes are shorter than a row of the picture.
    side = images.resolution
    assert np.array_equal(first[:side, :side], lane_0.take(np.array([0]))[0, :, :, 0].numpy())
    assert np.array_equal(first[:side], last[:side])
    # The second row comes closer to the first one.
    errors = [np.square(picture[:side] - picture[side + GAP :]).mean() for picture in (first, last)]
    assert errors[1] < errors[0]
    assert trained.finished


def test_a_diverging_run_stops_in_one_line(blobs: torch.Tensor, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=1e6)

    def steep(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The squared error, with a gradient 1e38 times as large."""
        error = (prediction - target).square().mean((1, 2, 3))
        return error.detach() + (1e38 * error - (1e38 * error).detach())

    intervals = glo.Intervals(report=32, checkpoint=32)
    with pytest.raises(glo.UserError, match=r"training diverged; lower `learning_rate` \(=1000000.0\)"):
        glo.train_phase(
            config, glo.TensorImages(blobs), glo.Phase(target=5000), run=tmp_path, intervals=intervals, loss=steep
        )
    # The loss of the first step is finite, and the weights after it are not: that is no checkpoint.
    assert committed_checkpoints(tmp_path) == []


def test_checkpoints_come_by_time_too(blobs: torch.Tensor, tmp_path: Path) -> None:
    intervals = glo.Intervals(checkpoint_minutes=1e-9)  # Due whenever ranks agree: at the first step of an epoch.
    images, phase = glo.TensorImages(blobs), glo.Phase(target=900)
    often = glo.train_phase(CONFIG, images, phase, run=tmp_path, intervals=intervals)
    *earlier, last = [int(path.name) for path in committed_checkpoints(tmp_path)]
    assert last == 900
    assert earlier
    assert all(seen % 150 in (21, 22) for seen in earlier)  # One of seven steps.
    assert torch.equal(often.table.codes(), glo.train_phase(CONFIG, images, phase).table.codes())


class Leaving(glo.SingleProcess):
    """A machine that is always about to go."""

    looks = 0

    def preempted(self) -> bool:
        self.looks += 1
        return True


def test_a_machine_about_to_go_is_saved_once_and_training_goes_on(blobs: torch.Tensor, tmp_path: Path) -> None:
    runtime = Leaving()
    trained = glo.train_phase(CONFIG, glo.TensorImages(blobs), glo.Phase(target=900), run=tmp_path, runtime=runtime)
    assert trained.finished
    assert runtime.looks == 6
    assert [path.name for path in committed_checkpoints(tmp_path)] == ["22", "900"]


def test_a_warm_start_has_the_decoder_of_the_other_run_and_nothing_else(blobs: torch.Tensor, tmp_path: Path) -> None:
    images = glo.TensorImages(blobs)
    other = glo.train_phase(CONFIG, images, glo.Phase(target=900), run=tmp_path)
    warm = tmp_path / "checkpoints/900"
    still = dataclasses.replace(
        CONFIG, learning_rate=0.0, code=dataclasses.replace(CONFIG.code, learning_rate=0.0), ema_half_life=None
    )
    started = glo.train_phase(still, images, glo.Phase(target=32), warm_start=warm)
    for parameter, reference in zip(started.decoder.parameters(), other.decoder.parameters(), strict=True):
        assert torch.equal(parameter, reference)
    cold = glo.train_phase(still, images, glo.Phase(target=32))
    assert torch.equal(started.table.codes(), cold.table.codes())
    # Better than a fresh decoder at once, and a run with a checkpoint of its own does not look there again.
    assert started.metrics["psnr"] > cold.metrics["psnr"] + 1
    glo.train_phase(CONFIG, images, glo.Phase(target=901), run=tmp_path, warm_start=tmp_path / "gone")
    wider = dataclasses.replace(CONFIG, decoder=glo.DecoderConfig(kind="seed", filters=(16, 16), kernel_size=4))
    with pytest.raises(glo.UserError, match=r"`warm_start` \(=.*900\): has another decoder \(decoder"):
        glo.train_phase(wider, images, glo.Phase(target=32), warm_start=warm)


def test_a_handful_of_images_trains_though_lanes_are_empty() -> None:
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    config = glo.TrainConfig(batch_size=32, code=glo.CodeConfig(dim=2), decoder=glo.DecoderConfig(filters=(8,)))
    trained = glo.train_phase(config, glo.TensorImages(images), glo.Phase(target=50))
    assert trained.table.resident.num_updates.tolist() == [10] * 5


def test_no_image_and_too_many_workers_are_one_line() -> None:
    none = glo.TensorImages(torch.zeros(0, 8, 8, 1, dtype=torch.uint8))
    with pytest.raises(glo.UserError, match="no training image"):
        EpochBatches(RESOLVED, none, glo.SingleProcess())
    assert too_many_workers(33, 32, 128) == (
        "`workers` (=33) is more than the 32 lanes of `code_shards` (=32) and `batch_size` (=128); "
        "use at most 32 workers"
    )


def test_a_checkpoint_of_other_images_or_another_batch_is_refused(blobs: torch.Tensor, tmp_path: Path) -> None:
    glo.train_phase(CONFIG, glo.TensorImages(blobs), glo.Phase(target=300), run=tmp_path)
    with pytest.raises(glo.UserError, match="is of other images or another batch size"):
        glo.train_phase(CONFIG, glo.TensorImages(blobs[:99]), glo.Phase(target=300), run=tmp_path)


def test_a_finished_checkpoint_is_not_written_again(blobs: torch.Tensor, tmp_path: Path) -> None:
    images = glo.TensorImages(blobs)
    glo.train_phase(CONFIG, images, glo.Phase(target=300), run=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    (tmp_path / "checkpoints" / "600").mkdir()  # What a kill in the middle of writing leaves.
    glo.train_phase(CONFIG, images, glo.Phase(target=300), run=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (tmp_path / "checkpoints" / "600").exists()


@pytest.mark.parametrize("decoder", losses.DECODERS)
def test_a_hundred_losses_in_float64_are_those_of_earlier_versions(decoder: str) -> None:
    golden = json.loads(losses.FILE.read_text())[decoder]
    assert len(golden) == losses.STEPS
    np.testing.assert_allclose(losses.losses(decoder), golden, rtol=1e-9)
