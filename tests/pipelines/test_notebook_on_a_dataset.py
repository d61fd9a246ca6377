"""`glo.train` and `glo.load` on a dataset: images and files by id, what is appended, the stages after training."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import glo_core as glo
from glo_core.common.location import Location
from pipelines.config import EvaluateJob
from pipelines.evaluate import evaluate
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess
from tests.helpers.tiny_training import CONFIG
from tests.helpers.write_images import write_images


@pytest.mark.usefixtures("session")
def test_a_dataset_gives_images_files_and_what_is_appended(tmp_path: Path) -> None:
    photos, place, run = tmp_path / "photos", tmp_path / "dataset", tmp_path / "run"

    def prepare() -> glo.Dataset:
        folders, dataset = (Location(photos),), Location(place)
        preprocess(PreprocessJob(input=folders, dataset=dataset, resolution=16, channels=1, holdout=0.2))
        return glo.Dataset.open(place)

    write_images(photos, 40, seed=1)
    dataset = prepare()
    result = glo.train(dataset, config=CONFIG, images_seen=300, run=run, progress=False)
    model = glo.load(run)
    assert np.array_equal(model.ids, np.sort(dataset.images().ids))
    assert np.array_equal(model.images(), result.model.images())
    quality = np.square(model.reconstruct() / 255.0 - model.images() / 255.0).mean()
    assert -10 * np.log10(quality) == pytest.approx(result.metrics["psnr"], abs=0.1)

    # Every file of the dataset is found by the path it has, and by the manifest's name; held-out ones have no code.
    by_path = {path: model.find(path) for path in sorted(photos.rglob("*.png"))}
    assert sorted(by_path.values()) == sorted([*dataset.images().ids.tolist(), *dataset.held_out().ids.tolist()])
    path, image_id = next((path, i) for path, i in by_path.items() if i in model.ids)
    assert model.find(f"photos/{path.relative_to(photos)}") == image_id
    nearest_ids = model.neighbors(model.images([image_id]), k=1).ids
    assert nearest_ids.tolist() == [[image_id]]
    held_out = int(dataset.held_out().ids[0])
    with pytest.raises(glo.UserError, match=f"image id {held_out}: not among the training images"):
        model.codes([held_out])
    with pytest.raises(glo.UserError, match="no image of"):
        model.find(photos / "missing.png")

    # The stages after training work on a run of a notebook too.
    train = evaluate(EvaluateJob(run=run)).train
    assert train.glo.psnr == pytest.approx(result.metrics["psnr"], abs=1e-3)
    assert train.pca.psnr == pytest.approx(result.metrics["pca_psnr"], abs=1e-3)

    write_images(tmp_path / "more", 20, seed=2)
    shutil.copytree(tmp_path / "more", photos / "more")
    grown = prepare()
    again = glo.train(grown, config=CONFIG, images_seen=300, run=run, progress=False)
    assert np.array_equal(again.model.ids, model.ids)
    assert np.array_equal(again.model.images(), model.images())
    longer = glo.train(grown, images_seen=600, run=run, progress=False)
    assert np.array_equal(longer.model.ids, np.sort(grown.images().ids))
    # The older checkpoint still has the images that it was trained on.
    assert np.array_equal(glo.load(run, images_seen=model.images_seen).images(), model.images())

    place.rename(tmp_path / "moved")
    with pytest.raises(glo.UserError, match="the training images are not at hand"):
        glo.load(run).images()
    moved = glo.load(run, images=glo.Dataset.open(tmp_path / "moved"))
    assert np.array_equal(moved.images(), longer.model.images())
