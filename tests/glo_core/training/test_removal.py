"""Images removed from a dataset on disk: no reader gets them, and the next checkpoint has no code of theirs."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import glo_core as glo
from glo_core.common.location import Location
from glo_core.evaluation.neighbors import take_ids
from pipelines.config import RenderJob
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.removal import remove_images
from pipelines.render import GridRenderer
from tests.helpers.tiny_training import Impatient
from tests.helpers.write_images import write_images

SIDE = 16
CONFIG = glo.TrainConfig(batch_size=4, code=glo.CodeConfig(dim=3), decoder=glo.DecoderConfig(filters=(8, 4)))
STILL = dataclasses.replace(CONFIG, code=dataclasses.replace(CONFIG.code, learning_rate=0.0))
"""Trains on without moving a code"""


@pytest.fixture(scope="module")
def original(session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 30 images on 4 code shards, three of them held out or more."""
    place = tmp_path_factory.mktemp("removal")
    write_images(place / "images", 30, seed=2, side=SIDE)
    job = PreprocessJob(
        input=(Location(place / "images"),),
        dataset=Location(place / "dataset"),
        resolution=SIDE,
        channels=1,
        code_shards=4,
        holdout=0.2,
    )
    preprocess(job)
    return place


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original / "dataset", tmp_path / "dataset")
    return tmp_path / "dataset"


def codes_by_id(run: Path) -> dict[int, list[float]]:
    ids, codes = glo.Checkpoint.latest(run).codes()
    assert sorted(set(ids.tolist())) == ids.tolist()
    return dict(zip(ids.tolist(), codes.tolist(), strict=True))


def remove(dataset: Path, ids: list[int]) -> None:
    remove_images(Location(dataset), [str(i) for i in ids])


def test_the_next_checkpoint_has_no_code_of_a_removed_image_and_all_others(dataset: Path, tmp_path: Path) -> None:
    images = glo.Dataset.open(dataset).images()
    glo.train_phase(CONFIG, images, glo.Phase(target=100), run=tmp_path / "run")
    before = codes_by_id(tmp_path / "run")
    assert sorted(before) == sorted(images.ids.tolist())
    removed = sorted(before)[3:5]
    remove(dataset, removed)
    phase = glo.Phase(number=1, start=100, target=200)
    trained = glo.train_phase(STILL, glo.Dataset.open(dataset).images(), phase, run=tmp_path / "run")
    assert trained.finished
    after = codes_by_id(tmp_path / "run")
    assert sorted(after) == sorted(set(before) - set(removed))
    # Every other code is still the code of its image.
    assert after == {i: before[i] for i in after}


def test_a_reader_of_an_older_snapshot_skips_them_too(dataset: Path, original: Path) -> None:
    whole = glo.Dataset.open(dataset)
    train, held_out = whole.images(), whole.held_out()
    assert min(len(train.ids), len(held_out.ids)) >= 3
    removed = [int(train.ids[0]), int(train.ids[-1]), int(held_out.ids[1])]
    remove(dataset, removed)
    for reader in (glo.Dataset.open(dataset), glo.Dataset.open(dataset).at(whole.digest)):
        assert sorted(reader.images().ids.tolist()) == sorted(set(train.ids.tolist()) - set(removed))
        assert sorted(reader.held_out().ids.tolist()) == sorted(set(held_out.ids.tolist()) - set(removed))
        # What is left has its own pixels.
        ids = reader.images().ids
        assert np.array_equal(take_ids(reader.images(), ids), take_ids(train, ids))
    assert glo.Dataset.open(dataset).at(whole.digest).digest == whole.digest


@pytest.mark.parametrize("steps", [1, 5])
def test_an_interrupted_phase_goes_on_without_them(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Where nearly all images are removed, the epoch in which the phase was interrupted has fewer steps than it."""
    monkeypatch.setattr("glo_core.training.loop.AGREE_STEPS", 1)
    digest, images = glo.Dataset.open(dataset).digest, glo.Dataset.open(dataset).images()
    phase = glo.Phase(target=120)
    stopped = glo.train_phase(CONFIG, images, phase, run=tmp_path / "run", runtime=Impatient(after=steps))
    assert not stopped.finished
    assert stopped.position.step == steps
    before = codes_by_id(tmp_path / "run")
    removed = sorted(before)[1:3] if steps == 1 else sorted(before)[4:]
    remove(dataset, removed)
    trained = glo.train_phase(CONFIG, glo.Dataset.open(dataset).at(digest).images(), phase, run=tmp_path / "run")
    assert trained.finished
    assert sorted(codes_by_id(tmp_path / "run")) == sorted(set(before) - set(removed))


@pytest.mark.usefixtures("session")
def test_grids_of_an_older_checkpoint_show_none_of_them(dataset: Path, tmp_path: Path) -> None:
    images = glo.Dataset.open(dataset).images()
    glo.train_phase(CONFIG, images, glo.Phase(target=60), run=tmp_path / "run")
    checkpoint = glo.Checkpoint.latest(tmp_path / "run")
    removed = sorted(images.ids.tolist())[3:5]
    remove(dataset, removed)
    older = glo.Dataset.open(dataset).at(checkpoint.snapshot)
    renderer = GridRenderer(RenderJob(run=tmp_path / "run", rows=8, columns=8), older, checkpoint, {})
    assert sorted(renderer.chosen.ids.tolist()) == sorted(set(images.ids.tolist()) - set(removed))
    picture = renderer.reconstructions()
    first = np.asarray(picture)[:SIDE, :SIDE]
    assert np.array_equal(first.reshape(SIDE, SIDE), take_ids(images, renderer.chosen.ids[:1])[0, :, :, 0])
