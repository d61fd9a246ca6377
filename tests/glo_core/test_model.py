"""A model in one object: codes, reconstructions, samples, interpolation, inversion, neighbors, files."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import glo_core as glo
from glo_core.codes.projection import to_sphere
from glo_core.evaluation.neighbors import nearest
from glo_core.sampling.gaussian_prior import GaussianPrior, Moments
from tests.helpers.tiny_training import CONFIG

PIXELS = torch.rand((150, 4, 4, 1), generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 1)
IMAGES = PIXELS.repeat_interleave(4, 2).mul(255).byte()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "run"
    config = dataclasses.replace(CONFIG, code=dataclasses.replace(CONFIG.code, dim=8))
    glo.train(IMAGES, config=config, images_seen=900, run=directory, progress=False)
    glo.train(IMAGES, images_seen=3000, run=directory, progress=False)
    return directory


def test_a_run_opens_as_a_string_or_a_path_and_at_any_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    newest = glo.load("~/run")
    assert newest.images_seen >= 3000
    assert np.array_equal(newest.codes(), glo.load(run).codes())
    older = glo.load(run, images_seen=900)
    assert older.images_seen == 900
    assert not np.array_equal(newest.codes(), older.codes())


def test_codes_and_images_come_by_id(run: Path) -> None:
    model = glo.load(run, images=IMAGES)
    ids = [7, 149, 7, 0]
    assert np.array_equal(model.codes(ids), model.codes()[ids])
    assert np.array_equal(model.images(ids), IMAGES.numpy()[ids])
    assert np.array_equal(model.reconstruct(ids), model.reconstruct()[ids])
    assert model.codes().dtype == np.float32
    assert model.reconstruct(3).shape == (1, 16, 16, 1)
    assert model.codes([]).shape == (0, 8)


def test_sample_i_depends_on_the_seed_and_i_alone(run: Path) -> None:
    model = glo.load(run)
    for prior in ("full", "diagonal", "unit"):
        many = model.sample(70, prior=prior, seed=5)
        assert many.shape == (70, 16, 16, 1)
        for count in (1, 33, 64):
            assert np.array_equal(model.sample(count, prior=prior, seed=5), many[:count])
        assert not np.array_equal(model.sample(70, prior=prior, seed=6), many)


def test_a_prior_that_was_fitted_to_the_checkpoint_is_the_one_that_is_sampled(run: Path, tmp_path: Path) -> None:
    here = tmp_path / "run"
    shutil.copytree(run, here)
    model = glo.load(here)
    plain = model.sample(4)
    still = GaussianPrior.fit("full", Moments.of(np.tile(model.codes([3]), (2, 1))), "sphere")
    still.save(here / "prior" / "900" / "full")
    still.save(here / "prior" / "900" / "mixture")
    assert np.array_equal(model.sample(4), plain)  # That of an older checkpoint is not.
    still.save(here / "prior" / str(model.images_seen) / "full")
    assert np.abs(model.sample(4).astype(int) - model.reconstruct([3])).max() <= 1
    with pytest.raises(
        glo.UserError, match=r"`prior` \(=mixture\): .* has no prior of this name; the checkpoint at 900 images has"
    ) as caught:
        model.sample(4, prior="mixture")
    assert "\n" not in str(caught.value)


def test_interpolation_goes_from_one_reconstruction_to_the_other(run: Path) -> None:
    model = glo.load(run)
    line = model.interpolate(2, 9, 5)
    assert np.abs(line[[0, -1]].astype(int) - model.reconstruct([2, 9])).max() <= 1
    middle = to_sphere(torch.from_numpy(model.codes([2, 9]).mean(0, keepdims=True)))
    assert np.abs(line[2].astype(int) - model.decode(middle)[0]).max() <= 1


@pytest.mark.parametrize("with_images", [True, False])
def test_inversion_finds_codes_in_the_order_of_the_images(run: Path, with_images: bool) -> None:
    model = glo.load(run, images=IMAGES if with_images else None)
    unseen = model.sample(40, seed=9)
    codes = model.invert(unseen, glo.InvertConfig(steps=60))
    errors = np.square(model.decode(codes) / 255.0 - unseen / 255.0).mean((1, 2, 3))
    assert np.median(errors) < 1e-3
    others = np.square(model.decode(codes) / 255.0 - unseen[::-1] / 255.0).mean((1, 2, 3))
    assert np.median(errors) < np.median(others) / 10


def test_neighbors_of_training_images_are_themselves(run: Path) -> None:
    model = glo.load(run, images=IMAGES.numpy()[..., 0])
    neighbors = model.neighbors(IMAGES[[40, 3]], k=4)
    assert neighbors.ids[:, 0].tolist() == [40, 3]
    assert np.allclose(neighbors.distances[:, 0], 0)
    expected = nearest(IMAGES[[40, 3]].numpy(), glo.TensorImages(IMAGES), 4)
    assert np.array_equal(neighbors.ids, expected.ids)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: m.codes([3, 150]), r"image id 150: not among the training images \(150 ids from 0 to 149\)"),
        (lambda m: m.reconstruct(-1), "image id -1: not among the training images"),
        (lambda m: m.interpolate(0, 1000, 3), "image id 1000: not among the training images"),
        (lambda m: m.codes([0.5]), r"`ids` \(=float64 \[1\]\) must be whole numbers"),
        (lambda m: m.decode(np.zeros((2, 3))), r"`codes` \(=torch.float64 \[2, 3\]\) must be floats of shape \[n, 8\]"),
        (
            lambda m: m.sample(1, prior="gauss"),
            r"`prior` \(=gauss\): .* has no prior of this name; take unit, diagonal, full, or run",
        ),
        (lambda m: m.images(), "the training images are not at hand; give them: glo.load"),
        (lambda m: m.neighbors(IMAGES[:1]), "the training images are not at hand"),
        (lambda m: m.neighbors(IMAGES[:1], k=151), r"`k` \(=151\) must be from 1 to 150"),
        (lambda m: m.invert(IMAGES[:, :8, :8]), r"`images` \(=\[150, 8, 8, 1\]\) must be \[n, 16, 16, 1\]"),
        (lambda m: m.find("a.png"), "a.png: the model was trained on a tensor, not on files"),
    ],
)
def test_a_wrong_argument_is_one_line(run: Path, call: Callable[[glo.Model], object], line: str) -> None:
    with pytest.raises(glo.UserError, match=line) as caught:
        call(glo.load(run))
    assert "\n" not in str(caught.value)


def test_a_run_that_cannot_be_opened_is_one_line(run: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, int | None, torch.Tensor | None, str]] = [
        (tmp_path / "none", None, None, "no such directory"),
        (tmp_path, None, None, "no checkpoint here"),
        (run, 901, None, "no checkpoint at 901 images; it has 900, 30"),
        (run, None, IMAGES.flip(0), "are not those that .* was trained on; give the same ones"),
    ]
    for place, images_seen, images, line in cases:
        with pytest.raises(glo.UserError, match=line) as caught:
            glo.load(place, images_seen=images_seen, images=images)
        assert "\n" not in str(caught.value)
