"""`glo.train` as a notebook calls it: objects in, a model out; runs that resume, return at once, and grow."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import glo_core as glo
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.decoder.batch_norm import GroupedBatchNorm
from glo_core.losses.weighted_sum import Loss
from tests.helpers.tiny_training import CONFIG

SMALL = dataclasses.replace(CONFIG, batch_size=32)


def absolute_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (prediction - target).abs().mean(dim=(1, 2, 3))


def psnr(reconstructions: np.ndarray, images: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(reconstructions / 255.0 - images / 255.0).mean()))


@pytest.mark.parametrize("form", ["tensor", "array", "gray array", "source"])
def test_every_form_of_images_trains_the_same_model_in_the_order_of_the_caller(blobs: torch.Tensor, form: str) -> None:
    images = {
        "tensor": blobs,
        "array": blobs.numpy(),
        "gray array": blobs.numpy()[..., 0],
        "source": glo.TensorImages(blobs),
    }[form]
    result = glo.train(images, config=SMALL, images_seen=3000, progress=False)
    model = result.model
    assert model.ids.tolist() == list(range(150))
    assert model.codes().shape == (150, 4)
    assert np.array_equal(model.images(), blobs.numpy())
    assert psnr(model.reconstruct(), blobs.numpy()) == pytest.approx(result.metrics["psnr"], abs=0.1)
    # In another order, reconstructions are far from their images.
    assert psnr(model.reconstruct(), blobs.numpy()[::-1]) < result.metrics["psnr"] - 3


def test_the_rules_choose_what_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glo_core.training.session.images_to_see", lambda count: 2 * count)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    result = glo.train(images, progress=False)
    assert result.position.images_seen >= 40
    assert result.model.codes().shape == (20, 16)
    assert result.model.reconstruct([3, 0]).shape == (2, 8, 8, 3)


def test_callables_are_called_and_can_stop(blobs: torch.Tensor, tmp_path: Path) -> None:
    reports: list[int] = []
    previews: list[tuple[int, str, Image.Image]] = []
    result = glo.train(
        blobs,
        config=SMALL,
        images_seen=10_000,
        run=tmp_path / "run",
        intervals=glo.Intervals(report=100, grid=200),
        on_report=lambda seen, metrics: reports.append(seen) if "loss" in metrics else None,
        on_preview=lambda *preview: previews.append(preview),
        should_stop=lambda: len(reports) >= 5,
        progress=False,
    )
    assert not result.finished
    assert 500 <= reports[-1] <= result.position.images_seen < 2000
    assert {name for _, name, _ in previews} == {"training_reconstructions", "training_samples"}
    assert previews[0][2].size[0] > 16
    assert [path.name for path in committed_checkpoints(tmp_path / "run")] == [str(result.position.images_seen)]
    assert len(result.model.codes()) == 150


def test_the_same_call_resumes_and_then_returns_at_once(blobs: torch.Tensor, tmp_path: Path) -> None:
    whole = glo.train(blobs, config=SMALL, images_seen=1500, progress=False)
    run, answers = tmp_path / "run", iter([False, False, True])
    stopped = glo.train(
        blobs, config=SMALL, images_seen=1500, run=run, should_stop=lambda: next(answers), progress=False
    )
    assert not stopped.finished
    resumed = glo.train(blobs, config=SMALL, images_seen=1500, run=run, progress=False)
    assert np.array_equal(resumed.model.codes(), whole.model.codes())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("[!.]*.*")}
    again = glo.train(blobs, config=SMALL, images_seen=1500, run=str(run), on_report=_never, progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.finished
    assert again.metrics == resumed.metrics
    assert again.position == resumed.position
    assert np.array_equal(again.model.codes(), resumed.model.codes())
    assert np.array_equal(
        again.table.resident.num_updates,
        resumed.table.resident.num_updates[np.argsort(resumed.table.ids)][again.table.ids],
    )
    assert psnr(again.model.reconstruct(), blobs.numpy()) == pytest.approx(again.metrics["psnr"], abs=0.1)


def _never(seen: int, metrics: dict[str, float]) -> None:
    raise AssertionError(f"a finished training reported {metrics} at {seen}")


def test_a_larger_number_trains_on_and_so_do_images_behind_the_others(blobs: torch.Tensor, tmp_path: Path) -> None:
    first = glo.train(blobs[:100], config=SMALL, images_seen=900, run=tmp_path, progress=False)
    # Without a config the run's own recipe goes on.
    longer = glo.train(blobs[:100], images_seen=1800, run=tmp_path, progress=False)
    assert longer.position.phase == 1
    assert longer.metrics["psnr"] > first.metrics["psnr"]
    same = glo.train(blobs, images_seen=1800, run=tmp_path, progress=False)
    assert len(same.model.ids) == 100  # It has reached its target, on the images that it had.
    grown = glo.train(blobs, images_seen=2700, run=tmp_path, progress=False)
    assert (grown.position.phase, len(grown.model.ids)) == (2, 150)
    assert psnr(grown.model.reconstruct(), blobs.numpy()) == pytest.approx(grown.metrics["psnr"], abs=0.1)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [(phase["start"] > 0, phase["images"]) for phase in record["phases"]] == [
        (False, 100),
        (True, 100),
        (True, 150),
    ]


@pytest.mark.parametrize(
    ("config", "loss", "images_seen", "line"),
    [
        (
            dataclasses.replace(SMALL, learning_rate=1e-3),
            None,
            100,
            r"another recipe \(learning_rate: 0.005 -> 0.001\)",
        ),
        (SMALL, absolute_error, 100, r"another recipe \(objects"),
        (SMALL, None, 0.5, r"`images_seen` \(=0.5\) must be a whole number from 1 on"),
    ],
)
def test_a_run_of_another_recipe_is_one_line(
    blobs: torch.Tensor, tmp_path: Path, config: glo.TrainConfig, loss: Loss | None, images_seen: float, line: str
) -> None:
    glo.train(blobs, config=SMALL, images_seen=100, run=tmp_path, progress=False)
    with pytest.raises(glo.UserError, match=line) as caught:
        glo.train(blobs, config=config, loss=loss, images_seen=images_seen, run=tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_a_run_of_other_images_is_one_line(blobs: torch.Tensor, tmp_path: Path) -> None:
    glo.train(blobs, config=SMALL, images_seen=100, run=tmp_path, progress=False)
    for others in (blobs.flip(0), blobs[:100], torch.cat([blobs[:1], blobs])):
        with pytest.raises(
            glo.CheckpointError, match="was trained on other images; give the same ones in the same order"
        ):
            glo.train(others, config=SMALL, images_seen=200, run=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ("photos", r"`images` \(=str\) must be a tensor, a NumPy array, or a dataset: glo.Dataset.open\(path\)"),
        (np.zeros((4, 8, 8)), r"`images` \(=float64 \[4, 8, 8\]\) must be uint8, 0 to 255; multiply"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"must be \[n, H, W, C\]: channels last; images.permute\(0, 2, 3, 1\)"),
        (np.zeros((4, 8), np.uint8), r"`images` \(=uint8 \[4, 8\]\) must be \[n, H, W, C\], or \[n, H, W\]"),
        (np.zeros((4, 8, 16, 3), np.uint8), "must be uint8 .n, side, side"),
        (np.zeros((4, 12, 12, 3), np.uint8), r"`resolution` \(=12\) must be 4 \* 2\^n"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no training image"),
    ],
)
def test_images_that_cannot_be_trained_on_are_one_line(images: object, line: str) -> None:
    with pytest.raises(glo.UserError, match=line) as caught:
        glo.train(images, images_seen=10, progress=False)
    assert "\n" not in str(caught.value)


def test_a_read_only_array_is_copied(blobs: torch.Tensor) -> None:
    images = blobs.numpy().copy()
    images.flags.writeable = False
    assert len(glo.train(images, config=SMALL, images_seen=1, progress=False).model.ids) == 150


# ---------------------------------------------------------------- objects of the user's


class Own(nn.Module):
    def __init__(self, hidden: int = 24, dim: int = 4) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 256)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(codes)))).unflatten(1, (1, 16, 16)).tanh()


CODES = glo.TrainConfig(batch_size=32, learning_rate=1e-2, code=glo.CodeConfig(dim=4))


def test_a_module_trains_as_the_decoder_and_only_itself_opens_its_run(blobs: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Own()
    weights = {name: value.clone() for name, value in module.state_dict().items()}

    def train(decoder: nn.Module | None, images_seen: int = 2000) -> glo.TrainResult:
        return glo.train(blobs, config=CODES, decoder=decoder, images_seen=images_seen, run=tmp_path, progress=False)

    result = train(module)
    assert isinstance(result.decoder.norm, GroupedBatchNorm)
    assert isinstance(module.norm, nn.BatchNorm1d)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert result.metrics["psnr"] > 15
    assert json.loads((committed_checkpoints(tmp_path)[-1] / "decoder.json").read_text())["config"]["kind"] == "module"
    again = train(module)
    model = glo.load(tmp_path, decoder=Own())
    for other in (again.model, model):
        assert np.array_equal(other.reconstruct(), result.model.reconstruct())
    with pytest.raises(glo.CheckpointError, match="given as a module, which no file holds; give it again"):
        glo.load(tmp_path)
    with pytest.raises(glo.CheckpointError, match=r"the decoder has other weights; .*first\.weight") as caught:
        glo.load(tmp_path, decoder=Own(hidden=8))
    assert "\n" not in str(caught.value)
    with pytest.raises(glo.UserError, match="the decoder has other weights"):
        train(Own(hidden=8), images_seen=4000)
    with pytest.raises(glo.CheckpointError, match=r"another recipe \(.*decoder.kind: module -> dcgan"):
        train(None)


@pytest.mark.parametrize(
    ("module", "config", "line"),
    [
        (
            Own(dim=7),
            CODES,
            r"decoder=Own: RuntimeError: .* \(when called with codes \[2, 4\]; `code.dim` sets the length",
        ),
        (nn.Linear(4, 16), CODES, r"decoder=Linear: makes \(2, 16\) of two codes where \(2, 1, 16, 16\) is needed"),
        (Own(), SMALL, r"`decoder` \(=Own\) is a module: leave out the settings of config.decoder"),
    ],
)
def test_a_module_that_does_not_fit_is_one_line(
    blobs: torch.Tensor, module: nn.Module, config: glo.TrainConfig, line: str
) -> None:
    with pytest.raises(glo.ConfigError, match=line) as caught:
        glo.train(blobs, config=config, decoder=module, images_seen=10, progress=False)
    assert "\n" not in str(caught.value)


def test_a_loss_of_the_users_is_what_is_trained(blobs: torch.Tensor) -> None:
    own = glo.train(blobs, config=SMALL, loss=absolute_error, images_seen=300, progress=False)
    named = glo.train(blobs, config=dataclasses.replace(SMALL, loss="l1"), images_seen=300, progress=False)
    assert np.array_equal(own.model.codes(), named.model.codes())
    with pytest.raises(
        glo.ConfigError, match=r"loss=mse_loss: returns shape \(\) for two images where \(2,\) is needed"
    ):
        glo.train(blobs, config=SMALL, loss=nn.functional.mse_loss, images_seen=300, progress=False)


def test_a_class_is_imported_only_if_the_command_names_it(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("own_decoders")
    vars(module).update(Own=lambda code_dim, resolution, channels: Own(dim=code_dim))
    monkeypatch.setitem(sys.modules, "own_decoders", module)
    config = dataclasses.replace(CODES, decoder=glo.DecoderConfig(kind="own_decoders:Own"))
    result = glo.train(blobs, config=config, images_seen=100, run=tmp_path, progress=False)
    monkeypatch.delitem(sys.modules, "own_decoders")
    with pytest.raises(glo.CheckpointError, match="imported only if your own command names it too") as caught:
        glo.load(tmp_path)
    assert "own_decoders" not in sys.modules
    assert 'glo.load(run, decoder="own_decoders:Own")' in str(caught.value)
    with pytest.raises(glo.CheckpointError, match="imported only if your own command names it"):
        glo.load(tmp_path, decoder="other:Own")
    monkeypatch.setitem(sys.modules, "own_decoders", module)
    model = glo.load(tmp_path, decoder="own_decoders:Own")
    assert np.array_equal(model.reconstruct(), result.model.reconstruct())


def test_a_module_for_a_run_that_needs_none_is_one_line(blobs: torch.Tensor, tmp_path: Path) -> None:
    glo.train(blobs, config=SMALL, images_seen=32, run=tmp_path, progress=False)
    with pytest.raises(glo.CheckpointError, match=r"`decoder` \(=Own\): this run has a decoder of kind seed"):
        glo.load(tmp_path, decoder=Own())
    with pytest.raises(glo.ConfigError, match=r"`decoder.kind` \(=module\) needs the module itself"):
        glo.train(
            blobs, config=glo.TrainConfig(decoder=glo.DecoderConfig(kind="module")), images_seen=1, progress=False
        )


def test_a_warm_start_takes_the_decoder_of_another_run(blobs: torch.Tensor, tmp_path: Path) -> None:
    glo.train(blobs, config=SMALL, images_seen=900, run=tmp_path / "other", progress=False)
    cold = glo.train(blobs, config=SMALL, images_seen=100, progress=False)
    warm = glo.train(blobs, config=SMALL, images_seen=100, warm_start=tmp_path / "other", progress=False)
    assert warm.metrics["psnr"] > cold.metrics["psnr"] + 1
